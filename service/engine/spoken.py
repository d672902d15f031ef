"""The text of an answer while it grows: how much of it is sure to stay. Knows no model and no client."""

from collections.abc import Callable, Sequence

# What decoding gives for half a character; a later token completes it.
_HALF = "\ufffd"


class Spoken:
    """Says an answer piece by piece. The pieces together begin the whole answer; the rest comes with its end."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode, self._stops = decode, stops
        self._token_ids: list[int] = []
        self._num_said = 0

    def add(self, token_id: int) -> str:
        """The piece that one more token makes sure; often empty where a stop text may have begun."""
        self._token_ids.append(token_id)
        text = self._decode(self._token_ids)
        begin, self._num_said = self._num_said, max(self._num_said, settled(text, self._stops))
        return text[begin : self._num_said]


def settled(text: str, stops: Sequence[str]) -> int:
    """How much of a growing text is sure to be said: nothing from a stop text on, or from what may become one."""
    length = len(text.rstrip(_HALF))
    for stop in stops:
        found = text.find(stop)
        begun = next((size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size])), 0)
        length = min(length, found if found >= 0 else len(text) - begun)
    return length
