"""Server-sent events of a stream of tokens: lines in, tokens out. Knows no connection."""

from typing import Any

import orjson

from service.client import reading
from service.client.errors import UnreachableError, error_of, read_problem
from service.client.results import Prediction, Token


class Tokens:
    """Takes the lines of a stream one by one; `result` is there once its last event was."""

    def __init__(self, request_id: str = "") -> None:
        self.result: Prediction | None = None
        self._request_id = request_id
        self._event = ""

    def take(self, line: str) -> Token | None:
        """The token that a line brings, if it does. Raises ProblemError for a problem after the first token."""
        name, _, value = line.partition(": ")
        if name == "event":
            self._event = value
        return self._read(value) if name == "data" else None

    def finish(self) -> None:
        """Raise UnreachableError if the stream ended before its last event."""
        if self.result is None:
            raise UnreachableError("the stream broke off before its last event; ask again")

    def _read(self, data: str) -> Token | None:
        if self._event == "problem":
            document: Any = orjson.loads(data)
            raise error_of(read_problem(document.get("status", 500), data.encode(), self._request_id, None))
        document = orjson.loads(data)
        if self._event == "done":
            self.result = reading.prediction(document)
            return None
        return Token(document["text"], document["token_id"], document["logprob"])
