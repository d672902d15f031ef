"""The same answers as over HTTP, in this process: for the command line."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from models.artifact import read_manifest
from models.errors import FathomError, InputError
from models.signature import verifier
from service.api import cola, predict
from service.api.schemas import PredictRequest
from service.api.searches import SearchRequest
from service.backends.open import refuse_both_runtimes
from service.cli_chains import open_memory
from service.cola.task import Progress
from service.engine.engine import Engine
from service.metrics import Metrics
from service.registry import Registry
from service.repository.source import open_source
from service.settings import Settings, read_settings


async def predict_locally(repository: Path | str | None, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of POST /predict."""
    request = validated(PredictRequest, body)
    async with _engine(repository, request.model) as engine, open_memory(repository) as memory:
        await predict.recall(request, engine, memory)
        answer: dict[str, Any] = orjson.loads(await predict.answer(request, engine))
        return answer


async def search_locally(
    repository: Path | str | None, body: dict[str, Any], on_simulations: Callable[[int], None]
) -> dict[str, Any]:
    """The result of POST /cola/search for one sample; `on_simulations` hears how many are done."""
    request = validated(SearchRequest, body)

    async def report(progress: Progress) -> None:
        on_simulations(progress.stats.simulations)

    async with _engine(repository, request.model) as engine:
        return (await cola.run(request, engine, request.input, request.target, report)).model_dump()


def list_locally(repository: Path | str | None) -> list[dict[str, Any]]:
    """Name, version, kind, number of layers, formats and state of every version in the repository."""
    settings = read_settings(repository=repository)
    source = open_source(settings)
    if isinstance(settings.repository, str):  # what a URL holds is known once it was looked at
        source.refresh()
    found = []
    for name, versions in source.versions().items():
        for version in versions:
            found.append({"name": name, "version": version, **_described(settings.folder / name / version, settings)})
    return found


def _described(directory: Path, settings: Settings) -> dict[str, Any]:
    verify = verifier(settings.repository_key) if settings.repository_key else None
    if isinstance(settings.repository, str) and not directory.is_dir():
        return {"kind": None, "num_layers": None, "formats": [], "state": "not copied here yet"}
    try:
        manifest = read_manifest(directory, verify)
    except FathomError as error:
        return {"kind": None, "num_layers": None, "formats": [], "state": str(error)}
    return {
        "kind": manifest.kind,
        "num_layers": manifest.num_layers,
        "formats": sorted(manifest.forms),
        "state": "available",
    }


@asynccontextmanager
async def _engine(repository: Path | str | None, name: str) -> AsyncIterator[Engine]:
    refuse_both_runtimes()
    registry = Registry(read_settings(repository=repository), Metrics())
    try:
        yield await registry.load(name)
    finally:
        await registry.close()


def validated(model: type[Any], body: dict[str, Any]) -> Any:
    """A body as a route would have read it. Raises InputError naming the field."""
    try:
        checked: BaseModel = model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    return checked
