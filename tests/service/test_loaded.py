"""`load`: a model in this process answers as its server would, to as many threads as ask."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import ChainError, DeadlineError, InputError, LengthError, UnavailableError, UnknownModelError
from service import bind, load
from service.loaded import Loaded

SHORT = "0,2"


@pytest.fixture(scope="module")
def words(tiny_repository: Path) -> Iterator[Loaded]:
    with load(tiny_repository / "tinylm", backend="fake") as model:
        yield model


@pytest.fixture(scope="module")
def numbers(tiny_repository: Path) -> Iterator[Loaded]:
    with load("tinymlp", repository=tiny_repository, backend="onnx") as model:
        yield model


def test_language_model_answers_as_over_http(words: Loaded, serve: Any) -> None:
    said = {"chain": ["full", SHORT], "max_new_tokens": 4, "logprobs": 1}
    found = words.predict(["12+7=", "3+4="], **said)
    parameters = {"max_new_tokens": 4, "logprobs": 1}
    with serve() as server:
        wanted = server.predict("tinylm", ["12+7=", "3+4="], chain=said["chain"], parameters=parameters)
    assert found.texts == [one["text"] for one in wanted["outputs"]]
    assert [list(chain) for chain in found.chains] == [[0, 1, 2], [0, 2]]
    assert found.layers_executed == sum(one["layers_executed"] for one in wanted["outputs"])
    assert [len(answer.logprobs) == len(answer.top) == len(answer.token_ids) for answer in found.answers] == [True] * 2
    assert found.usage.layer_evaluations == wanted["usage"]["layer_evaluations"]
    assert words.predict("12+7=", depth=2, max_new_tokens=1).chains == ((0, 2),)
    (scored,) = words.predict(["12+7="], mode="score", targets=["19"]).answers
    assert scored.matches in (True, False)
    embedding = words.predict(["12+7=", "1"], mode="embed").arrays["embedding"]
    assert (embedding.shape[0], embedding.dtype) == (2, np.float32)


def test_tensor_model_takes_arrays_rows_and_names(numbers: Loaded) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    (name,) = (spec.name for spec in numbers.manifest.inputs)
    by_array = numbers.predict(rows, chain=SHORT)
    assert by_array.arrays["logits"].dtype == np.float32
    assert by_array.chains == ((0, 2),) * 3
    assert (by_array.layers_executed, by_array.layers_full, by_array.usage.layer_evaluations) == (6, 9, 6)
    np.testing.assert_array_equal(
        numbers.predict({name: rows}, chain=SHORT).arrays["logits"], by_array.arrays["logits"]
    )
    by_rows = numbers.predict(tuple(map(tuple, rows.tolist())), chain=(0, 2)).arrays["logits"]
    np.testing.assert_allclose(by_rows, by_array.arrays["logits"], atol=1e-6)


def test_threads_share_batches() -> None:
    started, may_go, sizes = threading.Event(), threading.Event(), []

    def double(x: Any) -> Any:
        sizes.append(len(x))
        started.set()
        assert may_go.wait(20)
        return x * 2

    bound = bind(double, {"x": ("FP32", [-1])}, {"y": ("FP32", [-1])})
    with load(bound) as model, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(model.predict, np.float32([0]))]
        assert started.wait(20)
        asked += [pool.submit(model.predict, np.float32([n])) for n in range(1, 8)]
        while model._engine._batcher.num_waiting < 7:
            threading.Event().wait(0.01)
        may_go.set()
        assert [one.result().arrays["y"].tolist() for one in asked] == [[2 * n] for n in range(8)]
    assert sizes == [1, 7]


@pytest.mark.parametrize(
    ("inputs", "said", "error", "told"),
    [
        (["1+1="], {"chain": "0-9"}, ChainError, "visit 3 names layer 3"),
        ([], {}, InputError, "no inputs came"),
        ([1.5], {}, InputError, "neither a text nor a list of token ids"),
        (["1+1="], {"max_new_token": 1}, InputError, "max_new_token"),
        (["1+1="], {"chain": "0", "depth": 1}, InputError, "depth: Not with chain"),
        (["1" * 99], {}, LengthError, "99"),
        (["1+1="], {"timeout": 1e-6}, DeadlineError, "more than its 1e-06 s"),
    ],
)
def test_faults_are_those_of_the_engine(
    words: Loaded, inputs: Any, said: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        words.predict(inputs, **said)
    assert words.predict("1+1=", max_new_tokens=1).answers


def test_versions_folders_and_names_are_found(tiny_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny_repository / "tinymlp" / "1", backend="fake") as model:
        assert (model.manifest.name, model.manifest.version) == ("tinymlp", "1")
    monkeypatch.chdir(tiny_repository)
    with load("tinymlp", backend="fake") as model:  # a folder of the current one
        assert model.manifest.name == "tinymlp"
    with pytest.raises(UnknownModelError, match=r"no model 'absent'; there are \['tinylm/1', 'tinymlp/1'\]"):
        load("absent", repository=tiny_repository)
    with pytest.raises(UnknownModelError, match="version or label '9'"):
        load("tinymlp", "9", repository=tiny_repository)


def test_closed_model_says_so_and_leaves_no_thread(tiny_repository: Path) -> None:
    before = set(threading.enumerate())
    model = load("tinymlp", repository=tiny_repository, backend="fake")
    assert set(threading.enumerate()) > before
    model.close()
    model.close()
    assert set(threading.enumerate()) <= before  # of earlier tests some may have ended meanwhile
    with pytest.raises(UnavailableError, match="model 'tinymlp' was closed; load it again"):
        model.predict([[0] * 6])
