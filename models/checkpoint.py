"""A checkpoint directory to a model: which architecture its `config.json` names, and how that is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

from models.errors import ArtifactError, FathomError
from models.layered import LayeredModel
from models.lm import weights
from models.mixers import residual_mlp

_LOADERS: dict[str, Callable[[Path], LayeredModel]] = {
    "llama": weights.load,
    "residual_mlp": residual_mlp.load,
}


def load_checkpoint(directory: Path) -> LayeredModel:
    """Load a checkpoint directory, float32. Raises ArtifactError for a missing file or an unknown architecture."""
    try:
        model_type = json.loads((directory / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{directory / 'config.json'} cannot be read: {error}") from error
    if model_type not in _LOADERS:
        raise ArtifactError(f"{directory} holds a {model_type!r} model; supported are {sorted(_LOADERS)}")
    try:
        return _LOADERS[model_type](directory)
    except FathomError:
        raise
    except Exception as error:  # a foreign directory can be wrong in any way
        raise ArtifactError(
            f"{directory} does not load as {model_type!r}: {error!r}; save the checkpoint again"
        ) from error
