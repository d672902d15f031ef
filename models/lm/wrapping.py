"""The config.json of a model that is not in the standard residual form: one that no other library takes for its own.

The weights of such a model have the names and shapes of the architecture that it comes from, so whoever overlooks the
form computes another function without an error. Its file therefore has a `model_type` of ours, and holds what that
architecture's file would say under a key that libraries do not look into. Those that ignore the `model_type` find a
number of layers that is none.
"""

from collections.abc import Mapping
from typing import Any

from models.errors import ArtifactError

# The `model_type` of such files; in any file the key of what was done to a checkpoint and only we compute.
OURS = "fathom"


def wrapped(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What is written for a configuration that says "residual"; of the standard form the configuration itself."""
    if (raw.get("residual") or {}).get("form", "standard") == "standard":
        return {name: value for name, value in raw.items() if name != "residual"}
    base = {name: value for name, value in raw.items() if name not in ("model_type", "residual")}
    return {
        "model_type": OURS,
        "architectures": ["FathomForCausalLM"],
        "num_hidden_layers": None,
        "residual": raw["residual"],
        "base_model_type": raw["model_type"],
        "base": base,
    }


def unwrapped(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in what was written; any other file's is itself. Raises ArtifactError."""
    if raw.get("model_type") != OURS:
        return dict(raw)
    base = raw.get("base")
    if not isinstance(base, dict) or not isinstance(raw.get("residual"), dict):
        raise ArtifactError(f"config.json says model_type = {OURS!r} without base and residual; convert it again")
    return {**base, "model_type": raw.get("base_model_type"), "residual": raw["residual"]}
