"""Which models are shared among ranks, and how: from a manifest and the settings that hold for it."""

import os

from models.artifact import Manifest
from models.errors import BackendError
from models.parallel.stages import deal
from service.backends.open import BackendName, threads_for
from service.parallel.leader import Ranking
from service.settings import Settings


def is_shared(manifest: Manifest, settings: Settings) -> bool:
    """Whether ranks serve a model: language models are dealt out, all others are run in this process."""
    return _num_ranks(settings) > 1 and manifest.language is not None


def backend_of(manifest: Manifest, settings: Settings) -> BackendName:
    """The backend whose files are read; of a shared model the one that reads weights by slices. Raises BackendError."""
    if not is_shared(manifest, settings):
        return settings.backend
    if settings.backend not in ("auto", "eager"):
        raise BackendError(
            f"model {manifest.name!r} is to be shared by {_num_ranks(settings)} ranks and backend "
            f"{settings.backend!r} runs in one process; use eager or auto, or set FATHOM_TENSOR_PARALLEL and "
            "FATHOM_PIPELINE_PARALLEL to 1"
        )
    return "eager"


def ranking_of(manifest: Manifest, settings: Settings) -> Ranking:
    """How a model is shared. Raises BackendError for times that would end in the wrong order, and too many stages."""
    _check_times(settings)
    size = _num_ranks(settings)
    cores = max(len(os.sched_getaffinity(0)) // size, 1)
    return Ranking(
        size=size,
        device=settings.device,
        dtype=settings.dtype,
        num_threads=settings.num_threads or threads_for(manifest, "eager", cores),
        step_deadline_s=settings.step_deadline_s,
        group_timeout_s=settings.group_timeout_s,
        rank_silence_s=settings.rank_silence_s,
        address=settings.ranks_address,
        secret=settings.ranks_secret,
        stages=deal(manifest.num_layers, settings.pipeline_parallel, settings.pipeline_layers),
    )


def _num_ranks(settings: Settings) -> int:
    return settings.tensor_parallel * settings.pipeline_parallel


def _check_times(settings: Settings) -> None:
    """Ranks that hang are noticed by their leader, else by themselves, and only then by who waits for an answer."""
    step_s, group_s, request_s = settings.step_deadline_s, settings.group_timeout_s, settings.max_request_s
    if not step_s < group_s:
        raise BackendError(
            f"FATHOM_STEP_DEADLINE_S is {step_s:g} and FATHOM_GROUP_TIMEOUT_S {group_s:g}; make the first one smaller"
        )
    if request_s is not None and not group_s < request_s:
        raise BackendError(
            f"FATHOM_GROUP_TIMEOUT_S is {group_s:g} and FATHOM_MAX_REQUEST_S {request_s:g}; make the first one "
            "smaller, or a request is too late before it is known that its ranks hang"
        )
