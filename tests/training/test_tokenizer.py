"""The tokenizer of the arithmetic model: one token per character, none dropped."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from training.arith import tokenizer
from training.arith.tokenizer import CHARACTERS, END, END_ID, IDS


@pytest.mark.parametrize("text", ["4821+977=", "s83050127=", "47+8*16-13=128,175,162", "", END])
def test_text_comes_back(text: str) -> None:
    built = tokenizer.build()
    ids = built.encode(text).ids
    assert ids == [IDS[character] for character in text]
    assert built.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["1 + 2=", "two=", "12\n", "½", "1\N{FULLWIDTH DIGIT ONE}"])
def test_unknown_character_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="UNK"):
        tokenizer.build().encode(text)


def test_ids_are_the_vocabulary() -> None:
    assert tokenizer.build().get_vocab() == IDS
    assert len(IDS) == len(CHARACTERS)


def test_transformers_reads_the_same_ids(tmp_path: Path) -> None:
    tokenizer.save(tmp_path, max_length=96)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for prompt in ("4821+977=", "s83050127=", "977-4821="):
        assert loaded(prompt).input_ids == plain.encode(prompt).ids
    assert loaded.eos_token_id == END_ID
    assert loaded.decode([*plain.encode("5798").ids, END_ID], skip_special_tokens=True) == "5798"
