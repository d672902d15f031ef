"""Soft models whose selection is one-hot, each node another family, and their hard exports."""

from copy import deepcopy
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from exporters.export import export_checkpoint
from models import catalogue
from models.kan.s_conv_kan import SConvKan
from models.kan.s_kan import SKan
from models.kan.selectable import SelectableLayer

# So far from the others that float32 makes them zero.
SURE = 200.0
Selectable = TypeVar("Selectable", SKan, SConvKan)


def make_sure(model: Selectable) -> Selectable:
    """Give every node of a soft model one family, drawn."""
    random = torch.Generator().manual_seed(2)
    for layer in model.modules():
        if isinstance(layer, SelectableLayer):
            drawn = torch.randint(layer.preferences.shape[1], layer.preferences.shape[:1], generator=random)
            layer.preferences.data = torch.nn.functional.one_hot(drawn, layer.preferences.shape[1]) * SURE
    return model.eval()


def hardened(model: Selectable) -> Selectable:
    """A hard copy."""
    copied = deepcopy(model)
    copied.harden()
    return copied


def exported(model: Selectable, folder: Path, inputs: Tensor, format: Literal["onnx", "torchscript"]) -> Tensor:
    """What a runtime makes of a model that went through a checkpoint and an export."""
    catalogue.save(model, folder / "one")
    assert export_checkpoint(folder / "one", folder / "repository", [format]).refused == {}
    if format == "torchscript":
        (script,) = (folder / "repository").rglob("whole.pt")
        made: Tensor = torch.jit.load(script)(inputs)
        return made
    (graph,) = (folder / "repository").rglob("whole.onnx")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return torch.from_numpy(np.asarray(found))
