"""Every form of every family: written, held to eager torch, opened by its own backend, asked through the service."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
import pytest
from fastapi.testclient import TestClient

from exporters.export import FORMATS, export_checkpoint
from exporters.forms import LOSSY
from exporters.possible import try_formats
from exporters.publish import Exported
from models.artifact import Format
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.layered import LayeredModel
from service.app import create_app
from service.settings import Settings
from tests.contracts.families import FAMILIES, Array, Family

# Graphs of torch.export are traced part by part, seconds each; machine code takes tens of them: see `test_aoti`.
Group: TypeAlias = tuple[Format, ...]
TRACED: Group = ("pt2", "pt2-int8", "pt2-int4")
WRITTEN: Group = tuple(format for format in FORMATS if format not in (*TRACED, "aoti"))
SERVED = tuple(format for format in WRITTEN if format != "onnx-scan")
# A row alone and the same row in a batch: float32 sums in another order.
ROUNDING = 5e-5
# Of what a form of fewer bits was measured to differ by, on other inputs.
LIKE_MEASURED = 4.0


@dataclass
class Made:
    """The model of a family, its forms from when they are first asked for, and the app that serves each of them."""

    family: Family
    checkpoint: Path
    folder: Path
    model: LayeredModel
    closing: ExitStack
    exported: dict[Group, Exported] = field(default_factory=dict)
    clients: dict[Group, TestClient] = field(default_factory=dict)

    @property
    def chains(self) -> tuple[Chain, ...]:
        full = Chain.full(len(self.model.layers))
        return (full, Chain(self.family.chain)) if self.family.chain else (full,)

    def artifact(self, format: Format) -> Exported:
        """That has the form, or says why there is none."""
        group = group_of(format)
        if group not in self.exported:
            repository = self.folder / group[0]
            self.exported[group] = export_checkpoint(self.checkpoint, repository, group, name="all", allow_loss=True)
        return self.exported[group]

    def ask(self, format: Format, rows: Sequence[int], chain: Chain) -> list[Any]:
        """What the app answers, on the form's own backend, to some of the rows along a chain."""
        asked = self.family.asked
        more = {
            name: [value[row] for row in rows] if name == "targets" else value for name, value in asked.more.items()
        }
        along = {"chain": list(chain.layers)} if chain.layers else {}
        body = {"model": format, "inputs": [asked.inputs[row] for row in rows], **more, **along}
        response = self._client(format).post("/predict", json=body)
        assert response.status_code == 200, response.text
        outputs: list[Any] = response.json()["outputs"]
        assert all(output["chain"] == list(chain.layers) for output in outputs)
        return outputs

    def _client(self, format: Format) -> TestClient:
        group = group_of(format)
        if group not in self.clients:
            repository = self.folder / f"{group[0]}-served"
            for form in self.artifact(format).manifest.forms:
                if form != "onnx-scan":
                    publish(self.artifact(format), repository, form)
            client = self.closing.enter_context(TestClient(create_app(Settings(repository=repository))))
            while client.get("/health/ready").status_code != 200:
                sleep(0.01)
            self.clients[group] = client
        return self.clients[group]


def group_of(format: Format) -> Group:
    return TRACED if format in TRACED else WRITTEN


def publish(exported: Exported, repository: Path, format: Format) -> None:
    """The artifact once more, under the name of a form whose backend is to serve it."""
    folder = repository / format / "1"
    shutil.copytree(exported.directory, folder)
    exported.manifest.model_copy(update={"name": format}).write(folder)
    backend = "eager" if format == "safetensors" else format
    (repository / format / "settings.json").write_text(json.dumps({"backend": backend}))


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    family: Family = request.param
    folder = tmp_path_factory.mktemp(family.name)
    checkpoint = family.find(folder / "checkpoint")
    with ExitStack() as closing:
        yield Made(family, checkpoint, folder, load_checkpoint(checkpoint), closing)


def difference(a: Array, b: Array) -> float:
    assert a.shape == b.shape
    return float(np.abs(np.asarray(a, np.float64) - b).max())


def test_chains_and_rows_are_told_apart(made: Made) -> None:
    found = [made.family.asked.plain(made.model, row, chain) for chain in made.chains for row in (0, 1)]
    cut = [answer[: min(map(len, found))] for answer in found]
    assert min(difference(a, b) for i, a in enumerate(cut) for b in cut[:i]) > 1e-3


@pytest.mark.parametrize("format", [*SERVED, *(pytest.param(one, marks=pytest.mark.slow) for one in TRACED)])
def test_form_answers_within_its_tolerance_through_the_service(made: Made, format: Format) -> None:
    if format in made.family.cannot:
        assert made.artifact(format).refused[format] == made.family.cannot[format]
        return
    form, asked = made.artifact(format).manifest.forms[format], made.family.asked
    for chain in made.chains:
        wanted = [asked.plain(made.model, row, chain) for row in (0, 1)]
        together = [asked.read(output) for output in made.ask(format, (0, 1), chain)]
        apart = max(map(difference, together, wanted))
        largest = max(1.0, *(float(np.abs(one).max()) for one in wanted)) if form.is_relative else 1.0
        assert apart <= max(form.tolerance * largest * asked.slack, ROUNDING)
        if format in LOSSY and chain == made.chains[0]:
            assert apart <= LIKE_MEASURED * asked.slack * max(one.max_abs for one in form.measured)
        alone = [asked.read(made.ask(format, (row,), chain)[0]) for row in (0, 1)]
        assert max(map(difference, alone, together)) <= ROUNDING


def test_one_graph_answers_along_any_chain(made: Made) -> None:
    exported = made.artifact("onnx-scan")
    if "onnx-scan" in made.family.cannot:
        assert exported.refused["onnx-scan"] == made.family.cannot["onnx-scan"]
        return
    form, asked = exported.manifest.forms["onnx-scan"], made.family.asked
    session = ort.InferenceSession(str(exported.directory / str(form.whole)), providers=["CPUExecutionProvider"])
    for chain in (*made.chains, Chain(made.family.chain * 2)):
        outputs, *_ = session.run(None, feed(session, asked.rows, chain))
        for row, numbers in enumerate(asked.rows):
            steps = len(numbers) if outputs.ndim == 3 else None
            got = asked.answer(outputs[row][:steps])
            assert difference(got, asked.plain(made.model, row, chain)) <= form.tolerance * asked.slack


def feed(session: ort.InferenceSession, rows: Sequence[Sequence[Any]], chain: Chain) -> dict[str, Array]:
    """Rows, padded on the right, a chain, and nothing cached before them."""
    first, *others = session.get_inputs()
    longest = max(map(len, rows))
    dtype = np.int64 if first.type == "tensor(int64)" else np.float32
    padded = [[*row, *[0] * (longest - len(row))] for row in rows]
    given = {first.name: np.asarray(padded, dtype), "chain": np.asarray(chain.layers)}
    given["lengths"] = np.asarray([len(row) for row in rows])
    sizes = {"batch": len(rows), "length": longest, "visits": len(chain), "past": 0}
    for entry in others:
        empty = np.zeros([sizes.get(dim, dim) for dim in entry.shape], np.float32)
        given.setdefault(entry.name, empty.astype(np.int64) if entry.type == "tensor(int64)" else empty)
    return {entry.name: given[entry.name] for entry in (first, *others)}


def test_reasons_are_those_that_are_listed(made: Made) -> None:
    assert made.artifact("onnx").refused == {
        format: reason for format, reason in made.family.cannot.items() if format in WRITTEN
    }
    if made.family.cannot:
        assert try_formats(made.checkpoint).refused == made.family.cannot
