"""Chains that searches found, for the very input they were found on. Knows no search; never sees HTTP.

A chain holds for one input on one artifact: of another version, with other weights or another residual form it is
somebody else's, and is never found.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from models.chain import Chain
from models.errors import ChainError, NotFoundError
from service.backends.protocol import Array
from service.cola.database import Database
from service.engine.encoder import EncoderEngine
from service.engine.engine import FULL, MEMORY, ChainValue, Engine
from service.engine.language import LanguageEngine
from service.engine.sequence import SequenceEngine
from service.engine.tensor import TensorEngine, read_inputs

# The last row of the page before: when it was made, and its id.
Cursor: TypeAlias = tuple[float, str]
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Subject:
    """What a chain is remembered for; hashes are sha256 in hex."""

    input_hash: str
    model: str
    version: str
    artifact_hash: str
    residual_form: str


@dataclass(frozen=True, slots=True)
class Remembered(Subject):
    """A chain that a search found and certified.

    config_hash: of all that shaped the search. reward: its name; reward_value: what the chain got. certificate: what
    the chain promises, as JSON. created: seconds since 1970.
    """

    config_hash: str
    chain: Chain
    reward: str
    reward_value: float
    certificate: Mapping[str, Any]
    created: float

    @property
    def id(self) -> str:
        """The same for the same subject and configuration, on every server."""
        identity = [getattr(self, name) for name in (*Subject.__dataclass_fields__, "config_hash")]
        return hash_json(identity)[:32]


class Memory:
    """Remembered chains in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check(self) -> None:
        """Raise UnavailableError if nothing could be remembered."""
        await self._database.run(lambda store: None)

    async def remember(self, *found: Remembered) -> None:
        """Keep chains, all or none; each replaces what the same search had found on the same input."""
        await self._database.run(lambda store: store.put_chains(found))

    async def resolve(self, chain: ChainValue, engine: Engine, inputs: object) -> ChainValue:
        """What a request says of chains, each "memory" replaced by what is remembered for that input, else "full".

        inputs: as `engine` takes them. Raises InputError or LengthError for those it does not take.
        """
        if chain != MEMORY and (isinstance(chain, str) or MEMORY not in chain):
            return chain
        subjects = subjects_of(engine, inputs)
        asked = [chain] * len(subjects) if isinstance(chain, str) else list(chain)
        if len(asked) != len(subjects):
            return chain  # the engine says so
        wanted = [subject for subject, one in zip(subjects, asked, strict=True) if one == MEMORY]
        found = await self._recall(engine, wanted)
        return [  # type: ignore[return-value]
            found.get(subject, FULL) if one == MEMORY else one for subject, one in zip(subjects, asked, strict=True)
        ]

    async def _recall(self, engine: Engine, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """The layers remembered last, where this engine can run them; counts hits and misses."""
        found = await self._database.run(lambda store: store.recall(subjects)) if engine.num_layers else {}
        runnable = {subject: list(chain.layers) for subject, chain in found.items() if _is_runnable(engine, chain)}
        engine.metrics.observe_recall(len(subjects), sum(subject in runnable for subject in subjects))
        return runnable

    async def page(self, filters: Mapping[str, str], limit: int, before: Cursor | None = None) -> list[Remembered]:
        """Up to `limit` chains, newest first, after `before`; `filters`: values of model, version or reward."""
        return await self._database.run(lambda store: store.chain_page(filters, limit, before))

    async def all(self) -> AsyncIterator[Remembered]:
        """Every chain, newest first."""
        page, before = await self.page({}, _PAGE), None
        while page:
            for one in page:
                yield one
            before = (page[-1].created, page[-1].id)
            page = await self.page({}, _PAGE, before)

    async def get(self, identifier: str) -> Remembered:
        """One chain. Raises NotFoundError."""
        found = await self._database.run(lambda store: store.chain(identifier))
        if found is None:
            raise _no_chain(identifier)
        return found

    async def forget(self, identifier: str) -> None:
        """Delete one chain. Raises NotFoundError."""
        if not await self._database.run(lambda store: store.forget(identifier)):
            raise _no_chain(identifier)


def subjects_of(engine: Engine, inputs: object) -> list[Subject]:
    """The subject of each input: a text and its token ids are one and the same."""
    manifest = engine.manifest
    form = manifest.layers.residual_form if manifest.layers else ""
    return [
        Subject(digest, manifest.name, manifest.version, manifest.artifact_hash, form)
        for digest in _input_hashes(engine, inputs)
    ]


def hash_json(value: object) -> str:
    """sha256 in hex of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _input_hashes(engine: Engine, inputs: object) -> Iterable[str]:
    if isinstance(engine, LanguageEngine):
        assert isinstance(inputs, list)
        return [hash_json(engine.encode(prompt)) for prompt in inputs]
    if isinstance(engine, EncoderEngine):
        assert isinstance(inputs, list)
        read = [engine.tokens(one) for one in inputs]
        return [hash_json([tokens.ids, tokens.types]) for tokens in read]
    assert isinstance(engine, TensorEngine)
    if isinstance(engine, SequenceEngine):
        return [_hash_row({"steps": steps[None]}, 0) for steps in engine.sequences(inputs)]
    arrays = read_inputs(inputs, engine.manifest.inputs)
    return [_hash_row(arrays, row) for row in range(len(next(iter(arrays.values()))))]


def _hash_row(arrays: Mapping[str, Array], row: int) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name][row])
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _is_runnable(engine: Engine, chain: Chain) -> bool:
    """False if the bounds were lowered since the chain was found."""
    try:
        chain.check(engine.num_layers, engine.limits.max_chain_length)
    except ChainError:
        return False
    return True


def _no_chain(identifier: str) -> NotFoundError:
    return NotFoundError(f"no chain {identifier!r} is remembered; GET /cola/chains lists those there are")
