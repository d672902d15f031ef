"""What the leader tells a rank before any program, and what it hears back. Plain records, sent as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from models import errors
from models.errors import BackendError, FathomError
from service.backends.protocol import Dtype


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank opens, and how.

    directory: of the version, on this machine; empty where each node has its own, which is then `name/version` below
    the repository the rank was started with. store: where the ranks meet, a file or tcp://host:port. artifact: hash of
    the version's files. bounds: the first layer of each stage of a pipeline, and the number of layers; none without.
    """

    name: str
    version: str
    artifact: str
    directory: str
    store: str
    device: str
    dtype: Dtype
    num_threads: int
    num_pages: int
    page_size: int
    group_timeout_s: float
    bounds: Sequence[int] = ()

    def meeting_at(self, store: str) -> "Share":
        """The same, its ranks meeting there."""
        return replace(self, store=store)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The beginning of an epoch. salt: of its key, as hexadecimal digits. silence_s: after which all is over."""

    epoch: int
    salt: str
    silence_s: float
    share: Share

    def document(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a carry: rows x (row + token x S + pair x S x (P + S)), for S tokens after P columns of earlier ones."""

    row: int = 0
    token: int = 0
    pair: int = 0

    def num_bytes(self, num_rows: int, num_tokens: int, num_columns: int) -> int:
        """Bytes of so many rows."""
        pairs = num_tokens * (num_columns + num_tokens)
        return num_rows * (self.row + self.token * num_tokens + self.pair * pairs)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rank has opened; equal on all of them.

    embedded, visited, kept: sizes of carries before any visit, after one, and after one that keeps keys and values.
    """

    num_layers: int
    num_pages: int
    page_size: int
    embedded: Sizes
    visited: Sizes
    kept: Sizes

    def document(self) -> dict[str, Any]:
        return asdict(self)


def welcome_of(document: dict[str, Any]) -> Welcome:
    """A welcome as it was sent."""
    return Welcome(**{**document, "share": Share(**document["share"])})


def facts_of(document: dict[str, Any]) -> Facts:
    """Facts as they were sent."""
    sizes = {name: Sizes(**document[name]) for name in ("embedded", "visited", "kept")}
    return Facts(**{**document, **sizes})


def told(error: Exception) -> dict[str, str]:
    """An error, to be raised again at the other end."""
    return {"kind": type(error).__name__, "text": str(error) or repr(error)}


def error_of(document: dict[str, str]) -> FathomError:
    """The error that the other end told; one that is not ours is the runtime's."""
    kind = getattr(errors, document["kind"], None)
    if isinstance(kind, type) and issubclass(kind, FathomError) and kind.__init__ is Exception.__init__:
        return kind(document["text"])
    return BackendError(document["text"])
