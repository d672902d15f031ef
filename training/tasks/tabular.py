"""Small tables in natural units: wine and breast cancer to be classified, diabetes to be predicted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor
from torch.nn import functional as F

from training.tasks.score import explained
from training.tasks.task import Examples

Table: TypeAlias = Literal["wine", "breast_cancer", "diabetes"]
_SPLIT_SEED, _TEST_PART = 0, 0.25
_LOADERS: Mapping[Table, Callable[..., Any]] = {
    "wine": load_wine,
    "breast_cancer": load_breast_cancer,
    "diabetes": partial(load_diabetes, scaled=False),
}
_DATA: Mapping[Table, str] = {
    "wine": "the UCI Wine table as scikit-learn ships it (178 rows, 13 features, 3 classes; S. Aeberhard and M. "
    "Forina, CC BY 4.0); a quarter held out, stratified",
    "breast_cancer": "the UCI Breast Cancer Wisconsin (Diagnostic) table as scikit-learn ships it (569 rows, 30 "
    "features, 2 classes; W. Wolberg, O. Mangasarian, N. Street, W. Street, CC BY 4.0); a quarter held out, stratified",
    "diabetes": "the diabetes table of B. Efron et al., Least Angle Regression (2004), as scikit-learn ships it (442 "
    "rows, 10 features, progression after a year; no licence is stated); a quarter held out",
}


@dataclass(frozen=True, slots=True)
class Tabular:
    """inputs [N, F] float32 in the table's units; targets [N] int64, or [N, 1] float32 of diabetes."""

    table: Table

    @property
    def data(self) -> str:
        return _DATA[self.table]

    @property
    def metric(self) -> str:
        return "right answers, %" if self.is_classified else "variance explained, %"

    @property
    def is_classified(self) -> bool:
        """Whether targets are classes."""
        return self.table != "diabetes"

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the features that are learned from, [F] each."""
        inputs = _split(self.table)[0].inputs
        return inputs.mean(dim=0), inputs.std(dim=0)

    @property
    def answer_units(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the targets that are learned from."""
        targets = _split(self.table)[0].targets.float()
        return targets.mean(), targets.std()

    def batch(self, size: int, random: Generator) -> Examples:
        learned, _ = _split(self.table)
        picked = torch.randint(len(learned.targets), (size,), generator=random)
        return Examples(learned.inputs[picked], learned.targets[picked])

    def heldout(self) -> Examples:
        return _split(self.table)[1]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.is_classified:
            return F.cross_entropy(outputs, targets, label_smoothing=0.1)
        return F.mse_loss(outputs, targets) / self.answer_units[1].square()

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        if self.is_classified:
            return 100 * float((outputs.argmax(-1) == targets).float().mean())
        return 100 * float(explained(outputs, targets).mean())


@cache
def _split(table: Table) -> tuple[Examples, Examples]:
    """Rows to learn from and rows held out."""
    inputs, targets = _LOADERS[table](return_X_y=True)
    strata = None if table == "diabetes" else targets
    parts = train_test_split(inputs, targets, test_size=_TEST_PART, random_state=_SPLIT_SEED, stratify=strata)
    train_inputs, test_inputs, train_targets, test_targets = map(torch.as_tensor, parts)
    shaped = (lambda t: t.float().unsqueeze(1)) if table == "diabetes" else Tensor.long
    return Examples(train_inputs.float(), shaped(train_targets)), Examples(test_inputs.float(), shaped(test_targets))
