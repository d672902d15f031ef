"""Every metric name, in one place. Seconds and bytes; labels `model` and `version`; no global registry."""

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from models.chain import Chain
from models.errors import DeadlineError, OverloadError
from service.engine.work import Generated, Timing, Work
from service.layer_calls import LayerCalls

_MODEL = ("model", "version")
# From 50 microseconds up: a small model answers in less than a millisecond.
_SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LENGTHS = (1, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)


class Watched(Protocol):
    """The gauges of a batcher."""

    @property
    def num_waiting(self) -> int: ...
    @property
    def num_waiting_rows(self) -> int: ...
    @property
    def num_waiting_tokens(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_pages_used(self) -> int: ...
    @property
    def num_pages_cached(self) -> int: ...


class WatchedRanks(Protocol):
    """The gauges of ranks that share a model; ages, one for each, are empty while they are not up."""

    @property
    def is_up(self) -> bool: ...
    @property
    def epoch(self) -> int: ...
    @property
    def build_s(self) -> float: ...
    @property
    def ages_s(self) -> Sequence[float]: ...
    @property
    def all_reduce_s(self) -> float: ...
    @property
    def num_carries(self) -> int: ...


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # process_cpu_seconds_total, memory, open files, start time

        def counter(name: str, text: str, labels: Sequence[str] = _MODEL) -> Counter:
            return Counter(f"fathom_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: Sequence[str] = _MODEL) -> Gauge:
            return Gauge(f"fathom_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = _MODEL) -> Histogram:
            return Histogram(f"fathom_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter("requests", "HTTP requests answered", ("route", "outcome"))
        self.request_seconds = histogram("request_seconds", "Whole request", _SECONDS, ("route",))
        self._request_series: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self.queue_seconds = histogram("queue_seconds", "A sample's wait for the device", _SECONDS)
        self.compute_seconds = histogram("compute_seconds", "A sample's time from leaving the queue", _SECONDS)
        self.first_token_seconds = histogram("time_to_first_token_seconds", "From arrival", _SECONDS)
        self.inter_token_seconds = histogram(
            "inter_token_seconds", "Mean gap between the tokens of an answer", _SECONDS
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.prefix_hit_tokens = counter("prefix_cache_hit_tokens", "Tokens of prompts that were found read")
        self.preemptions = counter("preemptions", "Times an answered sequence made room and was read again")
        self.generated_tokens = counter("generated_tokens", "Tokens generated")
        self.layer_calls = LayerCalls()
        registry.register(self.layer_calls)
        self.layers_full = counter("layers_full", "Visits the answered samples would have made along the full chain")
        self.layers_answered = counter("layers_answered", "Visits the answered samples made")
        self.chain_length = histogram("chain_length", "Visits of a sample's chain", _LENGTHS)
        self.queue_requests = gauge("queue_requests", "Samples that wait")
        self.queue_rows = gauge("queue_rows", "Rows that wait")
        self.queue_tokens = gauge("queue_tokens", "Tokens that wait")
        self.rejected = counter(
            "rejected", "Rows refused because too much waits; reason is the limit that was reached", (*_MODEL, "reason")
        )
        self.cancelled = counter("cancelled", "Rows whose client left before their answer")
        self.expired = counter("expired", "Rows whose deadline passed before their answer")
        self.degraded = counter(
            "degraded", "Rows that got a cheaper chain because too much waited for the full one", (*_MODEL, "step")
        )
        self.degrade_step = gauge("degrade_step", "Step of the ladder of cheaper chains; 0 is the full chain")
        self.cache_hits = counter("cache_hits", "Rows answered from the response cache, without running a layer")
        self.cache_misses = counter("cache_misses", "Rows that were looked for in the response cache in vain")
        self.cache_bytes = gauge("cache_bytes", "Memory the response cache holds")
        self.running = gauge("running_sequences", "Sequences being generated")
        self.pages_used = gauge("kv_pages_used", "Pages of keys and values held by sequences")
        self.pages_cached = gauge("kv_pages_cached", "Pages held by nobody, kept for what may begin alike")
        self.pages = gauge("kv_pages", "Pages there are")
        self.search_simulations = counter("search_simulations", "Simulations of chain searches")
        self.search_chains = counter("search_distinct_chains", "Chains that searches tried")
        self.search_seconds = histogram("search_seconds", "Whole search of one sample", _SECONDS)
        self.searches = counter("searches", "Searches ended", (*_MODEL, "outcome"))
        self.memory_hits = counter("memory_hits", "Inputs that asked for their remembered chain and had one")
        self.memory_misses = counter("memory_misses", "Inputs that asked for their remembered chain and had none")
        self._add_sessions(counter, gauge)
        self._add_loads(counter, gauge)
        self._add_ranks(counter, gauge, histogram)
        self.jobs = counter("jobs", "Jobs ended", ("outcome",))
        self.jobs_queued = Gauge("fathom_jobs_queued", "Jobs that wait", registry=registry)
        self.jobs_running = Gauge("fathom_jobs_running", "Jobs that run", registry=registry)

    def _add_sessions(self, counter: Callable[..., Counter], gauge: Callable[[str, str], Gauge]) -> None:
        self.sessions = gauge("sessions", "Open sessions of recurrent models")
        self.session_bytes = gauge("session_bytes", "Memory of the states that open sessions hold, at most")
        self.sessions_ended = counter(
            "sessions_ended", "Sessions that ended; reason is ended, expired or unloaded", (*_MODEL, "reason")
        )

    def _add_loads(self, counter: Callable[..., Counter], gauge: Callable[[str, str], Gauge]) -> None:
        self.load_seconds = gauge("model_load_seconds", "Time the last load took")
        self.ready = gauge("model_ready", "1 when the model serves")
        self.load_failures = counter("model_load_failures", "Loads that failed; GET /models has the reason")
        self.evictions = counter("model_evictions", "Times a model made room for another")
        self.reloads = counter("repository_reloads", "Looks at the repository for changes", ("outcome",))
        # Who sets the gauges, the last of them: for a while there are two of a version that is loaded anew.
        self.watching: dict[tuple[str, str], list[ModelMetrics]] = {}

    def _add_ranks(
        self, counter: Callable[..., Counter], gauge: Callable[..., Gauge], histogram: Callable[..., Histogram]
    ) -> None:
        self.ranks_up = gauge("ranks_up", "1 while all ranks of a shared model are up")
        self.ranks_epoch = gauge("ranks_epoch", "Times the ranks were started, failures included")
        self.ranks_start_seconds = gauge("ranks_start_seconds", "Time the last start of all ranks took")
        self.ranks_all_reduce_seconds = gauge(
            "ranks_all_reduce_seconds", "An all-reduce alone, when idle; the slowest rank"
        )
        self.ranks_carries = gauge("ranks_carries", "Carries that each rank holds")
        self.ranks_age = gauge("rank_heartbeat_age_seconds", "Time since a rank was heard", (*_MODEL, "rank"))
        self.ranks_lost = counter("ranks_lost", "Times the ranks were lost, and all that they held")
        self.ranks_step_seconds = histogram("ranks_step_seconds", "One program, from sent to answered by all", _SECONDS)
        self.ranks_wait = counter("rank_wait_seconds", "Time a rank only waited for others: exposed", (*_MODEL, "rank"))

    def observe_request(self, route: str, outcome: str, seconds: float) -> None:
        """Count an answered request."""
        series = self._request_series.get((route, outcome))
        if series is None:
            series = self.requests.labels(route, outcome), self.request_seconds.labels(route)
            self._request_series[route, outcome] = series
        series[0].inc()
        series[1].observe(seconds)

    def watch_jobs(self, num_queued: Callable[[], int], num_running: Callable[[], int]) -> None:
        """Read the gauges of jobs whenever they are scraped."""
        self.jobs_queued.set_function(num_queued)
        self.jobs_running.set_function(num_running)

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The metrics of one model version, labels bound once."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._metrics, self.labels = metrics, (model, version)
        self.count_layer_call = metrics.layer_calls.of(self.labels).count
        self._queue_seconds = metrics.queue_seconds.labels(*self.labels)
        self._compute_seconds = metrics.compute_seconds.labels(*self.labels)
        self._chain_length = metrics.chain_length.labels(*self.labels)
        self._layers_answered = metrics.layers_answered.labels(*self.labels)
        self._layers_full = metrics.layers_full.labels(*self.labels)
        self._cancelled = metrics.cancelled.labels(*self.labels)
        self._expired = metrics.expired.labels(*self.labels)
        self._watched: list[tuple[Gauge, tuple[str, ...], Callable[[], float]]] = []

    def observe_samples(self, chains: Sequence[Chain], passes: Sequence[int], num_layers: int, timing: Timing) -> None:
        """Count answered samples: their chains, how often each was walked, and how long they took."""
        self._queue_seconds.observe(timing.queue_s)
        self._compute_seconds.observe(timing.compute_s)
        if not num_layers:  # a model that is served whole has no chains to speak of
            return
        for chain in chains:
            self._chain_length.observe(len(chain))
        self._layers_answered.inc(sum(len(chain) * count for chain, count in zip(chains, passes, strict=True)))
        self._layers_full.inc(num_layers * sum(passes))

    def observe_failure(self, works: Sequence[Work], error: BaseException) -> None:
        """Count the rows of a request that was refused, given up by its client, or too late."""
        rows = sum(work.num_rows for work in works)
        if isinstance(error, OverloadError):
            self._metrics.rejected.labels(*self.labels, error.unit).inc(rows)
        elif isinstance(error, asyncio.CancelledError):
            self._cancelled.inc(rows)
        elif isinstance(error, DeadlineError):
            self._expired.inc(rows)

    def observe_degraded(self, step: int, rows: int) -> None:
        """Count rows that asked for the full chain and get a step of the ladder instead."""
        self._metrics.degraded.labels(*self.labels, str(step)).inc(rows)

    def watch_degrade(self, step: Callable[[], int]) -> None:
        """Read the step of the ladder whenever it is scraped."""
        self._watch(self._metrics.degrade_step, step)

    def observe_cache(self, num_rows: int, num_missing: int) -> None:
        """Count rows that were looked for in the response cache."""
        self._metrics.cache_hits.labels(*self.labels).inc(num_rows - num_missing)
        self._metrics.cache_misses.labels(*self.labels).inc(num_missing)

    def watch_cache(self, num_bytes: Callable[[], int]) -> None:
        """Read the size of the response cache whenever it is scraped."""
        self._watch(self._metrics.cache_bytes, num_bytes)

    def watch_sessions(self, num_open: Callable[[], int], num_bytes: Callable[[], int]) -> None:
        """Read how many sessions are open, and what they hold, whenever that is scraped."""
        self._watch(self._metrics.sessions, num_open)
        self._watch(self._metrics.session_bytes, num_bytes)

    def observe_refused_session(self) -> None:
        """Count a session for which there was no room."""
        self._metrics.rejected.labels(*self.labels, "sessions").inc()

    def observe_session_end(self, reason: str) -> None:
        """Count a session that is over."""
        self._metrics.sessions_ended.labels(*self.labels, reason).inc()

    def observe_generation(self, num_prompt_tokens: int, answer: Generated) -> None:
        """Count an answered prompt."""
        self._metrics.prompt_tokens.labels(*self.labels).inc(num_prompt_tokens)
        self._metrics.prefix_hit_tokens.labels(*self.labels).inc(answer.num_cached)
        self._metrics.preemptions.labels(*self.labels).inc(answer.num_preemptions)
        self._metrics.generated_tokens.labels(*self.labels).inc(len(answer.choices))
        self._metrics.first_token_seconds.labels(*self.labels).observe(answer.first_token_s)
        gaps = answer.timing.queue_s + answer.timing.compute_s - answer.first_token_s
        if len(answer.choices) > 1:
            self._metrics.inter_token_seconds.labels(*self.labels).observe(gaps / (len(answer.choices) - 1))

    def observe_search(self, simulations: int, distinct_chains: int, seconds: float, outcome: str) -> None:
        """Count an ended search."""
        self._metrics.search_simulations.labels(*self.labels).inc(simulations)
        self._metrics.search_chains.labels(*self.labels).inc(distinct_chains)
        self._metrics.search_seconds.labels(*self.labels).observe(seconds)
        self._metrics.searches.labels(*self.labels, outcome).inc()

    def observe_recall(self, num_inputs: int, num_hits: int) -> None:
        """Count inputs that asked for their remembered chain."""
        self._metrics.memory_hits.labels(*self.labels).inc(num_hits)
        self._metrics.memory_misses.labels(*self.labels).inc(num_inputs - num_hits)

    def watch(self, watched: Watched, num_pages: int) -> None:
        """Read the gauges from a batcher whenever they are scraped."""
        metrics = self._metrics
        metrics.watching.setdefault(self.labels, []).append(self)
        self._watch(metrics.queue_requests, lambda: watched.num_waiting)
        self._watch(metrics.queue_rows, lambda: watched.num_waiting_rows)
        self._watch(metrics.queue_tokens, lambda: watched.num_waiting_tokens)
        self._watch(metrics.running, lambda: watched.num_running)
        self._watch(metrics.pages_used, lambda: watched.num_pages_used)
        self._watch(metrics.pages_cached, lambda: watched.num_pages_cached)
        self._watch(metrics.pages, lambda: num_pages)
        self._watch(metrics.ready, lambda: 1.0)

    def watch_ranks(self, watched: WatchedRanks, size: int) -> None:
        """Read the gauges of ranks whenever they are scraped; the model is ready while they are up."""
        metrics = self._metrics
        self._watch(metrics.ready, lambda: float(watched.is_up))
        self._watch(metrics.ranks_up, lambda: float(watched.is_up))
        self._watch(metrics.ranks_epoch, lambda: watched.epoch)
        self._watch(metrics.ranks_start_seconds, lambda: watched.build_s)
        self._watch(metrics.ranks_all_reduce_seconds, lambda: watched.all_reduce_s)
        self._watch(metrics.ranks_carries, lambda: watched.num_carries)
        for rank in range(size):
            self._watch(metrics.ranks_age, partial(_at, watched, rank), str(rank))

    def observe_step(self, seconds: float, waited_s: Sequence[float]) -> None:
        """Count one program of the ranks, and how long each of them only waited for the others."""
        self._metrics.ranks_step_seconds.labels(*self.labels).observe(seconds)
        for rank, waited in enumerate(waited_s):
            self._metrics.ranks_wait.labels(*self.labels, str(rank)).inc(waited)

    def observe_loss(self) -> None:
        """Count a loss of the ranks."""
        self._metrics.ranks_lost.labels(*self.labels).inc()

    def _watch(self, gauge: Gauge, value: Callable[[], float], *more: str) -> None:
        labels = (*self.labels, *more)
        self._watched.append((gauge, labels, value))
        gauge.labels(*labels).set_function(value)

    def observe_load(self, seconds: float) -> None:
        """Note how long loading took."""
        self._metrics.load_seconds.labels(*self.labels).set(seconds)

    def close(self) -> None:
        """Stop watching an unloaded model, and watch again the one that it was to replace, if that still serves."""
        metrics, others = self._metrics, self._metrics.watching.get(self.labels, [])
        if self not in others:
            return
        others.remove(self)
        if others:
            for gauge, labels, value in others[-1]._watched:
                gauge.labels(*labels).set_function(value)
            return
        for gauge, labels, _ in self._watched:
            gauge.remove(*labels)
        metrics.load_seconds.remove(*self.labels)
        metrics.ready.labels(*self.labels).set(0)


def _at(watched: WatchedRanks, rank: int) -> float:
    """The age of one rank; none while it is not up."""
    ages_s = watched.ages_s
    return ages_s[rank] if ages_s else math.nan
