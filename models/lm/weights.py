"""Hugging Face Llama tensor names to ours and back. Safetensors only: a checkpoint never runs code."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import ArtifactError
from models.lm.config import LMConfig
from models.lm.model import LanguageModel

_RENAMED = {
    "model.embed_tokens.weight": "embed.embed_tokens.weight",
    "model.norm.weight": "head.norm.weight",
    "lm_head.weight": "head.lm_head.weight",
}


def ours(name: str) -> str:
    """Our name of a Llama tensor."""
    return _RENAMED.get(name, name.removeprefix("model."))


def theirs(name: str) -> str:
    """The Llama name of one of our tensors."""
    back = {value: key for key, value in _RENAMED.items()}
    return back.get(name, f"model.{name}")


def load(directory: Path) -> LanguageModel:
    """Build the model of a Hugging Face Llama directory, float32, ready for inference.

    Raises ArtifactError naming every tensor that is missing, unexpected or of another shape.
    """
    config = LMConfig.read(directory)
    path = directory / "model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from error
    model = LanguageModel(config)
    found = {ours(name): tensor.to(torch.float32) for name, tensor in tensors.items()}
    _check(path, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, found)
    model.load_state_dict(found)
    return model.eval()


def save(model: LanguageModel, directory: Path) -> None:
    """Write `config.json` and `model.safetensors` in Llama names."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.write(directory)
    tensors = {theirs(name): tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _check(path: Path, expected: dict[str, tuple[int, ...]], found: dict[str, Tensor]) -> None:
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    reshaped = sorted(name for name in expected.keys() & found.keys() if expected[name] != tuple(found[name].shape))
    if missing or unexpected or reshaped:
        raise ArtifactError(
            f"{path} does not fit config.json: missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"other shape {reshaped[:5]}; save the checkpoint again"
        )
