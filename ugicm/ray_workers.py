"""Run a task on a Ray cluster: a pool of actors, each of which holds the networks of the task.

An actor that dies, with its node or alone, is replaced, and its job is given to another. Ray's own restarts are not
used: they bind a job to an actor, which may wait for resources of a lost node.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ugicm.errors import UgicmError, first_line
from ugicm.extras import require_packages

MAX_ATTEMPTS = 3  # of a job whose workers die


class RayTask(Protocol):
    """What actors do. It is pickled to each of them.

    Attributes:
        device: as the user named it, or None.
    """

    device: str | None

    def start(self) -> None:
        """Load the networks."""

    def attempt(self, job: Any) -> Any:
        """Return the result of one job, not None. An exception ends the run."""


class Worker:
    """An actor with a task."""

    def __init__(self, task: RayTask):
        self.task = task

    def start(self) -> None:
        """Start the task."""
        self.task.start()

    def run(self, job: Any) -> Any:
        """Run one job."""
        return self.task.attempt(job)


class _Pool:
    """The actors of a run, and what each is doing."""

    def __init__(self, task: RayTask, actor_class: Any):
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


def run_on_ray(task: RayTask, jobs: Sequence[Any], address: str, workers: int | None) -> Iterator[tuple[Any, Any, str]]:
    """Run a task on jobs on a cluster. Yield (job, result, "") as they end, or (job, None, error) if its workers died.

    Args:
        task: what to do. It may use GPUs of the cluster unless its device is "cpu".
        jobs: what to do it with, hashable.
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
    gpus = have.get("GPU", 0) if task.device != "cpu" else 0
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


def _run(ray: Any, pool: _Pool, queue: deque) -> Iterator[tuple[Any, Any, str]]:
    attempts: Counter = Counter()
    idle: list[Any] = []
    while queue or pool.working:
        while queue and idle:
            pool.give(idle.pop(), queue.popleft())
        (ready, *_), _ = ray.wait(list(pool.pending), num_returns=1)
        actor, job = pool.pending.pop(ready)
        try:
            result = ray.get(ready)
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
                yield job, None, f"its worker died {MAX_ATTEMPTS} times: {first_line(error)}"
            continue
        idle.append(actor)
        if job is not None:
            yield job, result, ""
