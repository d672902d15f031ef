"""Hyper-parameters of a decoder-only language model, in the words of a Hugging Face Llama `config.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.errors import ArtifactError

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True, slots=True)
class LMConfig:
    """Field names are Hugging Face's, so that the file maps one to one."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def read(cls, directory: Path) -> "LMConfig":
        """Read `config.json`. Raises ArtifactError for anything this family does not compute exactly."""
        raw = json.loads((directory / "config.json").read_text())
        _refuse_unsupported(raw)
        rope = raw.get("rope_parameters") or {}
        eos = raw.get("eos_token_id")
        return cls(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=raw["num_attention_heads"],
            num_key_value_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            max_position_embeddings=raw["max_position_embeddings"],
            rms_norm_eps=raw["rms_norm_eps"],
            rope_theta=raw.get("rope_theta") or rope.get("rope_theta", 10_000.0),
            bos_token_id=raw.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=raw.get("pad_token_id"),
        )

    def write(self, directory: Path) -> None:
        """Write a `config.json` that `transformers` loads as LlamaForCausalLM."""
        raw = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "dtype": "float32",
        }
        (directory / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    for name in _SIZES:
        if not isinstance(raw.get(name), int) or raw[name] < 1:
            raise ArtifactError(f"config.json says {name} = {raw.get(name)!r}; it must be a whole number from 1 on")
    rope = raw.get("rope_parameters") or {}
    head_size = raw["hidden_size"] // raw["num_attention_heads"]
    wanted = {
        "model_type": (raw.get("model_type"), "llama"),
        "hidden_size modulo num_attention_heads": (raw["hidden_size"] % raw["num_attention_heads"], 0),
        "num_attention_heads modulo num_key_value_heads": (
            raw["num_attention_heads"] % (raw.get("num_key_value_heads") or raw["num_attention_heads"]),
            0,
        ),
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "attention_bias": (raw.get("attention_bias", False), False),
        "mlp_bias": (raw.get("mlp_bias", False), False),
        "tie_word_embeddings": (raw.get("tie_word_embeddings", False), False),
        "rope_scaling": (raw.get("rope_scaling"), None),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "head_dim": (raw.get("head_dim") or head_size, head_size),
    }
    for name, (value, supported) in wanted.items():
        if value != supported:
            raise ArtifactError(f"config.json says {name} = {value!r}; only {supported!r} is supported")
