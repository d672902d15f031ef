"""Logits to one token. Each sequence draws from its own generator, so neighbours never change its luck."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen and when to stop. Temperature 0 is greedy; top_k 0 and top_p 1 keep every token."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token, its log-probability under the unchanged model, and the most likely alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = field(default=())


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[..., V] float32 -> [..., V] float64"""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def choose(logits: NDArray[np.float32], sampling: Sampling, generator: np.random.Generator) -> Choice:
    """Choose the next token of one sequence from logits [V]."""
    logprobs = log_softmax(logits)
    token_id = int(logits.argmax()) if sampling.temperature == 0 else _draw(logits, sampling, generator)
    if not sampling.logprobs:  # sorting a large vocabulary takes longer than a layer
        return Choice(token_id, float(logprobs[token_id]))
    return Choice(token_id, float(logprobs[token_id]), most_likely(logprobs, sampling.logprobs))


def most_likely(logprobs: NDArray[np.float64], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` most likely token ids of [V] with their log-probabilities, likeliest first, ties by id."""
    order = np.argsort(-logprobs, kind="stable")[:count]
    return tuple((int(token_id), float(logprobs[token_id])) for token_id in order)


def _draw(logits: NDArray[np.float32], sampling: Sampling, generator: np.random.Generator) -> int:
    order = np.argsort(-logits, kind="stable")
    with np.errstate(over="ignore"):  # close to temperature 0 all but the likeliest fall to probability 0
        weights = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / sampling.temperature)
    probabilities = weights / weights.sum()
    keep = np.ones(len(order), dtype=bool)
    if sampling.top_k:
        keep[sampling.top_k :] = False
    # A token stays if the likelier ones together do not yet reach top_p (nucleus sampling, arXiv 1904.09751).
    kept_mass = np.cumsum(np.where(keep, probabilities, 0.0)) / probabilities[keep].sum()
    keep &= np.concatenate(([True], kept_mass[:-1] < sampling.top_p))
    kept = np.where(keep, probabilities, 0.0)
    return int(order[generator.choice(len(order), p=kept / kept.sum())])
