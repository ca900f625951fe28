"""Run a task over shards on a Ray cluster: a pool of actors, each of which holds one codec.

An actor that dies, with its node or alone, is replaced, and its shard is given to another. Ray's own restarts are not
used: they bind a shard to an actor, which may wait for resources of a lost node.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from ugicm.commands.batch import Outcome, run_job
from ugicm.errors import UgicmError, first_line
from ugicm.extras import require_packages

MAX_ATTEMPTS = 3  # of a shard whose workers die


class Worker:
    """An actor with a task."""

    def __init__(self, task: Any):
        self.task = task

    def start(self) -> None:
        """Load the codec."""
        self.task.start()

    def run(self, job: Any) -> Outcome:
        """Run one job."""
        return run_job(self.task, job, True)


class _Pool:
    """The actors of a run, and what each is doing."""

    def __init__(self, task: Any, actor_class: Any):
        self.task, self.actor_class = task, actor_class
        self.pending: dict[Any, tuple[Any, Any]] = {}  # reference -> actor, its job or None while it starts

    def add(self) -> None:
        actor = self.actor_class.remote(self.task)
        self.pending[actor.start.remote()] = (actor, None)

    def give(self, actor: Any, job: Any) -> None:
        self.pending[actor.run.remote(job)] = (actor, job)

    @property
    def working(self) -> bool:
        return any(job is not None for _, job in self.pending.values())


def run_on_ray(task: Any, jobs: Sequence[Any], address: str, workers: int | None) -> Iterator[tuple[Any, Outcome]]:
    """Run a task on jobs on a cluster. Yield jobs with their outcomes as they end.

    Args:
        task: has ``start`` and ``run``. On a cluster with GPUs its device may be one.
        jobs: what to run it on.
        address: of the cluster, as ``ray.init`` takes it; "" for RAY_ADDRESS or else a cluster on this machine.
        workers: number of actors, which share the GPUs (default: one per GPU, or per CPU without).

    Raises UgicmError if the cluster cannot be reached or the task cannot start.
    """
    require_packages("ray", "--ray", "ray")
    import ray

    try:
        ray.init(address or None, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UgicmError(f"--ray {address}: cannot connect: {first_line(error)}") from None
    have = ray.cluster_resources()
    gpus = have.get("GPU", 0) if task.images.device != "cpu" else 0
    workers = min(workers or int(gpus or have.get("CPU", 1)), len(jobs))
    resources = {"num_gpus": min(1, gpus / workers), "num_cpus": 0} if gpus else {"num_cpus": 1}
    pool = _Pool(task, ray.remote(max_restarts=0, **resources)(Worker))
    try:
        for _ in range(workers):
            pool.add()
        yield from _run(ray, pool, deque(jobs))
    finally:
        for actor, _ in pool.pending.values():
            ray.kill(actor)


def _run(ray: Any, pool: _Pool, queue: deque) -> Iterator[tuple[Any, Outcome]]:
    attempts: Counter = Counter()
    idle: list[Any] = []
    while queue or pool.working:
        while queue and idle:
            pool.give(idle.pop(), queue.popleft())
        (ready, *_), _ = ray.wait(list(pool.pending), num_returns=1)
        actor, job = pool.pending.pop(ready)
        try:
            outcome = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UgicmError) else error) from None
        except ray.exceptions.RayError as error:  # the actor or its node is lost
            attempts[job] += 1
            if job is None and attempts[None] > 100:
                raise UgicmError(f"Ray workers do not start: {first_line(error)}") from None
            pool.add()
            if job is not None and attempts[job] < MAX_ATTEMPTS:
                queue.appendleft(job)
            elif job is not None:
                yield job, Outcome(error=f"{job.source}: its worker died {MAX_ATTEMPTS} times: {first_line(error)}")
            continue
        idle.append(actor)
        if job is not None:
            yield job, outcome
