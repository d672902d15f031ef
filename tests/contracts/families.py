"""One small model of every family, and the two shipped ones: how each is made, asked, and what is to be answered.

Answers are held as numbers: logits where the service gives them, logarithms of probabilities where it gives these.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models
from models import catalogue
from models.artifact import Format
from models.chain import Chain
from models.layered import LayeredModel
from models.recurrent.diagonal import Diagonal, DiagonalConfig
from tests.contracts import classifiers, decoders, encoders

Array = np.ndarray[Any, Any]
SHIPPED = Path(models.__file__).parent / "checkpoints"


@dataclass(frozen=True)
class Asked:
    """What a model is asked: two rows that wait together.

    rows: what goes in, tokens or numbers. answer: the numbers that are held, of a row's outputs (of every token or
    step, where a model has these). inputs, more: how a request says it. read: these numbers of a response. slack: how
    far they may be off where outputs are off by one.
    """

    rows: Sequence[Sequence[Any]]
    answer: Callable[[Array], Array]
    read: Callable[[Any], Array]
    inputs: Sequence[Any] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    slack: float = 1.0

    def plain(self, model: LayeredModel, row: int, chain: Chain) -> Array:
        """The numbers of a row by a plain loop over layers, alone."""
        tokens = torch.tensor([self.rows[row]])
        lengths = {"lengths": torch.tensor([len(self.rows[row])])} if model.kind == "encoder" else {}
        with torch.inference_mode():
            return self.answer(model.along({"token_ids": tokens, **lengths}, chain)[0].numpy())


@dataclass(frozen=True)
class Family:
    """A model of one family; `cannot` are the forms that it has not, each with the reason."""

    name: str
    find: Callable[[Path], Path]
    asked: Asked
    chain: tuple[int, ...] = (1, 0, 0)
    cannot: Mapping[Format, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def _log_softmax(logits: Array) -> Array:
    return torch.from_numpy(logits).log_softmax(-1).numpy()


def _scored(*prompts: Sequence[int]) -> Asked:
    """Texts of a language model: how likely it finds the three tokens that follow."""
    target = [3, 1, 4]

    def answer(logits: Array) -> Array:
        return _log_softmax(logits[-len(target) - 1 : -1])[range(len(target)), target]

    def read(output: Any) -> Array:
        return np.asarray(output["logprobs"])[: len(target)]  # behind them is the end

    more = {"targets": [target] * len(prompts), "parameters": {"mode": "score"}}
    return Asked([[*prompt, *target] for prompt in prompts], answer, read, prompts, more, slack=2.0)


def _labelled(*texts: Sequence[int]) -> Asked:
    def read(output: Any) -> Array:
        return np.log([output["scores"][label] for label in encoders.LABELS.values()])

    return Asked(texts, _log_softmax, read, texts, slack=2.0)


def _embedded(*texts: Sequence[int]) -> Asked:
    return Asked(texts, lambda vector: vector, lambda output: np.asarray(output["embedding"]), texts)


def _numbers(rows: Sequence[Any]) -> Asked:
    def read(output: Any) -> Array:
        (found,) = output["outputs"].values()
        return np.asarray(found)

    return Asked(rows, lambda outputs: outputs, read, rows)


def _some(count: int, below: int) -> list[int]:
    found: list[int] = np.random.default_rng(count).integers(1, below, count).tolist()
    return found


def _pixels(size: int) -> Any:
    return classifiers.pixels((3, size, size)).tolist()


def _shipped(name: str) -> Callable[[Path], Path]:
    """As it is, but for the held-out samples: counting answers of each form takes longer than all else."""
    return lambda folder: shutil.copytree(SHIPPED / name, folder, ignore=shutil.ignore_patterns("heldout.jsonl"))


def _made(make: Callable[[Any, Path], Any], rows: Sequence[Any], name: str) -> Callable[[Path], Path]:
    """A row of a table of architectures; of two layers, where it is one that has a number of them."""
    row = next(row for row in rows if str(row) == name)
    says = row.says if "depths" in row.says else {**row.says, "num_hidden_layers": 2}
    return lambda folder: _returned(folder, make(replace(row, says=says), folder))


def _sentences(folder: Path) -> Path:
    return _returned(folder, encoders.make_sentence(folder))


def _recurrent(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Diagonal(DiagonalConfig(vocab_size=7, num_classes=4, hidden_size=16, num_layers=2))
    return _returned(folder, catalogue.save(model, folder))


def _returned(folder: Path, _: object) -> Path:
    return folder


FAMILIES = (
    Family("arith", _shipped("arith"), _scored(_some(9, 15), _some(4, 15)), (*range(9), 11, 11)),
    Family("digits", _shipped("digits"), _numbers([_some(64, 17), _some(64, 17)[::-1]]), (0, 3, *range(3, 11))),
    Family("decoder", _made(decoders.make, decoders.DECODERS, "mistral"), _scored(_some(12, 90), _some(5, 90))),
    Family("sentences", _sentences, _embedded(_some(12, 90), _some(5, 90)), (2, 0, 0)),
    # Layers of two kinds and two reaches.
    Family(
        "texts",
        _made(encoders.make, encoders.ENCODERS, "modernbert-classify"),
        _labelled(_some(12, 90), _some(5, 90)),
    ),
    Family("images", _made(classifiers.make, classifiers.CLASSIFIERS, "vit"), _numbers(_pixels(32))),
    Family("convolutions", _made(classifiers.make, classifiers.CLASSIFIERS, "resnet-18"), _numbers(_pixels(48))),
    Family("recurrent", _recurrent, _numbers([_some(12, 7), _some(4, 7)])),
    # Served whole: the one that is no stack.
    Family(
        "whole",
        _shipped("s-kan-diabetes"),
        _numbers([[0.1 * i for i in range(10)], [0.5 - 0.1 * i for i in range(10)]]),
        (),
        {
            "onnx-scan": "a network without layers has no chain; export it as onnx",
            "pt2-int4": "no part has a linear layer whose weights pt2-int4 could hold in 4 bits",
        },
    ),
)
