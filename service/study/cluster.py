"""The same workers on a Ray cluster. Ray is an optional extra; every node needs Fathom and sees the repository."""

from collections.abc import Iterator, Sequence
from typing import Any

from models.errors import BackendError
from service.study.dataset import Row
from service.study.record import SampleResult
from service.study.worker import Job, Worker

# The address that starts a Ray of its own on this machine.
LOCAL = "local"


def study_on_ray(job: Job, rows: Sequence[Row], num_workers: int, address: str) -> Iterator[SampleResult]:
    """Study the rows in `num_workers` actors of one CPU each; results come as they are ready.

    Raises BackendError if Ray is not installed, cannot be reached or loses an actor.
    """
    ray = _ray()
    from ray.util import ActorPool

    here = {"num_cpus": num_workers} if address == LOCAL else {}
    try:
        ray.init(address=address, logging_level="error", log_to_driver=False, include_dashboard=None, **here)
        actor = ray.remote(num_cpus=1)(Worker)
        pool: Any = ActorPool([actor.remote(job) for _ in range(num_workers)])
        yield from pool.map_unordered(lambda worker, row: worker.study.remote(row), rows)
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise BackendError(
            f"Ray at {address!r} failed; what is done is kept, run the same command again: {error}"
        ) from error
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise BackendError("Ray is not installed; install fathom-serving[ray], or leave --ray out") from error
    return ray
