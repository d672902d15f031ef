"""What the manifest says of a text encoder; copies its tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

from models.artifact import EncoderSpec
from models.encoders.model import EncoderModel
from models.encoders.sentence import read_texts
from models.encoders.tokenizer import EncoderTokenizer
from models.errors import ArtifactError
from models.layered import LayeredModel
from models.shards import read_json

TOKENIZER, _SETTINGS = "tokenizer.json", "tokenizer_config.json"


def encoder_spec(model: LayeredModel, checkpoint: Path, folder: Path) -> EncoderSpec | None:
    """What a server needs of an encoder, None of other models. Raises ArtifactError for a tokenizer that is not there.

    A text is as long as the model, the tokenizer and sentence-transformers' settings all take.
    """
    if not isinstance(model, EncoderModel):
        return None
    config, texts = model.config, read_texts(checkpoint)
    settings = read_json(checkpoint / _SETTINGS) if (checkpoint / _SETTINGS).is_file() else {}
    tokenizer = _copied_tokenizer(checkpoint, folder, settings)
    if tokenizer.vocab_size > config.vocab_size:
        raise ArtifactError(
            f"{checkpoint / TOKENIZER} has {tokenizer.vocab_size} tokens and config.json says vocab_size = "
            f"{config.vocab_size}; copy the checkpoint again"
        )
    limits = (config.max_length, settings.get("model_max_length"), texts.max_length)
    longest = min(int(limit) for limit in limits if limit is not None)
    if longest <= tokenizer.num_special_tokens:
        raise ArtifactError(f"{checkpoint} leaves room for {longest} tokens, of which the tokenizer's own take all")
    return EncoderSpec(
        task=config.head.task,
        vocab_size=config.vocab_size,
        max_length=longest,
        tokenizer=TOKENIZER,
        lowers_case=texts.lowers_case,
        has_token_types=config.has_token_types,
        tells_pairs=config.has_token_types and _tells_pairs(settings),
        labels=config.head.labels,
        scores=config.head.scores,
        mask_token_id=_mask(settings, tokenizer) if config.head.task == "fill-mask" else None,
        prompts=dict(texts.prompts),
        default_prompt=texts.default_prompt,
    )


def _copied_tokenizer(checkpoint: Path, folder: Path, settings: dict[str, Any]) -> EncoderTokenizer:
    path = checkpoint / TOKENIZER
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; write it with AutoTokenizer.from_pretrained(...).save_pretrained(...)")
    _check_case(checkpoint, settings)
    tokenizer = EncoderTokenizer(path)
    shutil.copyfile(path, folder / TOKENIZER)
    return tokenizer


def _tells_pairs(settings: dict[str, Any]) -> bool:
    """Whether transformers' tokenizer of these settings gives token types: BERT's own, and those that say so."""
    names = settings.get("model_input_names")
    if names is not None:
        return "token_type_ids" in names
    return str(settings.get("tokenizer_class") or "Bert").startswith("Bert")


def _check_case(checkpoint: Path, settings: dict[str, Any]) -> None:
    """The settings of the first BERT win over its tokenizer.json in transformers, so the two must agree."""
    normalizer = (read_json(checkpoint / TOKENIZER).get("normalizer")) or {}
    said, done = settings.get("do_lower_case"), normalizer.get("lowercase")
    if normalizer.get("type") == "BertNormalizer" and isinstance(said, bool) and said != done:
        raise ArtifactError(
            f"{checkpoint / _SETTINGS} says do_lower_case = {json.dumps(said)} and {TOKENIZER} {json.dumps(done)}; "
            "write both with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


def _mask(settings: dict[str, Any], tokenizer: EncoderTokenizer) -> int:
    said = settings.get("mask_token") or next((one for one in ("[MASK]", "<mask>") if tokenizer.id_of(one)), None)
    token = said.get("content") if isinstance(said, dict) else said
    token_id = None if token is None else tokenizer.id_of(str(token))
    if token_id is None:
        raise ArtifactError(f"the tokenizer has no mask token (tokenizer_config.json says {said!r}); nothing to fill")
    return token_id
