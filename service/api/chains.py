"""GET and DELETE /cola/chains: what searches were asked to remember; and how a search remembers."""

import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field, ValidationError

from models.chain import Chain
from models.errors import InputError, UnavailableError
from service.api.body import JsonRoute
from service.api.constants import echo
from service.api.paging import After, Limit, next_cursor, read_cursor
from service.api.responses import PROBLEMS
from service.api.schemas import Body
from service.api.searches import SearchRequest, SearchResult, SearchUsed
from service.api.state import MemoryState
from service.cola.memory import Memory, Remembered, hash_json, subjects_of
from service.cola.reward import WrongTarget
from service.engine.engine import Engine

# What shapes a search's result, apart from the constants it used, its reward and its target.
_SHAPING = {"truth", "choices", "verifier", "max_new_tokens"}
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Layer = Annotated[int, Field(ge=0)]

router = APIRouter(prefix="/cola/chains", route_class=JsonRoute, tags=["cola"], responses=PROBLEMS)


class RememberedChain(Body):
    """A chain that holds for one input on one artifact; also one line of an export."""

    id: str = Field(description="of the input, the artifact and the search configuration; the same on every server")
    model: str
    version: str
    artifact_hash: _Hash
    residual_form: str
    input_hash: _Hash
    config_hash: _Hash
    chain: list[_Layer] = Field(min_length=1, max_length=10_000)
    reward: str
    reward_value: float = Field(allow_inf_nan=False)
    certificate: dict[str, Any] = Field(description="what was certified: the answer, and whether the label was used")
    created: float = Field(ge=0, allow_inf_nan=False, description="seconds since 1970")


class RememberedChains(Body):
    """One page, newest first."""

    chains: list[RememberedChain]
    next: str | None = Field(description="cursor of the next page; null on the last")


@router.get("")
async def list_chains(
    memory: MemoryState,
    model: str | None = None,
    version: str | None = None,
    reward: str | None = None,
    limit: Limit = 100,
    cursor: After = None,
) -> RememberedChains:
    """Remembered chains, newest first."""
    asked = {"model": model, "version": version, "reward": reward}
    filters = {name: value for name, value in asked.items() if value is not None}
    page = await memory.page(filters, limit, read_cursor(cursor))
    return RememberedChains(chains=[written(one) for one in page], next=next_cursor(page, limit))


@router.get("/{identifier}")
async def show_chain(identifier: str, memory: MemoryState) -> RememberedChain:
    """One remembered chain."""
    return written(await memory.get(identifier))


@router.delete("/{identifier}", status_code=204, response_class=Response)
async def forget_chain(identifier: str, memory: MemoryState) -> None:
    """Forget a chain: its input is answered along the full chain again."""
    await memory.forget(identifier)


def written(one: Remembered) -> RememberedChain:
    """A remembered chain as JSON says it."""
    fields = {name: getattr(one, name) for name in RememberedChain.model_fields}
    return RememberedChain(**{**fields, "chain": list(one.chain.layers)})


def read_line(line: str | bytes, number: int) -> Remembered:
    """One line of an export. Raises InputError naming the line and what is wrong with it."""
    try:
        read = RememberedChain.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the line"
        raise InputError(f"line {number}: {place}: {first['msg']}; nothing was imported") from error
    one = Remembered(**{**read.model_dump(exclude={"id"}), "chain": Chain(tuple(read.chain))})
    if one.id != read.id:
        raise InputError(f"line {number}: the id does not fit the rest of the line; nothing was imported")
    return one


async def check_remember(body: SearchRequest, memory: Memory) -> None:
    """Refuse, before a search begins, to remember what cannot or must not be remembered."""
    if body.remember and body.reward == WrongTarget.name:
        raise InputError(f"reward {body.reward!r} is a control and its chains answer wrongly; leave 'remember' out")
    if body.remember and body.choices:
        raise InputError("with 'choices' a chain is certified among these only; leave 'remember' or 'choices' out")
    if body.remember:
        await memory.check()


async def remembered(
    result: SearchResult, body: SearchRequest, engine: Engine, sample: object, target: object, memory: Memory
) -> SearchResult:
    """The result, with the id under which its chain was kept if that was asked and it is certified."""
    if not (body.remember and result.best.certified):
        return result
    found = _found(result, body, engine, sample, target)
    try:
        await memory.remember(found)
    except UnavailableError:
        return result  # the log says why; what was found is worth more than the remembering of it
    return result.model_copy(update={"remembered": found.id})


def _found(result: SearchResult, body: SearchRequest, engine: Engine, sample: object, target: object) -> Remembered:
    (subject,) = subjects_of(engine, sample if isinstance(sample, dict) else [sample])
    return Remembered(
        **asdict(subject),
        config_hash=_config_hash(body, engine, result.reward, target),
        chain=Chain(tuple(result.best.chain)),
        reward=result.reward,
        reward_value=result.best.reward,
        certificate={
            "text": result.best.text,
            "full_text": result.full.text,
            "oracle": result.oracle,
            "max_new_tokens": body.max_new_tokens,
        },
        created=time.time(),
    )


def _config_hash(body: SearchRequest, engine: Engine, reward: str, target: object) -> str:
    """The same for two requests that search in the same way, however they say it."""
    used = SearchUsed(model=body.model, version="", id="", **echo(body, engine))
    constants = used.model_dump(mode="json", exclude={"model", "version", "id", "preset"})
    return hash_json([constants, body.model_dump(mode="json", include=_SHAPING), reward, target])
