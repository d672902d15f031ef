"""Text, or a pair of texts, to the tokens an encoder reads, special ones around them. No torch in here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import ArtifactError, LengthError


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a text became, each of length S.

    types: which text of a pair. spans: the characters of each token, (0, 0) for special ones, and texts: what stands
    there; none where token ids were given. is_special: not of a text. was_cut: tokens at the end are missing.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    is_special: tuple[bool, ...]
    texts: tuple[str, ...] = ()
    was_cut: bool = False


class EncoderTokenizer:
    """The tokenizer of one encoder, without the padding and cutting its file may ask for. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HFTokenizer  # servers of tensors alone never need it

        try:
            self._tokenizer = HFTokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ArtifactError(f"{path} is not a tokenizer file: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def vocab_size(self) -> int:
        """One past the largest token id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def num_special_tokens(self) -> int:
        """Put around the texts of a pair."""
        return int(self._tokenizer.num_special_tokens_to_add(True))

    def encode(self, text: str, pair: str | None, max_length: int, cuts: bool = False) -> Tokens:
        """Tokens of a text or of a pair, the longer one cut to fit if `cuts`. Raises LengthError naming the limit."""
        found = self._tokenizer.encode(text, pair)
        was_cut = len(found) > max_length
        if was_cut and not cuts:
            raise LengthError(
                f"{len(found)} tokens do not fit; the model takes {max_length}; shorten the text, or say truncate"
            )
        if was_cut:
            found = self._cut(text, pair, max_length)
        special = tuple(map(bool, found.special_tokens_mask))
        read = (text, pair or "")
        texts = tuple(
            read[of or 0][start:end] for of, (start, end) in zip(found.sequence_ids, found.offsets, strict=True)
        )
        return Tokens(tuple(found.ids), tuple(found.type_ids), tuple(found.offsets), special, texts, was_cut)

    def decode(self, token_id: int) -> str:
        """Text of one token, as it stands in a text."""
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).strip()

    def token(self, token_id: int) -> str:
        """The vocabulary's own text of one token."""
        return self._tokenizer.id_to_token(token_id) or ""

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def _cut(self, text: str, pair: str | None, max_length: int) -> Any:
        self._tokenizer.enable_truncation(max_length)
        try:
            return self._tokenizer.encode(text, pair)
        finally:
            self._tokenizer.no_truncation()
