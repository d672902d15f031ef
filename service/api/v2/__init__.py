"""The Open Inference Protocol v2 over HTTP: what clients of KServe and Triton speak."""

from fastapi import APIRouter

from service.api.v2 import generate, infer, models, repository, statistics
from service.api.v2.schemas import InferenceError

_ERRORS: dict[int | str, dict[str, type]] = {"4XX": {"model": InferenceError}, "5XX": {"model": InferenceError}}

router = APIRouter(tags=["open inference protocol"], responses=_ERRORS)
# Statistics first: /models/stats is no model.
for module in (statistics, models, infer, generate, repository):
    router.include_router(module.router)
