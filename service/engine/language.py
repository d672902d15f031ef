"""A language model: text or token ids in, text out, each prompt along its own chain."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.artifact import LanguageSpec, Manifest
from models.chain import Chain
from models.errors import InputError, LengthError
from models.lm.tokenizer import Tokenizer
from service.backends.protocol import Array, Backend
from service.engine.engine import ChainValue, Engine, EngineLimits, new_future
from service.engine.sampling import Choice, Sampling
from service.engine.spoken import Spoken
from service.engine.work import (
    Embedded,
    EmbedWork,
    FinishReason,
    Generated,
    GenerateWork,
    Score,
    ScoreWork,
    Timing,
)
from service.metrics import ModelMetrics

if TYPE_CHECKING:
    from models.lm.chat import ChatTemplate


@dataclass(frozen=True, slots=True)
class Completion:
    """The continuation of one prompt, and what it cost.

    layers_executed counts visits times passes; layer_evaluations counts visits times tokens, without the
    num_cached_tokens of the prompt whose keys and values were found.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    choices: tuple[Choice, ...]
    chain: Chain
    layers_executed: int
    layers_full: int
    layer_evaluations: int
    num_prompt_tokens: int
    num_cached_tokens: int
    timing: Timing

    @property
    def logprob(self) -> float:
        """Sum over the tokens."""
        return sum(choice.logprob for choice in self.choices)


@dataclass(frozen=True, slots=True)
class Judgement:
    """How likely one target is after one prompt; `matches` says that greedy decoding would give exactly it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    matches: bool
    chain: Chain
    layers_executed: int
    layers_full: int
    layer_evaluations: int
    num_prompt_tokens: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class Embedding:
    """What a model holds of one input, [D] float32 of length 1: the mean over its tokens of the residual stream.

    It is no sentence embedding that was trained to be one: texts that lie close do so by the model's own lights.
    """

    vector: Array
    chain: Chain
    layers_executed: int
    layers_full: int
    layer_evaluations: int
    num_prompt_tokens: int
    timing: Timing


class LanguageEngine(Engine):
    """Generates, scores and embeds text."""

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        limits: EngineLimits,
        metrics: ModelMetrics,
        tokenizer: Tokenizer,
        chat: "ChatTemplate | None" = None,
    ) -> None:
        assert manifest.language is not None
        self.language: LanguageSpec = manifest.language
        self.tokenizer, self.chat = tokenizer, chat
        super().__init__(manifest, backend, limits, metrics)

    def encode(self, text: str | Sequence[int], room: int = 1) -> tuple[int, ...]:
        """Token ids of a prompt. Raises InputError, or LengthError if fewer than `room` tokens could follow."""
        token_ids = self.tokenizer.encode(text) if isinstance(text, str) else self._checked(text)
        if not token_ids:
            raise InputError("the prompt is empty; send at least one token")
        longest = self.language.max_length - room
        if len(token_ids) > longest:
            raise LengthError(
                f"{len(token_ids)} tokens do not fit; the model takes {self.language.max_length}, "
                f"so at most {longest} with room for {room} more; shorten the prompt"
            )
        return token_ids

    async def generate(
        self, prompts: Sequence[str | Sequence[int]], chain: ChainValue, sampling: Sampling
    ) -> list[Completion]:
        """Continue every prompt. Everything is checked before anything is queued."""
        chains = self.affordable_chains(chain, len(prompts))
        works = [self._work(prompt, one, sampling) for prompt, one in zip(prompts, chains, strict=True)]
        answers: list[Generated] = await self.run(works)
        return [self._completion(work, answer) for work, answer in zip(works, answers, strict=True)]

    async def stream(
        self, prompt: str | Sequence[int], chain: ChainValue, sampling: Sampling
    ) -> AsyncGenerator[tuple[str, Choice] | Completion]:
        """Yield each token with the text it makes sure, then the completion. Leaving early frees the sequence.

        No text is of a stop text, or of what may become one; what was held back in vain is in the completion's text.
        """
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[Choice | None]()
        work = self._work(prompt, self.affordable_chains(chain, 1)[0], sampling)
        work.on_choice = lambda choice: _tell(loop, tokens, choice)
        task = asyncio.ensure_future(self.run([work]))
        task.add_done_callback(lambda _: tokens.put_nowait(None))
        spoken = Spoken(self.tokenizer.decode, sampling.stop)
        try:
            while (choice := await tokens.get()) is not None:
                yield spoken.add(choice.token_id), choice
            (answer,) = await task
            yield self._completion(work, answer)
        finally:
            task.cancel()

    async def score(
        self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], chains: Sequence[Chain]
    ) -> list[Judgement]:
        """Judge each target after its prompt, (prompt, target) in token ids, along its chain, by teacher forcing."""
        works = [
            ScoreWork(
                future=new_future(),
                token_ids=prompt + target,
                num_targets=len(target),
                chain=chain,
            )
            for (prompt, target), chain in zip(pairs, chains, strict=True)
        ]
        scores: list[Score] = await self.run(works)
        return [self._judgement(work, score) for work, score in zip(works, scores, strict=True)]

    async def embed(self, inputs: Sequence[str | Sequence[int]], chain: ChainValue) -> list[Embedding]:
        """Embed every input, after the last visit of its chain. Everything is checked before anything is queued."""
        chains = self.chains(chain, len(inputs))
        works = [
            EmbedWork(future=new_future(), token_ids=self.encode(one, room=0), chain=chain)
            for one, chain in zip(inputs, chains, strict=True)
        ]
        answers: list[Embedded] = await self.run(works)
        return [self._embedding(work, answer) for work, answer in zip(works, answers, strict=True)]

    def target(self, text: str | Sequence[int]) -> tuple[int, ...]:
        """Token ids of a whole answer, end token included. Raises InputError if that leaves nothing to judge."""
        token_ids = self.tokenizer.encode(text) if isinstance(text, str) else self._checked(text)
        if token_ids[-1:] not in [(end,) for end in self.language.eos_token_ids]:
            token_ids += self.language.eos_token_ids[:1]
        if not token_ids:
            raise InputError("the target is empty; send at least one token")
        return token_ids

    def _work(self, prompt: str | Sequence[int], chain: Chain, sampling: Sampling) -> GenerateWork:
        return GenerateWork(
            future=new_future(),
            prompt=self.encode(prompt),
            chain=chain,
            sampling=sampling,
            eos_token_ids=self.language.eos_token_ids,
            max_tokens=self.language.max_length,
            text_of=self.tokenizer.decode,
        )

    def _checked(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        for place, token_id in enumerate(token_ids):
            if type(token_id) is not int or not 0 <= token_id < self.language.vocab_size:
                raise InputError(
                    f"token {place} is {token_id!r}; the vocabulary has 0 to {self.language.vocab_size - 1}"
                )
        return tuple(token_ids)

    def _completion(self, work: GenerateWork, answer: Generated) -> Completion:
        is_run = not answer.timing.is_cached
        if is_run:
            self.metrics.observe_samples([work.chain], [answer.num_passes], self.num_layers, answer.timing)
            self.metrics.observe_generation(len(work.prompt), answer)
        return Completion(
            text=_until(self.tokenizer.decode(answer.token_ids), work.sampling.stop),
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            choices=answer.choices,
            chain=work.chain,
            layers_executed=len(work.chain) * answer.num_passes * is_run,
            layers_full=self.num_layers * answer.num_passes,
            layer_evaluations=len(work.chain) * answer.num_evaluated * is_run,
            num_prompt_tokens=len(work.prompt),
            num_cached_tokens=answer.num_cached * is_run,
            timing=answer.timing,
        )

    def _embedding(self, work: EmbedWork, answer: Embedded) -> Embedding:
        self.metrics.observe_samples([work.chain], [1], self.num_layers, answer.timing)
        return Embedding(
            vector=answer.vector,
            chain=work.chain,
            layers_executed=len(work.chain),
            layers_full=self.num_layers,
            layer_evaluations=len(work.chain) * len(work.token_ids),
            num_prompt_tokens=len(work.token_ids),
            timing=answer.timing,
        )

    def _judgement(self, work: ScoreWork, score: Score) -> Judgement:
        target = work.token_ids[-work.num_targets :]
        is_run = not score.timing.is_cached
        if is_run:
            self.metrics.observe_samples([work.chain], [1], self.num_layers, score.timing)
        return Judgement(
            token_ids=target,
            logprobs=score.logprobs,
            matches=score.greedy == target,
            chain=work.chain,
            layers_executed=len(work.chain) * is_run,
            layers_full=self.num_layers,
            layer_evaluations=len(work.chain) * (len(work.token_ids) - 1) * is_run,
            num_prompt_tokens=len(work.token_ids) - work.num_targets,
            timing=score.timing,
        )


def _tell(loop: asyncio.AbstractEventLoop, tokens: "asyncio.Queue[Choice | None]", choice: Choice) -> None:
    loop.call_soon_threadsafe(tokens.put_nowait, choice)


def _until(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
