"""Every form of every family: written, held to eager torch, opened by its own backend, asked through the service."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from exporters import possible
from exporters.possible import try_formats
from models.artifact import Format
from models.chain import Chain
from tests.contracts.families import FAMILIES, Array
from tests.contracts.made import WRITTEN, Made, assert_answers, difference, made_of


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with made_of(request.param, tmp_path_factory.mktemp(request.param.name)) as one:
        yield one


def test_chains_and_rows_are_told_apart(made: Made) -> None:
    found = [made.family.asked.plain(made.model, row, chain) for chain in made.chains for row in (0, 1)]
    cut = [answer[: min(map(len, found))] for answer in found]
    assert min(difference(a, b) for i, a in enumerate(cut) for b in cut[:i]) > 1e-3


@pytest.mark.parametrize("format", [format for format in WRITTEN if format != "onnx-scan"])
def test_form_answers_within_its_tolerance_through_the_service(made: Made, format: Format) -> None:
    assert_answers(made, format)


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


def test_reasons_are_those_that_are_listed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made.artifact("onnx").refused == {
        format: reason for format, reason in made.family.cannot.items() if format in WRITTEN
    }
    monkeypatch.setattr(possible, "FORMATS", tuple(made.family.cannot))
    assert try_formats(made.checkpoint).refused == made.family.cannot
