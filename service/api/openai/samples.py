"""From a request for text to its samples: every prompt `n` times, each choice with a seed of its own."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from models.artifact import LanguageSpec
from models.errors import InputError, LengthError
from models.sampling import SamplingSpec
from service.api.openai.requests import CompletionRequest, GenerationRequest, PromptField
from service.engine.engine import FULL, ChainValue
from service.engine.language import LanguageEngine
from service.engine.sampling import Sampling
from service.settings import Settings

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One choice to be made; `echo` is put before its text."""

    index: int
    prompt: str | Sequence[int]
    chain: str | Sequence[int]
    sampling: Sampling
    echo: str


def prompts_of(prompt: PromptField) -> list[str | list[int]]:
    """The prompts of a request, a single one as a list of itself. Raises InputError if there are none."""
    if not prompt:
        raise InputError("the prompt is empty; send a text, token ids, or a list of one of these")
    if isinstance(prompt, str):
        return [prompt]
    return [prompt] if isinstance(prompt[0], int) else list(prompt)


def check_choices(num_prompts: int, n: int, settings: Settings) -> None:
    """Raise LengthError for more choices than one request may make."""
    most = min(settings.max_inputs, settings.max_queue_requests)
    if num_prompts * n > most:
        raise LengthError(
            f"{num_prompts} prompts came with n {n}; one request makes at most {most} choices; send several"
        )


def samples_of(
    body: GenerationRequest,
    prompts: Sequence[str | Sequence[int]],
    chain: ChainValue,
    engine: LanguageEngine,
    max_new_tokens: int | None,
    logprobs: int | None,
) -> list[Sample]:
    """Samples in order of their indices; `max_new_tokens` None is the model's own limit.

    Raises ChainError for chains that do not fit the model or the prompts.
    """
    samplings = _samplings(body, engine.language, max_new_tokens, logprobs)
    echoes = isinstance(body, CompletionRequest) and body.echo
    chains = engine.affordable_chains(chain, len(prompts))
    return [
        Sample(
            index=place * body.n + choice,
            prompt=prompt,
            chain=chains[place].layers or FULL,
            sampling=sampling,
            echo=_text(prompt, engine) if echoes else "",
        )
        for place, prompt in enumerate(prompts)
        for choice, sampling in enumerate(samplings)
    ]


def _samplings(
    body: GenerationRequest, language: LanguageSpec, max_new_tokens: int | None, logprobs: int | None
) -> list[Sampling]:
    """How each of `n` choices is drawn; without a seed by chance, as clients of this dialect expect.

    What the request leaves out is as the model's authors would have it, or else as this dialect has it.
    """
    own = language.sampling or SamplingSpec()
    temperature = _first(body.temperature, own.temperature, 1.0)
    seed = body.seed
    if seed is None:
        seed = secrets.randbits(64) if temperature else 0
    stop = body.stop or ()
    return [
        Sampling(
            max_new_tokens=_first(max_new_tokens, own.max_new_tokens, language.max_length),
            temperature=temperature,
            top_k=_first(body.top_k, own.top_k, 0),
            top_p=_first(body.top_p, own.top_p, 1.0),
            seed=_seed(seed, choice),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            logprobs=logprobs,
        )
        for choice in range(body.n)
    ]


def _first(asked: _T | None, own: _T | None, last: _T) -> _T:
    """The first that says anything."""
    return asked if asked is not None else own if own is not None else last


def _seed(seed: int, choice: int) -> int:
    """The first choice has the request's own seed, so that it is what /predict answers; 64 bits."""
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {choice}".encode(), digest_size=8).digest())


def _text(prompt: str | Sequence[int], engine: LanguageEngine) -> str:
    return prompt if isinstance(prompt, str) else engine.tokenizer.decode(engine.encode(prompt))
