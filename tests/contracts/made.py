"""A family's model in every form, each served by its own backend in one app, and what holds of its answers."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, TypeAlias

import numpy as np
from fastapi.testclient import TestClient

from exporters.export import FORMATS, export_checkpoint
from exporters.forms import LOSSY
from exporters.publish import Exported
from models.artifact import Format
from models.chain import Chain
from models.checkpoint import load_checkpoint
from models.layered import LayeredModel
from service.app import create_app
from service.settings import Settings
from tests.contracts.families import Array, Family

Group: TypeAlias = tuple[Format, ...]
# Graphs of torch.export are traced anew for each format, seconds a part; machine code takes tens of them.
TRACED: Group = ("pt2", "pt2-int8", "pt2-int4")
COMPILED: Group = ("aoti",)
WRITTEN: Group = tuple(format for format in FORMATS if format not in (*TRACED, *COMPILED))
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
            self.exported[group] = export_checkpoint(self.checkpoint, repository, group, name="all")
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
    return next(group for group in (TRACED, COMPILED, WRITTEN) if format in group)


def publish(exported: Exported, repository: Path, format: Format) -> None:
    """The artifact once more, under the name of a form whose backend is to serve it."""
    folder = repository / format / "1"
    shutil.copytree(exported.directory, folder)
    exported.manifest.model_copy(update={"name": format}).write(folder)
    backend = "eager" if format == "safetensors" else format
    (repository / format / "settings.json").write_text(json.dumps({"backend": backend}))


@contextmanager
def made_of(family: Family, folder: Path) -> Iterator[Made]:
    checkpoint = family.find(folder / "checkpoint")
    with ExitStack() as closing:
        yield Made(family, checkpoint, folder, load_checkpoint(checkpoint), closing)


def difference(a: Array, b: Array) -> float:
    assert a.shape == b.shape
    return float(np.abs(np.asarray(a, np.float64) - b).max())


def assert_answers(made: Made, format: Format) -> None:
    """A form is refused for the reason of its family; or answers two rows, together and alone, along two chains."""
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
