"""POST /cola/search: the chain of one sample, or of several."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter
from starlette.responses import Response

from models.errors import FathomError, InputError, LengthError
from service.api import sse
from service.api.body import JsonRoute
from service.api.schemas import (
    ChainOutcome,
    ParetoChain,
    SearchesResponse,
    SearchRequest,
    SearchResponse,
    SearchResult,
    SearchStats,
)
from service.api.state import RegistryState, SettingsState
from service.cola.evaluate import evaluator_for
from service.cola.mcts import Found, MctsConfig
from service.cola.reward import Reward, reward_named
from service.cola.search import OnProgress, find_chain
from service.cola.space import Space
from service.cola.task import Budget, Outcome, Progress, Result, Spent, Task, derive_seed
from service.engine.engine import Engine

# Each search holds up to `search_bytes` of shared prefixes.
_CONCURRENT = 16

router = APIRouter(prefix="/cola", route_class=JsonRoute, tags=["cola"])


@router.post("/search", response_model=SearchResponse | SearchesResponse)
async def search(body: SearchRequest, registry: RegistryState, settings: SettingsState) -> Response:
    """Search chains by Monte Carlo tree search (arXiv 2507.07996); leaving cancels."""
    engine = registry.get(body.model, body.version)
    samples = _samples(body)
    if len(samples) > settings.max_inputs:
        raise LengthError(f"{len(samples)} inputs came; one request takes {settings.max_inputs}; send several")
    if body.stream:
        return await sse.stream(_events(body, engine, samples))
    results = await _run_all(body, engine, samples)
    return Response(_response(body, engine, results), media_type="application/json")


async def _run_all(body: SearchRequest, engine: Engine, samples: list[tuple[object, object]]) -> list[SearchResult]:
    """Search the samples side by side, a few at a time; if one fails, the others stop."""
    places = asyncio.Semaphore(_CONCURRENT)

    async def one(sample: object, target: object) -> SearchResult:
        async with places:
            return await run(body, engine, sample, target)

    tasks = [asyncio.ensure_future(one(*sample)) for sample in samples]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def run(
    body: SearchRequest, engine: Engine, sample: object, target: object, on_progress: OnProgress | None = None
) -> SearchResult:
    """Search one sample and count it."""
    reward = reward_named(body.reward or ("agreement" if target is None else "target"))
    evaluator = evaluator_for(engine, sample, body.max_new_tokens, engine.limits.search_bytes)
    space, mcts = _space(body, engine), _mcts(body)
    task = Task(
        num_layers=engine.num_layers,
        space=space,
        reward=reward,
        target=None if target is None else evaluator.target(target),
        mcts=mcts,
        budget=Budget(**body.budget.model_dump()),
        seed=derive_seed(body.seed, repr(sample), space, mcts, reward),
        leaf_batch=body.mcts.leaf_batch,
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


def _samples(body: SearchRequest) -> list[tuple[object, object]]:
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


def _space(body: SearchRequest, engine: Engine) -> Space:
    longest = engine.limits.max_chain_length
    if body.space.max_length is not None and body.space.max_length > longest:
        raise InputError(f"space.max_length is {body.space.max_length}; this model takes chains of at most {longest}")
    return Space.of(max(engine.num_layers, 1), **body.space.model_dump())


def _mcts(body: SearchRequest) -> MctsConfig:
    return MctsConfig(**body.mcts.model_dump(exclude={"leaf_batch"}))


def _result(result: Result, reward: Reward, top_k: int) -> SearchResult:
    return SearchResult(
        oracle=result.oracle,
        reward=reward.name,
        stopped_by=result.stopped_by,
        deterministic=result.deterministic,
        full=_outcome(result.full),
        best=_outcome(result.best),
        pareto=_pareto(result.pareto)[:top_k],
        stats=_stats(result.stats),
    )


def _outcome(outcome: Outcome) -> ChainOutcome:
    return ChainOutcome(
        chain=list(outcome.chain.layers),
        reward=outcome.reward,
        text=outcome.answer.text,
        length=outcome.length,
        certified=outcome.certified,
    )


def _pareto(front: Sequence[Found]) -> list[ParetoChain]:
    """The front without the chains that are only short: those do not do what was asked."""
    meets = [one for one in front if one.reward > 0]
    return [ParetoChain(chain=list(one.chain.layers), reward=one.reward, length=one.length) for one in meets]


def _stats(spent: Spent) -> SearchStats:
    return SearchStats(
        simulations=spent.simulations,
        distinct_chains=spent.distinct_chains,
        layer_evaluations=spent.layer_evaluations,
        layer_evaluations_naive=spent.layer_evaluations_naive,
        seconds=spent.seconds,
    )


def _response(body: SearchRequest, engine: Engine, results: Sequence[SearchResult]) -> bytes:
    said = {
        "model": engine.manifest.name,
        "version": engine.manifest.version,
        "id": uuid.uuid4().hex,
        "space": body.space,
        "mcts": body.mcts,
    }
    if body.inputs is None:
        return SearchResponse(**results[0].model_dump(), **said).model_dump_json().encode()
    return SearchesResponse(results=list(results), **said).model_dump_json().encode()


async def _events(body: SearchRequest, engine: Engine, samples: list[tuple[object, object]]) -> AsyncIterator[bytes]:
    """Progress after each batch of leaves, then the result."""
    if len(samples) != 1:
        raise InputError("only the search of one sample can be streamed; send one input")
    rounds: asyncio.Queue[Progress | None] = asyncio.Queue()
    task = asyncio.ensure_future(run(body, engine, *samples[0], on_progress=rounds.put))
    task.add_done_callback(lambda _: rounds.put_nowait(None))
    try:
        while (progress := await rounds.get()) is not None:
            best = ParetoChain(
                chain=list(progress.best.chain.layers), reward=progress.best.reward, length=progress.best.length
            )
            front = [one.model_dump() for one in _pareto(progress.pareto)]
            stats = _stats(progress.stats).model_dump()
            yield sse.event("progress", {"best": best.model_dump(), "pareto": front, "stats": stats})
        yield b"event: result\ndata: " + _response(body, engine, [await task]) + b"\n\n"
    finally:
        task.cancel()
