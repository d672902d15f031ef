"""The requests that a version has to answer before it serves: `warm_up` of its settings, bodies of POST /predict."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from models.artifact import SETTINGS
from models.errors import ArtifactError, FathomError, InputError
from service.api.predict import answer
from service.api.schemas import PredictRequest
from service.engine.engine import Engine
from service.problems import malformed


async def rehearse(engine: Engine, requests: Sequence[dict[str, Any]]) -> None:
    """Answer every request. Raises ArtifactError naming the one that fails and the reason."""
    for place, request in enumerate(requests):
        try:
            body = _body(engine, request)
            body.chain = body.chain_of(engine)  # type: ignore[assignment]
            await answer(body, engine)
        except FathomError as error:
            raise ArtifactError(
                f"model {engine.manifest.name!r} version {engine.manifest.version!r} fails warm_up.{place} of its "
                f"{SETTINGS}: {error}"
            ) from error


def _body(engine: Engine, request: dict[str, Any]) -> PredictRequest:
    if given := sorted({"model", "version", "stream"} & request.keys()):
        raise InputError(f"{given} came; leave them out, the version that loads answers")
    try:
        return PredictRequest.model_validate({"model": engine.manifest.name, **request})
    except ValidationError as error:
        raise malformed(error) from error
