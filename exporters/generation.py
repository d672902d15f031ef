"""What a decoder's generation_config.json says: where answers end, and how tokens are chosen for silent requests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.errors import ArtifactError
from models.sampling import SamplingSpec

FILE = "generation_config.json"
_SERVED = ("temperature", "top_k", "top_p", "max_new_tokens")
# What no sampler of ours does, each with the value that changes nothing; so do null and what is empty.
_NEUTRAL: Mapping[str, object] = {
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_p": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "penalty_alpha": 0,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "token_healing": False,
}
# What says nothing of which tokens are chosen, or speaks of beams alone. An answer ends where the model's room does,
# whatever `max_length` says.
_WITHOUT_EFFECT = (
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "max_length", "do_sample"),
    *("cache_config", "cache_implementation", "compile_config", "disable_compile", "low_memory", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate"),
    *("early_stopping", "length_penalty", "diversity_penalty", "transformers_version", "trust_remote_code"),
    *("prefill_chunk_size", "return_legacy_cache", "is_assistant"),
)


def end_token_ids(checkpoint: Path, configured: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Those of generation_config.json, which is what generation goes by, or else those of config.json."""
    ids = _read(checkpoint).get("eos_token_id")
    ids = configured if ids is None else ids
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def sampling_spec(checkpoint: Path) -> SamplingSpec | None:
    """The checkpoint's own defaults; None where it says nothing of them. Raises ArtifactError naming a value.

    do_sample false is temperature 0. A file that leaves do_sample out means the values it states, as vLLM takes it.
    """
    raw = _read(checkpoint)
    if not isinstance(raw.get("do_sample"), bool | None):
        raise ArtifactError(f"{checkpoint / FILE} says do_sample {raw['do_sample']!r}; write true or false")
    said = {name: raw[name] for name in _SERVED if raw.get(name) is not None}
    if raw.get("do_sample") is False:
        said["temperature"] = 0.0
    if not_served := _not_served(raw):
        said["not_served"] = not_served
    try:
        return SamplingSpec.model_validate(said, strict=True) if said else None
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ArtifactError(
            f"{checkpoint / FILE} says {name} {said[name]!r}: {first['msg']}; correct it, or leave it out"
        ) from error


def _not_served(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """What would change answers and does not, as text."""
    known = {*_SERVED, *_WITHOUT_EFFECT}
    return tuple(
        f"{name} {json.dumps(value)}"
        for name, value in raw.items()
        if not (name in known or name.startswith("_") or value in (None, [], {}) or value == _NEUTRAL.get(name, []))
    )


def _read(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / FILE
    try:
        raw = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON: {error}; save the checkpoint again") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{path} holds no object; save the checkpoint again")
    return raw
