"""From logits to a token: the distributions, the seed and the log-probabilities."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.engine.sampling import Sampling, choose, log_softmax, most_likely

LOGITS = np.asarray([1.0, 3.0, -2.0, 2.5, 0.0, 2.5], dtype=np.float32)
DRAWS = 4000
finite = arrays(np.float32, st.integers(1, 12), elements=st.floats(-50, 50, width=32))


def draws(sampling: Sampling, logits: np.ndarray = LOGITS, count: int = DRAWS) -> list[int]:
    generator = np.random.default_rng(0)
    return [choose(logits, sampling, generator).token_id for _ in range(count)]


def naive(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """Probabilities, one token at a time: likeliest first, at most top_k, until top_p of their mass is reached."""
    weights = {i: float(np.exp(np.float64(value) / temperature)) for i, value in enumerate(logits)}
    order = sorted(weights, key=lambda i: (-weights[i], i))[: top_k or None]
    mass = sum(weights[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        if reached >= top_p:
            break
        kept.append(i)
        reached += weights[i] / mass
    return {i: weights[i] / sum(weights[j] for j in kept) for i in kept}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (2.0, 0, 1.0),
        (1.0, 1, 1.0),
        (1.0, 3, 1.0),
        (1.0, 100, 1.0),
        (1.0, 0, 0.3),
        (1.0, 0, 0.7),
        (2.0, 0, 0.95),
        (2.0, 4, 0.8),
        (1.0, 0, 1e-6),
    ],
)
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    wanted = naive(LOGITS, temperature, top_k, top_p)
    found = Counter(draws(Sampling(temperature=temperature, top_k=top_k, top_p=top_p)))
    assert found.keys() <= wanted.keys()
    # Half the sum of differences; 0.03 is about four standard errors here.
    assert sum(abs(found[i] / DRAWS - wanted.get(i, 0.0)) for i in range(len(LOGITS))) / 2 < 0.03


@given(finite, st.integers(1, 5), st.floats(0.05, 1.0))
def test_only_tokens_that_stay_are_drawn(logits: np.ndarray, top_k: int, top_p: float) -> None:
    allowed = set(naive(logits, 1.0, top_k, top_p + 1e-5))
    assert set(draws(Sampling(temperature=1.0, top_k=top_k, top_p=top_p), logits, 20)) <= allowed


@given(finite)
def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals(logits: np.ndarray) -> None:
    assert choose(logits, Sampling(), np.random.default_rng(0)).token_id == int(np.argmax(logits))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
def test_temperature_close_to_zero_is_greedy(temperature: float) -> None:
    assert set(draws(Sampling(temperature=temperature), count=20)) == {1}


def test_seed_decides() -> None:
    def sequence(seed: int) -> list[int]:
        generator = np.random.default_rng(seed)
        return [choose(LOGITS, Sampling(temperature=1.0), generator).token_id for _ in range(40)]

    assert sequence(1) == sequence(1)
    assert sequence(1) != sequence(2)


@pytest.mark.parametrize("sampling", [Sampling(logprobs=3), Sampling(logprobs=3, temperature=2.0, top_k=1)])
def test_logprobs_are_those_of_the_unchanged_model(sampling: Sampling) -> None:
    choice = choose(LOGITS, sampling, np.random.default_rng(0))
    weights = np.exp(LOGITS.astype(np.float64))
    logprobs = np.log(weights / weights.sum())
    assert choice.token_id == 1
    assert choice.logprob == pytest.approx(logprobs[1])
    assert [token_id for token_id, _ in choice.top] == [1, 3, 5]
    assert [logprob for _, logprob in choice.top] == pytest.approx(logprobs[[1, 3, 5]])


def test_no_alternatives_unless_asked() -> None:
    assert choose(LOGITS, Sampling(logprobs=None), np.random.default_rng(0)).top == ()
    assert choose(LOGITS, Sampling(logprobs=0), np.random.default_rng(0)).top == ()
    assert len(most_likely(log_softmax(LOGITS), 100)) == len(LOGITS)


@given(finite)
def test_log_softmax_sums_to_one(logits: np.ndarray) -> None:
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1.0)


def test_log_softmax_of_huge_logits_is_finite() -> None:
    assert log_softmax(np.asarray([3e38, -3e38], dtype=np.float32))[0] == 0.0
