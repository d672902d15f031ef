"""GET /v2/models/.../stats: what the metrics know, as far as the protocol has a field for it."""

from fastapi import APIRouter
from prometheus_client import Histogram

from models.artifact import Manifest
from service.api.state import MetricsState, RegistryState
from service.api.v2.schemas import Duration, InferenceStatistics, ModelStatistics, Statistics
from service.metrics import Metrics

router = APIRouter(prefix="/v2")


@router.get("/models/stats")
async def all_statistics(registry: RegistryState, metrics: MetricsState) -> Statistics:
    """Of every version that serves."""
    engines = [entry.engine for entry in registry.states().values() if entry.engine]
    return Statistics(model_stats=[_statistics(engine.manifest, metrics) for engine in engines])


@router.get("/models/{model}/versions/{version}/stats")
@router.get("/models/{model}/stats")
async def model_statistics(
    model: str, registry: RegistryState, metrics: MetricsState, version: str | None = None
) -> Statistics:
    """Of one version, the latest by default."""
    engine = await registry.get(model, version, takes_turn=False)
    return Statistics(model_stats=[_statistics(engine.manifest, metrics)])


def _statistics(manifest: Manifest, metrics: Metrics) -> ModelStatistics:
    queue = _duration(metrics.queue_seconds, manifest)
    compute = _duration(metrics.compute_seconds, manifest)
    return ModelStatistics(
        name=manifest.name,
        version=manifest.version,
        inference_count=_duration(metrics.chain_length, manifest).count,
        inference_stats=InferenceStatistics(
            success=Duration(count=compute.count, ns=queue.ns + compute.ns), queue=queue, compute_infer=compute
        ),
    )


def _duration(histogram: Histogram, manifest: Manifest) -> Duration:
    """Count and sum of one model's observations, the sum from seconds to nanoseconds."""
    wanted = {"model": manifest.name, "version": manifest.version}
    found = {
        sample.name.rpartition("_")[2]: sample.value
        for family in histogram.collect()
        for sample in family.samples
        if sample.labels == wanted
    }
    return Duration(count=int(found.get("count", 0)), ns=round(found.get("sum", 0) * 1e9))
