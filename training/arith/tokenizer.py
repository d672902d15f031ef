"""One token per character. Writes the tokenizer files that `transformers` and `tokenizers` read; knows no problem."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

END = "$"
PAD = "_"
CHARACTERS = END + "0123456789+-*=,s" + PAD
IDS = {character: place for place, character in enumerate(CHARACTERS)}
END_ID, PAD_ID = IDS[END], IDS[PAD]


def build() -> Tokenizer:
    """A tokenizer without an unknown token: encoding a character it lacks raises."""
    tokenizer = Tokenizer(WordLevel(IDS))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([END, PAD])
    return tokenizer


def save(directory: Path, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    build().save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "padding_side": "left",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
