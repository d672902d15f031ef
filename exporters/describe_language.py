"""What the manifest says of a language model; copies its tokenizer and chat template."""

import shutil
from pathlib import Path

from exporters import generation
from models.artifact import LanguageSpec
from models.errors import ArtifactError
from models.layered import LayeredModel
from models.lm.chat import TEMPLATE, ChatTemplate, find_template, special_tokens
from models.lm.model import LanguageModel
from models.lm.tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"


def language_spec(model: LayeredModel, checkpoint: Path, folder: Path) -> LanguageSpec | None:
    """What a server needs of a language model, None of other models. Raises ArtifactError for another's tokenizer."""
    if not isinstance(model, LanguageModel):
        return None
    config, template = model.config, find_template(checkpoint)
    _check_tokenizer(checkpoint, config.vocab_size)
    shutil.copyfile(checkpoint / TOKENIZER, folder / TOKENIZER)
    if template is not None:
        ChatTemplate(template, {})
        (folder / TEMPLATE).write_text(template)
    return LanguageSpec(
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        num_kv_heads=config.num_key_value_heads,
        head_size=config.head_size,
        eos_token_ids=generation.end_token_ids(checkpoint, config.eos_token_id),
        tokenizer=TOKENIZER,
        chat_template=None if template is None else TEMPLATE,
        special_tokens=special_tokens(checkpoint),
        sampling=generation.sampling_spec(checkpoint),
    )


def _check_tokenizer(checkpoint: Path, vocab_size: int) -> None:
    """Raises ArtifactError if there is none, or if it is another model's. Models may have room for more tokens."""
    if not (checkpoint / TOKENIZER).is_file():
        raise ArtifactError(
            f"{checkpoint} has no {TOKENIZER}; save it with transformers' fast tokenizer (save_pretrained writes it)"
        )
    last = Tokenizer(checkpoint / TOKENIZER).last_token_id
    if last >= vocab_size:
        raise ArtifactError(
            f"{checkpoint / TOKENIZER} has a token {last} and config.json says vocab_size = {vocab_size}; "
            "it is another model's tokenizer"
        )
