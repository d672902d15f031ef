"""The calls of layers as metrics, summed up when they are scraped.

Counters and a histogram for every call would take as long as a small layer itself.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Labels: TypeAlias = tuple[str, str]
_MODEL = ("model", "version")
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Calls:
    """The calls of one model version's layers."""

    def __init__(self) -> None:
        self._lock = Lock()  # for a while there may be two of a version that is loaded anew
        self._calls: Counter[tuple[int, int]] = Counter()  # by layer and rows
        self._tokens = 0

    def count(self, layer: int, rows: int, tokens: int) -> None:
        """`rows` samples made a visit of a layer together, with `tokens` real tokens among them."""
        with self._lock:
            self._calls[layer, rows] += 1
            self._tokens += tokens

    def read(self) -> tuple[Counter[tuple[int, int]], int]:
        """How often each layer was called with each number of rows, and the tokens of all calls."""
        with self._lock:
            return self._calls.copy(), self._tokens


class LayerCalls(Collector):
    """The calls of every model's layers."""

    def __init__(self) -> None:
        self._models: dict[Labels, Calls] = {}

    def of(self, labels: Labels) -> Calls:
        """Those of one model version, counted on where it was loaded before."""
        return self._models.setdefault(labels, Calls())

    def collect(self) -> Iterable[Metric]:
        calls = CounterMetricFamily(
            "fathom_layer_calls", "Calls of a layer, whatever the number of rows", labels=_MODEL
        )
        visits = CounterMetricFamily("fathom_layers_executed", "Visits made by rows", labels=(*_MODEL, "layer"))
        tokens = CounterMetricFamily("fathom_layer_evaluations", "Visits made by tokens", labels=_MODEL)
        rows = HistogramMetricFamily("fathom_layer_call_rows", "Rows that made a visit together", labels=_MODEL)
        for labels, model in list(self._models.items()):
            counted, num_tokens = model.read()
            calls.add_metric(labels, counted.total())
            tokens.add_metric(labels, num_tokens)
            for layer, num_visits in sorted(_visits(counted).items()):
                visits.add_metric((*labels, str(layer)), num_visits)
            total = sum(size * count for (_, size), count in counted.items())
            rows.add_metric(labels, list(_buckets(counted)), total)
        return calls, visits, tokens, rows


def _visits(counted: Counter[tuple[int, int]]) -> Counter[int]:
    """By layer."""
    visits: Counter[int] = Counter()
    for (layer, rows), count in counted.items():
        visits[layer] += rows * count
    return visits


def _buckets(counted: Counter[tuple[int, int]]) -> Iterator[tuple[str, float]]:
    """Upper bounds, each with the calls of no more rows."""
    for bound in _ROWS:
        yield f"{bound:.1f}", sum(count for (_, rows), count in counted.items() if rows <= bound)
    yield "+Inf", counted.total()
