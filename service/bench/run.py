"""A load test: one measurement after another against one model, each with its warm-up and with the physical limit."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from models.errors import InputError, UnavailableError
from service.bench import limit as physical
from service.bench.exchange import Call, Exchange, Wire
from service.bench.limit import Limit
from service.bench.loop import closed_loop, constant, open_loop, poisson
from service.bench.mix import ChainMix
from service.bench.process import serving
from service.bench.summary import Summary, summarise
from service.bench.target import Shape, Target, Used, address, find, used
from service.settings import Settings

Arrivals: TypeAlias = Literal["poisson", "constant"]
# What is under way, seconds passed, seconds in all.
Report: TypeAlias = Callable[[str, float, float], None]
# In open loop more may wait than any server should be asked by one tool; beyond, requests are sent late.
_MAX_CONNECTIONS = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: a closed loop for each of `clients`, or else an open loop for each of `rates` a second."""

    clients: tuple[int, ...] = (1,)
    rates: tuple[float, ...] = ()
    arrivals: Arrivals = "poisson"
    seconds: float = 10.0
    warmup_s: float = 2.0
    shape: Shape = field(default_factory=Shape)
    mix: ChainMix = field(default_factory=ChainMix)
    num_random_chains: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("clients", self.clients), ("rate", self.rates)):
            if any(not 0 < value <= 100_000 for value in values):
                raise InputError(f"--{name} is {values}; numbers above 0, up to 100000, make sense")
        if not self.clients and not self.rates:
            raise InputError("there is nothing to measure; name --clients or --rate")
        if self.num_random_chains and self.mix != ChainMix():
            raise InputError("--chains and --random-chains came together; leave one out")


@dataclass(frozen=True, slots=True)
class Measurement:
    """One load: `load` is the number of clients or the rate. CPU and memory are the server's, None where unknown."""

    kind: Literal["clients", "rate"]
    load: float
    summary: Summary
    server_cpu_ms: float | None
    server_resident_bytes: float | None
    limit: Limit


async def run(
    where: str, model: str | None, plan: Plan, settings: Settings, report: Report = lambda what, passed, total: None
) -> list[Measurement]:
    """Load `where`, a URL, or a model's name: then a server is started for it, and stopped at the end.

    The limit is known where the repository of `settings` has the model. Raises what `find`, `Target.check` and
    `serving` do, and UnavailableError where nothing is answered.
    """
    async with _target(where, model, settings) as target:
        mix = plan.mix
        if plan.num_random_chains:
            mix = ChainMix.draw(plan.num_random_chains, target.num_layers, plan.seed)
        target.check(mix, plan.shape)
        limit = _limit(target, mix, plan, settings)
        loads: list[tuple[Literal["clients", "rate"], float]] = [("rate", rate) for rate in plan.rates]
        loads = loads or [("clients", clients) for clients in plan.clients]
        return [await _measure(target, mix, plan, kind, load, limit, report) for kind, load in loads]


def as_json(found: list[Measurement]) -> list[dict[str, Any]]:
    """Plain dictionaries, with the limit's rates beside the measured ones."""
    return [
        {
            **asdict(one),
            "limit_requests_per_s": one.limit.requests_per_s(),
            "limit_tokens_per_s": one.limit.tokens_per_s(int(one.load)) if one.kind == "clients" else None,
        }
        for one in found
    ]


@asynccontextmanager
async def _target(where: str, model: str | None, settings: Settings) -> AsyncIterator[Target]:
    if "://" not in where:
        if model is not None:
            raise InputError(
                f"{where!r} is taken for a model, and --model names another; write http:// before a server"
            )
        async with serving(settings.folder, where) as target:
            yield target
        return
    if model is None:
        raise InputError("a server's URL needs --model, the name of a model it serves")
    if (found := await find(*address(where), model)) is None:
        raise UnavailableError(f"model {model!r} is not loaded; POST /models/{model}/load and try again")
    yield found


def _limit(target: Target, mix: ChainMix, plan: Plan, settings: Settings) -> Limit:
    if not (settings.folder / target.model).is_dir():
        return Limit()
    return physical.measure(target, mix, plan.shape, settings, plan.seed)


async def _measure(
    target: Target,
    mix: ChainMix,
    plan: Plan,
    kind: Literal["clients", "rate"],
    load: float,
    limit: Limit,
    report: Report,
) -> Measurement:
    num_wires = int(load) if kind == "clients" else _MAX_CONNECTIONS
    wires = [Wire(target.host, target.port) for _ in range(num_wires)]
    calls = target.calls(mix, plan.shape, plan.seed)
    what, total = f"{load:g} {'clients' if kind == 'clients' else 'requests a second'}", plan.warmup_s + plan.seconds
    try:
        if plan.warmup_s:
            await _load(wires, calls, plan, kind, load, plan.warmup_s, lambda passed: report(what, passed, total))
        before = await used(target)
        exchanges = await _load(
            wires, calls, plan, kind, load, plan.seconds, lambda passed: report(what, plan.warmup_s + passed, total)
        )
        after = await used(target)
    finally:
        for wire in wires:
            wire.close()
    if not exchanges:
        raise InputError(f"not one request is due in {plan.seconds:g} s at {what}; raise --seconds or --rate")
    summary = summarise(exchanges)
    return Measurement(kind, load, summary, _cpu_ms(before, after, exchanges), after.resident_bytes, limit)


async def _load(
    wires: list[Wire],
    calls: Iterator[Call],
    plan: Plan,
    kind: str,
    load: float,
    seconds: float,
    on_progress: Callable[[float], None],
) -> list[Exchange]:
    if kind == "clients":
        return await closed_loop(wires, calls, seconds, on_progress)
    times = constant(load, seconds) if plan.arrivals == "constant" else poisson(load, seconds, plan.seed)
    return await open_loop(wires, calls, times, on_progress)


def _cpu_ms(before: Used, after: Used, exchanges: list[Exchange]) -> float | None:
    if before.cpu_s is None or after.cpu_s is None:
        return None
    return 1000 * (after.cpu_s - before.cpu_s) / len(exchanges)
