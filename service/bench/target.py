"""The server and the model that a load goes to: its address, what the model takes, and the server's own counters."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import orjson

from models.datatype import DTYPES
from models.errors import InputError, UnavailableError, UnknownModelError
from service.bench.connection import Connection, written
from service.bench.exchange import Call
from service.bench.mix import ChainMix

_CPU = re.compile(rb"^process_cpu_seconds_total (\S+)$", re.MULTILINE)
_MEMORY = re.compile(rb"^process_resident_memory_bytes (\S+)$", re.MULTILINE)
# Token ids that every vocabulary has.
_FIRST_TOKENS = 64
# Different requests, so that nothing is answered from a cache that should be computed.
_NUM_BODIES = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """What each request holds: `rows` inputs; of a model of texts, `prompt_tokens` random ids each, or `prompts`."""

    rows: int = 1
    prompt_tokens: int = 16
    max_new_tokens: int = 32
    is_stream: bool = False
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A model that is ready at `host`:`port`; `info` is what GET /models says of it."""

    host: str
    port: int
    model: str
    info: dict[str, Any]

    @property
    def num_layers(self) -> int:
        return int(self.info["num_layers"] or 0)

    @property
    def is_language(self) -> bool:
        return bool(self.info["kind"] == "causal-lm")

    @property
    def is_encoder(self) -> bool:
        return bool(self.info["kind"] == "encoder")

    def check(self, mix: ChainMix, shape: Shape) -> None:
        """Raise ChainError or InputError if the model cannot take such requests."""
        if self.num_layers:
            mix.check(self.num_layers, int(self.info["max_chain_length"]))
        elif mix.chains != ("full",):
            raise InputError(f"model {self.model!r} is served whole and has no chains; leave them out")
        if shape.is_stream and (not self.is_language or shape.rows != 1):
            raise InputError("only one prompt to a language model can be streamed; leave --stream or --rows out")
        if shape.prompts and not (self.is_language or self.is_encoder):
            raise InputError(f"model {self.model!r} takes no prompts; leave --prompts out")

    def calls(self, mix: ChainMix, shape: Shape, seed: int) -> Iterator[Call]:
        """Requests without end, made beforehand: a client that makes them while it measures is slower than it seems."""
        rng = np.random.default_rng(seed)
        inputs = [self._inputs(shape, rng) for _ in range(_NUM_BODIES)]
        made = {chain: [self._call(one, chain, shape) for one in inputs] for chain in dict.fromkeys(mix.chains)}
        for number, chain in enumerate(mix.endless(seed)):
            yield made[chain][number % _NUM_BODIES]

    def samples(self, shape: Shape, seed: int) -> dict[str, Any]:
        """One request's rows as arrays by input name, as the backend takes them; of models without text."""
        rng = np.random.default_rng(seed)
        return {one["name"]: _random(one, shape.rows, rng) for one in self.info["inputs"]}

    def _inputs(self, shape: Shape, rng: np.random.Generator) -> Any:
        if shape.prompts:
            return [shape.prompts[int(one)] for one in rng.integers(0, len(shape.prompts), shape.rows)]
        if self.is_encoder:
            return [list(map(int, rng.integers(0, _FIRST_TOKENS, shape.prompt_tokens))) for _ in range(shape.rows)]
        if self.is_language:
            vocabulary = int(self.info["outputs"][0]["shape"][-1])
            return rng.integers(0, vocabulary, (shape.rows, shape.prompt_tokens)).tolist()
        arrays = {one["name"]: _random(one, shape.rows, rng).tolist() for one in self.info["inputs"]}
        return arrays if len(arrays) > 1 else next(iter(arrays.values()))

    def _call(self, inputs: Any, chain: str, shape: Shape) -> Call:
        body = {"model": self.model, "version": self.info["version"], "inputs": inputs, "chain": chain}
        if self.is_language:
            body |= {"parameters": {"max_new_tokens": shape.max_new_tokens}, "stream": shape.is_stream}
        content = written("POST", "/predict", orjson.dumps(body), self.host, content_type="application/json")
        return Call(content, chain, shape.rows, shape.is_stream, self.is_language)


@dataclass(frozen=True, slots=True)
class Used:
    """What the server's process has used up to now; None where /metrics does not say."""

    cpu_s: float | None
    resident_bytes: float | None


async def find(host: str, port: int, model: str) -> Target | None:
    """The model, or None while it is on its way. Raises UnknownModelError, UnavailableError or ConnectionLostError."""
    connection = await Connection.open(host, port)
    reply = await connection.ask(written("GET", f"/models/{quote(model, safe='')}", host=host))
    connection.close()
    if reply.status == 404:
        raise UnknownModelError(f"the server at {host}:{port} has no model {model!r}; GET /models lists what it has")
    if reply.status != 200:
        raise UnavailableError(f"{host}:{port} answered GET /models/{model} with status {reply.status}; is it Fathom?")
    versions: Sequence[dict[str, Any]] = orjson.loads(reply.body)
    if failed := [one for one in versions if one["state"] == "failed"]:
        raise UnavailableError(f"model {model!r} does not load: {failed[-1]['reason']}")
    ready = [one for one in versions if one["state"] == "ready"]
    return Target(host, port, model, ready[-1]) if ready else None


async def used(target: Target) -> Used:
    """CPU and memory of the server's process."""
    connection = await Connection.open(target.host, target.port)
    reply = await connection.ask(written("GET", "/metrics", host=target.host))
    connection.close()
    cpu, memory = _CPU.search(reply.body), _MEMORY.search(reply.body)
    return Used(float(cpu[1]) if cpu else None, float(memory[1]) if memory else None)


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL. Raises InputError for what is no plain http://HOST:PORT."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if host is None or parts.scheme != "http" or parts.path not in ("", "/"):
        raise InputError(f"{url!r} is not the address of a server; write it like http://127.0.0.1:8000")
    return host, port


def _random(spec: dict[str, Any], rows: int, rng: np.random.Generator) -> Any:
    """Numbers of one input [rows, ...]; open dimensions beside the first become 16."""
    shape = (rows, *(16 if size < 0 else size for size in spec["shape"][1:]))
    drawn = rng.uniform(-1, 1, shape).round(4) if spec["datatype"].startswith("FP") else rng.integers(0, 2, shape)
    return drawn.astype(DTYPES[spec["datatype"]])
