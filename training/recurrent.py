"""Recipes of the linear recurrences."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.recurrent.aaren import Aaren, AarenConfig
from models.recurrent.delta_net import DeltaNet, DeltaNetConfig
from models.recurrent.diagonal import Diagonal, DiagonalConfig
from models.recurrent.gla import GLA, GLAConfig
from models.recurrent.lssl import LSSL, LSSLConfig
from models.recurrent.steps import Answers, FeedForward, Numbers
from models.recurrent.tcnca import TCNCA, TCNCAConfig
from training.recipe import Judge, Measured, Recipe, score
from training.tasks.copying import Copying
from training.tasks.counting import Counting
from training.tasks.digits import Digits
from training.tasks.recall import Recall
from training.tasks.task import Task


class GRU(nn.Module):
    """One gated recurrent layer and a projection, an answer at every step."""

    def __init__(self, num_features: int, hidden_size: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.cell = nn.GRU(num_features, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(self, steps: Tensor) -> Tensor:
        """[B, T, F] -> logits [B, T, C]"""
        logits: Tensor = self.head(self.cell(steps * self.scale)[0])
        return logits


class CausalAttention(nn.Module):
    """Pre-norm causal softmax attention and feed-forward, each added to the stream."""

    def __init__(self, hidden_size: int, num_heads: int, expansion: int) -> None:
        super().__init__()
        self.num_heads, self.norm = num_heads, nn.LayerNorm(hidden_size)
        self.qkv, self.out = nn.Linear(hidden_size, 3 * hidden_size, bias=False), nn.Linear(hidden_size, hidden_size)
        self.feed_forward = FeedForward(hidden_size, expansion)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        q, k, v = torch.unflatten(self.qkv(self.norm(hidden)), -1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        updated: Tensor = self.feed_forward(hidden + self.out(read.transpose(1, 2).flatten(2)))
        return updated


class Transformer(nn.Module):
    """A causal transformer with learned positions: memory grows with every step."""

    def __init__(self, config: AarenConfig, expansion: int) -> None:
        super().__init__()
        self.embed = Numbers(config.num_features, config.hidden_size, config.input_scale)
        self.positions = nn.Parameter(torch.randn(config.max_trained, config.hidden_size) * 0.02)
        blocks = (CausalAttention(config.hidden_size, config.num_heads, expansion) for _ in range(config.num_layers))
        self.layers, self.head = nn.Sequential(*blocks), Answers(config.hidden_size, config.num_classes)

    def forward(self, steps: Tensor) -> Tensor:
        """[B, T, F] -> logits [B, T, C]"""
        logits: Tensor = self.head(self.layers(self.embed(steps) + self.positions[: steps.shape[1]]))
        return logits


def _is_as_good(margin: float) -> Judge:
    """At most `margin` points below the baseline."""

    def judge(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
        ours, theirs = score(model, task), score(baseline, task)
        return ours >= theirs - margin, f"{ours:.1f} against {theirs:.1f}"

    return judge


def _tells_apart(solved: float, failed: float) -> Judge:
    """The model at `solved` per cent or more, the baseline at `failed` or less."""

    def judge(model: nn.Module, baseline: nn.Module, task: Task) -> tuple[bool, str]:
        ours, theirs = score(model, task), score(baseline, task)
        return ours >= solved and theirs <= failed, f"{ours:.1f} against {theirs:.1f}"

    return judge


_DIGITS, _RECALL, _COPYING = Digits("sequence"), Recall(), Copying()
_PARITY, _MODULO_3 = Counting(2, 40), Counting(3, 20)
_FADING = GLAConfig(
    vocab_size=_COPYING.num_symbols + 1,
    num_classes=_COPYING.num_symbols,
    num_layers=2,
    max_trained=2 * _COPYING.length,
)
_REMEMBERING, _ATTENDING = LSSLConfig(), AarenConfig()
_CONVOLVING = TCNCAConfig(
    vocab_size=_RECALL.num_keys + _RECALL.num_values,
    num_classes=_RECALL.num_values,
    max_trained=3 * _RECALL.num_pairs,
)
_FLIPPING = DeltaNetConfig(max_trained=_PARITY.length)
_TURNING = DeltaNetConfig(vocab_size=3, num_classes=3, num_updates=2, max_chunk=8, max_trained=_MODULO_3.length)
_SIGNED = DiagonalConfig(max_trained=_PARITY.length)
_RANGES = "eigenvalues below zero solve strings 6 times as long, and without them training ends at chance"


RECIPES = {
    "gla": Recipe(
        model=lambda: GLA(_FADING),
        baseline=lambda: GLA(replace(_FADING, is_gated=False)),
        baseline_name="linear attention, the same without gates",
        task=_COPYING,
        steps=2000,
        learning_rate=3e-3,
        weight_decay=0.01,
        claims=(Measured("at least as good as linear attention without gates", _is_as_good(0.0)),),
    ),
    "lssl": Recipe(
        model=lambda: LSSL(_REMEMBERING),
        baseline=lambda: GRU(1, 86, 10, _REMEMBERING.input_scale),
        baseline_name="GRU, one layer of 86",
        task=_DIGITS,
        steps=1500,
        learning_rate=4e-3,
        claims=(Measured("better than a GRU on images read pixel by pixel", _is_as_good(0.0)),),
    ),
    "aaren": Recipe(
        model=lambda: Aaren(_ATTENDING),
        baseline=lambda: Transformer(_ATTENDING, 3),
        baseline_name="causal transformer with positions, whose memory grows",
        task=_DIGITS,
        steps=1000,
        learning_rate=3e-3,
        claims=(Measured("within 2 points of a transformer, in constant memory", _is_as_good(2.0)),),
    ),
    "tcnca": Recipe(
        model=lambda: TCNCA(_CONVOLVING),
        baseline=lambda: TCNCA(replace(_CONVOLVING, kernel_size=1, expansion=5)),
        baseline_name="the same attention alone, wider feed-forwards",
        task=_RECALL,
        steps=1000,
        learning_rate=3e-3,
        weight_decay=0.01,
        claims=(Measured("recalls no less than attention without convolutions", _is_as_good(0.0)),),
    ),
    "delta-parity": Recipe(
        model=lambda: DeltaNet(_FLIPPING),
        baseline=lambda: DeltaNet(replace(_FLIPPING, is_signed=False)),
        baseline_name="DeltaNet with eigenvalues in (0, 1)",
        task=_PARITY,
        steps=600,
        learning_rate=5e-3,
        weight_decay=0.0,
        claims=(Measured(_RANGES, _tells_apart(99.0, 60.0)),),
    ),
    "delta-modulo-3": Recipe(
        model=lambda: DeltaNet(_TURNING),
        baseline=lambda: DeltaNet(replace(_TURNING, is_signed=False)),
        baseline_name="DeltaNet with eigenvalues in (0, 1)",
        task=_MODULO_3,
        steps=1000,
        learning_rate=5e-3,
        weight_decay=0.0,
        claims=(Measured(_RANGES, _tells_apart(95.0, 45.0)),),
    ),
    "diagonal-parity": Recipe(
        model=lambda: Diagonal(_SIGNED),
        baseline=lambda: Diagonal(replace(_SIGNED, is_signed=False)),
        baseline_name="the same with factors in (0, 1)",
        task=_PARITY,
        steps=800,
        learning_rate=5e-3,
        weight_decay=0.0,
        claims=(Measured(_RANGES, _tells_apart(99.0, 60.0)),),
    ),
}
