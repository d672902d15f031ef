"""The first runs of a model: of useful sizes, bounded in time, and a clear reason where they fail."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from models.artifact import Manifest, TensorSpec
from models.errors import BackendError
from service.backends.open import open_backend
from service.backends.protocol import Array, Backend, Rows
from service.engine.queue import Limits
from service.engine.warm import warm_up

LIMITS = Limits(max_rows=8, max_tokens=1024)


class Seen:
    """A backend that notes the shapes it is given, and may be slow or fail on one of them."""

    def __init__(self, inner: Backend, pause_s: float = 0.0, bad_rows: int = 0) -> None:
        self._inner, self._pause_s, self._bad_rows = inner, pause_s, bad_rows
        self.shapes: list[tuple[int, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def embed(self, inputs: Mapping[str, Array], rows: Rows | None = None) -> Any:
        (array,) = inputs.values()
        self.shapes.append(array.shape)
        threading.Event().wait(self._pause_s)
        if len(array) == self._bad_rows:
            raise RuntimeError("no such size")
        return self._inner.embed(inputs, rows)


def seen(manifest: Manifest, **faults: Any) -> Any:
    return Seen(open_backend(manifest, Path(), "fake"), **faults)


def test_one_row_and_a_full_batch_are_run(tensor_manifest: Manifest, language_manifest: Manifest) -> None:
    backend = seen(tensor_manifest)
    warm_up(tensor_manifest, backend, LIMITS)
    assert backend.shapes == [(1, 3), (8, 3)]
    backend = seen(language_manifest)
    warm_up(language_manifest, backend, LIMITS)
    assert backend.shapes == [(1, 8), (8, 8)]
    backend = seen(language_manifest)
    warm_up(language_manifest, backend, Limits(max_rows=64, max_tokens=32))
    assert backend.shapes == [(1, 8), (4, 8)]


def test_slow_model_is_run_once_only(tensor_manifest: Manifest) -> None:
    backend = seen(tensor_manifest, pause_s=0.1)
    warm_up(tensor_manifest, backend, LIMITS)
    assert backend.shapes == [(1, 3)]


def test_model_of_a_fixed_number_of_rows_gets_that_many(tensor_manifest: Manifest) -> None:
    fixed = tensor_manifest.model_copy(update={"inputs": (TensorSpec(name="features", datatype="FP32", shape=(4, 3)),)})
    backend = seen(fixed)
    warm_up(fixed, backend, Limits(max_rows=4, max_tokens=1024))
    assert backend.shapes == [(4, 3)]


def test_failure_says_which_size_and_what_to_do(tensor_manifest: Manifest) -> None:
    with pytest.raises(BackendError, match=r"'numbers' fails on 8 rows of zeros: no such size; .*FATHOM_WARM_UP"):
        warm_up(tensor_manifest, seen(tensor_manifest, bad_rows=8), LIMITS)


def test_failure_on_a_size_that_was_guessed_is_none(tensor_manifest: Manifest) -> None:
    open_ended = TensorSpec(name="features", datatype="FP32", shape=(-1, -1))
    free = tensor_manifest.model_copy(update={"inputs": (open_ended,)})
    backend = seen(free, bad_rows=1)
    warm_up(free, backend, LIMITS)
    assert backend.shapes == [(1, 8)]
