"""Run a task on a Ray cluster, as a Ray Data pipeline: a pool of actors, each of which holds the networks of the task.

Ray Data gives the job of an actor that dies, with its node or alone, to the actor that replaces it, without end. Hence
attempts are counted.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import Counter
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
        """Return the result of one job. An exception ends the run."""


class Attempts:
    """An actor that counts the attempts of each job."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, number: int) -> int:
        """Count one more. Returns how many there were before."""
        self.counts[number] += 1
        return self.counts[number] - 1


class Worker:
    """An actor with a task, which starts with the first job."""

    def __init__(self, task: RayTask, attempts: Any):
        self.task, self.attempts, self.started = task, attempts, False

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Run the job of a row. Returns its number, and (result, error, exception that ends the run), pickled."""
        import ray

        outcome: tuple[Any, str, Exception | None]
        if ray.get(self.attempts.add.remote(row["number"])) == MAX_ATTEMPTS:
            outcome = None, f"its worker died {MAX_ATTEMPTS} times", None
        else:
            try:
                if not self.started:
                    self.task.start()
                    self.started = True
                outcome = self.task.attempt(pickle.loads(row["job"])), "", None
            except Exception as error:
                outcome = None, "", error
        return {"number": row["number"], "outcome": _dump(outcome)}


def _dump(value: Any) -> bytes:
    import ray.cloudpickle

    return ray.cloudpickle.dumps(value)


def run_on_ray(task: RayTask, jobs: Sequence[Any], address: str, workers: int | None) -> Iterator[tuple[Any, Any, str]]:
    """Run a task on jobs on a cluster. Yield (job, result, "") as they end, or (job, None, error) if its workers died.

    Args:
        task: what to do. It may use GPUs of the cluster unless its device is "cpu".
        jobs: what to do it with.
        address: of the cluster, as ``ray.init`` takes it; "" for RAY_ADDRESS or else a cluster on this machine.
        workers: number of actors, which share the GPUs (default: one per GPU, or per CPU without).

    Raises UgicmError if the cluster cannot be reached. Exceptions of the task are raised, too.
    """
    require_packages("ray", "--ray", "ray")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray logs a harmless error in every run
    import ray.data

    try:
        ray.init(address or None, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UgicmError(f"--ray {address}: cannot connect: {first_line(error)}") from None
    have = ray.cluster_resources()
    gpus = have.get("GPU", 0) if task.device != "cpu" else 0
    workers = min(workers or int(gpus or have.get("CPU", 1)), len(jobs))
    resources = {"num_gpus": min(1, gpus / workers), "num_cpus": 0} if gpus else {"num_cpus": 1}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    rows = [{"number": number, "job": _dump(job)} for number, job in enumerate(jobs)]
    outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Worker, fn_constructor_args=(task, ray.remote(num_cpus=0, max_restarts=-1)(Attempts).remote()),
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1), **resources,
    )  # fmt: skip
    for row in outcomes.iter_rows():
        result, error, fatal = pickle.loads(row["outcome"])
        if fatal:
            raise fatal
        yield jobs[row["number"]], result, error
