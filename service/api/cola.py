"""POST /cola/search: the chain of one sample, or of several."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from models.errors import FathomError, InputError, LengthError
from service.api import sse
from service.api.body import JsonRoute
from service.api.chains import check_remember, remembered
from service.api.constants import constants_of, echo
from service.api.responses import PROBLEMS, STREAM
from service.api.searches import (
    ChainOutcome,
    ParetoChain,
    SearchesResponse,
    SearchRequest,
    SearchResponse,
    SearchResult,
    SearchStats,
    SearchTreeNode,
)
from service.api.state import MemoryState, RegistryState, SettingsState
from service.cola.evaluate import AnyEvaluator, evaluator_for
from service.cola.ledger import Found
from service.cola.memory import Memory
from service.cola.reference import reference_evaluator
from service.cola.reward import Reward, reward_named
from service.cola.search import OnProgress, find_chain
from service.cola.task import Outcome, Progress, Result, Spent, Task, derive_seed
from service.cola.verifier import VERIFIERS
from service.engine.engine import Engine

# Each search holds up to `search_bytes` of shared prefixes.
_CONCURRENT = 16
_MAX_TREE_NODES = 512

router = APIRouter(prefix="/cola", route_class=JsonRoute, tags=["cola"], responses=PROBLEMS)


@router.post("/search", response_model=SearchResponse | SearchesResponse, responses=STREAM)
async def search(
    body: SearchRequest, registry: RegistryState, settings: SettingsState, memory: MemoryState
) -> Response:
    """Search chains by Monte Carlo tree search (arXiv 2507.07996); leaving cancels."""
    engine = await registry.get(body.model, body.version)
    samples = samples_of(body, settings.max_inputs)
    await check_remember(body, memory)
    if body.stream:
        return await sse.stream(_events(body, engine, samples, memory))

    async def one(place: int) -> SearchResult:
        return await remembered(await run(body, engine, *samples[place]), body, engine, *samples[place], memory)

    return Response(response(body, engine, await run_all(one, len(samples))), media_type="application/json")


async def run_all(run_one: Callable[[int], Awaitable[SearchResult]], count: int) -> list[SearchResult]:
    """Search `count` samples side by side, a few at a time; if one fails, the others stop."""
    places = asyncio.Semaphore(_CONCURRENT)

    async def one(place: int) -> SearchResult:
        async with places:
            return await run_one(place)

    tasks = [asyncio.ensure_future(one(place)) for place in range(count)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def run(
    body: SearchRequest, engine: Engine, sample: object, target: object, on_progress: OnProgress | None = None
) -> SearchResult:
    """Search one sample and count it."""
    used = constants_of(body, engine)
    reward = _reward(body, engine, sample, target)
    evaluator = _evaluator(body, engine, sample, used.mcts.prior > 0)
    task = Task(
        num_layers=engine.num_layers,
        space=used.space,
        reward=reward,
        target=None if target is None else evaluator.target(target),
        truth=None if body.truth is None else evaluator.target(body.truth),
        mcts=used.mcts,
        budget=used.budget,
        seed=derive_seed(used.seed, repr(sample), used.space, used.mcts, reward),
        leaf_batch=used.leaf_batch,
        top_k=body.top_k,
        tree_nodes=_MAX_TREE_NODES if body.include_tree else 0,
    )
    started, outcome = time.perf_counter(), "cancelled"
    spent = Spent(0, 0, 0, 0.0)
    try:
        result = await find_chain(task, evaluator, on_progress)
        spent, outcome = result.stats, "certified" if result.best.certified else "not_found"
        return _result(result, reward, body.top_k)
    except FathomError:
        outcome = "failed"
        raise
    finally:
        seconds = time.perf_counter() - started
        engine.metrics.observe_search(spent.simulations, spent.distinct_chains, seconds, outcome)


def samples_of(body: SearchRequest, max_inputs: int) -> list[tuple[object, object]]:
    """(input, target) of each sample. Raises InputError if they do not go together, LengthError above `max_inputs`."""
    if len(body.inputs or ()) > max_inputs:
        raise LengthError(f"{len(body.inputs or ())} inputs came; one request takes {max_inputs}; send several")
    if (body.input is None) == (body.inputs is None):
        raise InputError("send either 'input' or 'inputs'")
    if body.inputs is None:
        if body.targets is not None:
            raise InputError("'targets' goes with 'inputs'; send 'target' with 'input'")
        return [(body.input, body.target)]
    targets = [body.target] * len(body.inputs) if body.targets is None else body.targets
    if len(targets) != len(body.inputs) or not targets:
        raise InputError(f"{len(targets)} targets came with {len(body.inputs)} inputs; send one per input")
    return list(zip(body.inputs, targets, strict=True))


def _evaluator(body: SearchRequest, engine: Engine, sample: object, wants_influence: bool) -> AnyEvaluator:
    size = engine.limits.search_bytes
    if body.kv == "reference":
        return reference_evaluator(engine, sample, body.max_new_tokens, body.choices or (), wants_influence)
    return evaluator_for(engine, sample, body.max_new_tokens, size, body.choices or (), wants_influence)


def _reward(body: SearchRequest, engine: Engine, sample: object, target: object) -> Reward:
    name = body.reward or ("agreement" if target is None else "target")
    if name == "wrong_target" and body.inputs is not None:
        raise InputError("reward 'wrong_target' takes one sample at a time; send 'input', 'target' and 'truth'")
    if name != "verifier":
        if body.verifier is not None:
            raise InputError(f"'verifier' goes with reward 'verifier', not with {name!r}; leave it out")
        return reward_named(name)
    limits, text = engine.limits, sample if isinstance(sample, str) else json.dumps(sample)
    if body.verifier is not None:
        return VERIFIERS.verifier(body.verifier, text, limits.verifier_timeout_s)
    if limits.verifier_url is None:
        raise InputError("this server has no verifier endpoint; name a registered one as 'verifier'")
    from service.cola.endpoint import Endpoint

    return Endpoint(limits.verifier_url, limits.verifier_timeout_s, limits.verifier_max_retries).verifier(text)


def _result(result: Result, reward: Reward, top_k: int) -> SearchResult:
    return SearchResult(
        oracle=result.oracle,
        reward=reward.name,
        stopped_by=result.stopped_by,
        deterministic=result.deterministic,
        full=_outcome(result.full),
        best=_outcome(result.best),
        pareto=_told(result.pareto)[:top_k],
        top=_told(result.top),
        stats=_stats(result.stats),
        tree=[SearchTreeNode(**{**asdict(node), "chain": list(node.chain.layers)}) for node in result.tree] or None,
    )


def progress_json(progress: Progress) -> dict[str, Any]:
    """What a client that watches one sample's search sees."""
    best = ParetoChain(chain=list(progress.best.chain.layers), reward=progress.best.reward, length=progress.best.length)
    return {
        "best": best.model_dump(),
        "pareto": [one.model_dump() for one in _told(progress.pareto)],
        "stats": _stats(progress.stats).model_dump(),
    }


def _outcome(outcome: Outcome) -> ChainOutcome:
    return ChainOutcome(
        chain=list(outcome.chain.layers),
        reward=outcome.reward,
        text=outcome.answer.text,
        length=outcome.length,
        certified=outcome.certified,
    )


def _told(found: Sequence[Found]) -> list[ParetoChain]:
    """Chains without those that are only short: they do not do what was asked."""
    meets = [one for one in found if one.reward > 0]
    return [ParetoChain(chain=list(one.chain.layers), reward=one.reward, length=one.length) for one in meets]


def _stats(spent: Spent) -> SearchStats:
    return SearchStats(
        simulations=spent.simulations,
        distinct_chains=spent.distinct_chains,
        layer_evaluations=spent.layer_evaluations,
        layer_evaluations_naive=spent.layer_evaluations_naive,
        seconds=spent.seconds,
    )


def response(body: SearchRequest, engine: Engine, results: Sequence[SearchResult]) -> bytes:
    """The whole answer as JSON."""
    said = {
        "model": engine.manifest.name,
        "version": engine.manifest.version,
        "id": uuid.uuid4().hex,
        **echo(body, engine),
    }
    if body.inputs is None:
        return SearchResponse(**results[0].model_dump(), **said).model_dump_json().encode()
    return SearchesResponse(results=list(results), **said).model_dump_json().encode()


async def _events(
    body: SearchRequest, engine: Engine, samples: list[tuple[object, object]], memory: Memory
) -> AsyncGenerator[bytes]:
    """Progress after each batch of leaves, then the result."""
    if len(samples) != 1:
        raise InputError("only the search of one sample can be streamed; send one input")
    rounds: asyncio.Queue[Progress | None] = asyncio.Queue()
    task = asyncio.ensure_future(run(body, engine, *samples[0], on_progress=rounds.put))
    task.add_done_callback(lambda _: rounds.put_nowait(None))
    try:
        while (progress := await rounds.get()) is not None:
            yield sse.event("progress", progress_json(progress))
        result = await remembered(await task, body, engine, *samples[0], memory)
        yield b"event: result\ndata: " + response(body, engine, [result]) + b"\n\n"
    finally:
        task.cancel()
