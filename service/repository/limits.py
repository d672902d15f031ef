"""The limits of one model's engine, from its manifest and the settings that hold for it."""

from models.artifact import Manifest
from models.errors import ChainError
from service.engine.degrade import Ladder, read_ladder
from service.engine.engine import EngineLimits
from service.engine.queue import Limits, QueueLimits
from service.settings import Settings


def limits_of(manifest: Manifest, settings: Settings) -> EngineLimits:
    """What the engine of a model takes. Raises ChainError for cheaper chains that the model cannot run."""
    return EngineLimits(
        Limits(_rows_at_once(manifest, settings), settings.max_batch_tokens, settings.max_prefill_tokens),
        QueueLimits(
            settings.max_queue_requests, settings.max_queue_rows, settings.max_queue_tokens, settings.max_client_rows
        ),
        _longest_chain(manifest, settings),
        settings.search_bytes,
        settings.verifier_url,
        settings.verifier_timeout_s,
        settings.verifier_max_retries,
        _ladder(manifest, settings),
        settings.response_cache_bytes,
    )


def _rows_at_once(manifest: Manifest, settings: Settings) -> int:
    """Rows of one pass; an adopted graph may have been exported for a fixed number."""
    fixed = {spec.shape[0] for spec in (*manifest.inputs, *manifest.outputs)} - {-1}
    return min(fixed, default=settings.max_batch_rows)


def _ladder(manifest: Manifest, settings: Settings) -> Ladder | None:
    """The cheaper chains that are declared for a model. Raises ChainError if it cannot run them."""
    declared = settings.degrade.get(manifest.name)
    if not declared:
        return None
    if not manifest.num_layers:
        raise ChainError(f"model {manifest.name!r} is served whole; leave it out of FATHOM_DEGRADE")
    chains = read_ladder(declared, manifest.num_layers, _longest_chain(manifest, settings))
    return Ladder(chains, settings.degrade_wait_s, settings.degrade_fraction)


def _longest_chain(manifest: Manifest, settings: Settings) -> int:
    return int(manifest.num_layers * settings.max_chain_factor)
