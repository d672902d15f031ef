"""Text to token ids and back, by a Hugging Face `tokenizer.json`. No torch in here."""

from collections.abc import Sequence
from pathlib import Path

from models.errors import ArtifactError, InputError


class Tokenizer:
    """The tokenizer of one model; refuses text it cannot represent instead of dropping characters."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HFTokenizer  # servers of tensors alone never need it

        try:
            self._tokenizer = HFTokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ArtifactError(f"{path} is not a tokenizer file: {error}") from error

    @property
    def last_token_id(self) -> int:
        """The largest id that a text may be made of."""
        return max(self._tokenizer.get_vocab().values(), default=-1)

    def encode(self, text: str, has_special_tokens: bool = False) -> tuple[int, ...]:
        """Token ids of `text`; none is put around one that has its special tokens already.

        Raises InputError naming the characters that have no token.
        """
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=not has_special_tokens)
        except Exception as error:  # a word-level vocabulary without an unknown token raises plain Exception
            raise self._unknown(text) from error
        covered = {position for start, end in encoding.offsets for position in range(start, end)}
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        if any(not char.isspace() for i, char in enumerate(text) if i not in covered) or unknown in encoding.tokens:
            raise self._unknown(text)
        return tuple(encoding.ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """The vocabulary's own text of one token."""
        return self._tokenizer.id_to_token(token_id) or ""

    def _unknown(self, text: str) -> InputError:
        vocabulary = self._tokenizer.get_vocab()
        strange = sorted({char for char in text if char not in vocabulary})
        return InputError(
            f"the tokenizer has no token for {strange[:10]} in {text[:60]!r}; use the model's own alphabet"
        )
