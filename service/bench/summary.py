"""What a run of exchanges amounts to: rates, percentiles and counts. Pure arithmetic; seconds in, milliseconds out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from service.bench.exchange import Exchange

LATE_S = 0.01
_SHARES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds that half, nine in ten, 99 in a hundred and all stayed within (nearest rank)."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Percentiles | None":
        """None of nothing."""
        if not seconds:
            return None
        return cls(*(1000 * float(one) for one in np.quantile(seconds, _SHARES, method="inverted_cdf")))


@dataclass(frozen=True, slots=True)
class Summary:
    """One load: rates count answered requests alone; `status` has the others, 0 is no answer.

    num_late: sent more than 10 ms after they were due, because the tool or all of its connections were busy.
    """

    seconds: float
    num_requests: int
    requests_per_s: float
    rows_per_s: float
    tokens_per_s: float
    latency: Percentiles | None
    first_token: Percentiles | None
    inter_token: Percentiles | None
    status: dict[int, int]
    num_late: int
    chains: dict[str, int]


def summarise(exchanges: Sequence[Exchange]) -> Summary:
    """Sum up at least one exchange; time runs from the first that was due to the last answer."""
    answered = [one for one in exchanges if one.is_answered]
    seconds = max(one.done_s for one in exchanges) - min(one.due_s for one in exchanges)
    gaps = [late - early for one in answered for early, late in pairwise(one.token_times_s)]
    return Summary(
        seconds=seconds,
        num_requests=len(exchanges),
        requests_per_s=len(answered) / seconds,
        rows_per_s=sum(one.call.num_rows for one in answered) / seconds,
        tokens_per_s=sum(one.num_tokens for one in answered) / seconds,
        latency=Percentiles.of([one.latency_s for one in answered]),
        first_token=Percentiles.of([one.first_token_s for one in answered if one.first_token_s is not None]),
        inter_token=Percentiles.of(gaps),
        status=dict(sorted(Counter(one.status for one in exchanges).items())),
        num_late=sum(one.sent_s - one.due_s > LATE_S for one in exchanges),
        chains=dict(Counter(one.call.chain for one in exchanges)),
    )
