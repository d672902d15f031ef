"""The image classifiers that are read from directories: transformers' with random weights, timm's as recorded.

timm's own answers are in `timm.json`, which `record_timm.py` wrote: config.json as timm writes it, names and shapes of
the tensors, logits. The weights are numbers drawn for each name, the same here and there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification

NUM_CLASSES = 5
RECORDED = Path(__file__).with_name("timm.json")
_TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
_STAGES = {"hidden_sizes": [8, 12, 16], "depths": [1, 3, 1]}


@dataclass(frozen=True)
class Classifier:
    """A model of transformers: what config.json says, and which of its blocks are the layers."""

    name: str
    model_type: str
    says: dict[str, Any]
    num_layers: int = 3
    architecture: str | None = None

    def __str__(self) -> str:
        return self.name


CLASSIFIERS = (
    Classifier("vit", "vit", {**_TRANSFORMER}),
    Classifier("vit-wide", "vit", {**_TRANSFORMER, "image_size": [16, 40], "patch_size": [8, 4], "qkv_bias": False}),
    Classifier("deit", "deit", {**_TRANSFORMER, "hidden_act": "gelu_new"}, 3, "DeiTForImageClassification"),
    Classifier("deit-taught", "deit", {**_TRANSFORMER}, 3, "DeiTForImageClassificationWithTeacher"),
    Classifier("resnet-50", "resnet", {**_STAGES, "embedding_size": 8}, 2),
    Classifier("resnet-18", "resnet", {**_STAGES, "embedding_size": 8, "layer_type": "basic", "depths": [2, 1, 1]}, 2),
    Classifier(
        "resnet-strided-early",
        "resnet",
        {**_STAGES, "embedding_size": 6, "downsample_in_bottleneck": True, "downsample_in_first_stage": True},
        2,
    ),
    Classifier("resnet-without-a-run", "resnet", {**_STAGES, "embedding_size": 6, "depths": [1, 1, 1]}, 0),
    Classifier("convnext", "convnext", {**_STAGES, "num_stages": 3, "layer_scale_init_value": 0.5}),
    Classifier("convnext-unscaled", "convnext", {**_STAGES, "num_stages": 3, "layer_scale_init_value": 0.0}),
    Classifier("convnext-v2", "convnextv2", {**_STAGES, "num_stages": 3}),
)


def make(classifier: Classifier, directory: Path) -> Any:
    """Save a model with random weights and running statistics; layers change the stream enough for chains to differ."""
    config = AutoConfig.for_model(classifier.model_type, num_labels=NUM_CLASSES, **classifier.says)
    config.id2label = {i: f"class {i}" for i in range(NUM_CLASSES)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config.architectures = [classifier.architecture] if classifier.architecture else None
        model = AutoModelForImageClassification.from_config(config)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) if "running" in name else torch.randn_like(tensor) * 0.15)
    model.eval().save_pretrained(directory)
    if classifier.model_type not in ("vit", "deit"):
        said = {"size": {"shortest_edge": 48}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
        (directory / "preprocessor_config.json").write_text(json.dumps({**said, "do_normalize": True}))
    return model


def drawn(name: str, shape: Sequence[int]) -> Tensor:
    """The numbers of a tensor, by its name; variances and scales are above zero."""
    random = np.random.Generator(np.random.Philox(crc32(name.encode())))
    numbers = random.standard_normal(shape) * 0.2
    if name.endswith("running_var"):
        numbers = 1 + np.abs(numbers)
    elif len(shape) == 1 and name.endswith(("weight", "gamma")):
        numbers = 1 + numbers
    return torch.from_numpy(numbers.astype(np.float32))


def pixels(shape: Sequence[int], num_rows: int = 2) -> Tensor:
    """Rows of an image input."""
    return drawn("pixels", (num_rows, *shape)) * 5


def save_recorded(recorded: Mapping[str, Any], directory: Path) -> None:
    """A directory as timm saves it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(recorded["config"]))
    tensors = {name: drawn(name, shape) for name, shape in recorded["tensors"].items() if shape}
    counters = {name: torch.tensor(7) for name, shape in recorded["tensors"].items() if not shape}
    save_file({**tensors, **counters}, directory / "model.safetensors")
