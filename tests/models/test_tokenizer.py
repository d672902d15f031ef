"""Text to tokens and back; nothing is dropped in silence."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace

from models.errors import ArtifactError, InputError
from models.lm.tokenizer import Tokenizer
from training.arith import tokenizer as arithmetic


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("arithmetic")
    arithmetic.save(directory, max_length=96)
    return Tokenizer(directory / "tokenizer.json")


@pytest.mark.parametrize("text", ["4821+977=", "s83050127=", "47+8*16-13=128,175,162", "", "0"])
def test_text_comes_back(text: str, digits: Tokenizer) -> None:
    assert digits.decode(digits.encode(text)) == text


def test_special_tokens_are_read_and_left_out_of_text(digits: Tokenizer) -> None:
    ids = digits.encode("12$")
    assert ids == (2, 3, 0)
    assert digits.decode(ids) == "12"
    assert [digits.token(token_id) for token_id in ids] == ["1", "2", "$"]
    assert digits.token(999) == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1 + 2", r"\[' '\]"),
        ("zwölf", "'f', 'l', 'w', 'z', 'ö'"),
        ("1\x00", r"\\x00"),
        ("\ud800", r"\\ud800"),
        ("\uff11", "\uff11"),
    ],
)
def test_characters_without_a_token_are_named(text: str, named: str, digits: Tokenizer) -> None:
    with pytest.raises(InputError, match=named):
        digits.encode(text)


def test_refusal_of_a_long_text_is_short(digits: Tokenizer) -> None:
    with pytest.raises(InputError) as raised:
        digits.encode("".join(chr(0x4E00 + i) for i in range(5000)))
    assert len(str(raised.value)) < 300


def test_unknown_token_is_refused_not_read(tmp_path: Path) -> None:
    words = HFTokenizer(WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("one  two") == (1, 2)
    with pytest.raises(InputError, match="no token"):
        tokenizer.encode("one three")


def test_characters_a_vocabulary_drops_are_refused(tmp_path: Path) -> None:
    HFTokenizer(BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("abb") == (2, 1)
    with pytest.raises(InputError, match="'c'"):
        tokenizer.encode("abc")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"model": 3}'])
def test_file_that_is_no_tokenizer_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tokenizer.json is not a tokenizer file"):
        Tokenizer(path)
