"""Choices as server-sent events: chunks of all of them as they come, then the usage, then `[DONE]`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import TypeVar

from service.api.openai.answers import ChatChunk, ChatPiece, CompletionChoice, CompletionResponse, Delta
from service.api.openai.choices import chat_logprobs_of, logprobs_of, ran_of, usage_of
from service.api.openai.requests import GenerationRequest
from service.api.openai.samples import Sample
from service.engine.language import Completion, LanguageEngine
from service.engine.sampling import Choice

_T = TypeVar("_T")


async def events(
    answer: CompletionResponse | ChatChunk,
    speakers: Sequence["Speaker | ChatSpeaker"],
    body: GenerationRequest,
    engine: LanguageEngine,
) -> AsyncGenerator[bytes]:
    """Chunks of `answer`, which has no choices yet. Leaving early frees every sequence."""
    done: dict[int, Completion] = {}
    samples = [speaker.sample for speaker in speakers]
    streams = [engine.stream(sample.prompt, sample.chain, sample.sampling) for sample in samples]
    async with aclosing(merged(streams)) as arriving:
        async for place, one in arriving:
            if isinstance(one, Completion):
                done[place] = one
                yield _event(answer.model_copy(update={"choices": [speakers[place].end(one)]}))
            elif said := speakers[place].say(*one):
                yield _event(answer.model_copy(update={"choices": [said]}))
    if body.includes_usage:
        usage = usage_of([done[place] for place in range(len(samples))], body.n)
        yield _event(answer.model_copy(update={"usage": usage}))
    yield b"data: [DONE]\n\n"


async def merged(streams: Sequence[AsyncIterator[_T]]) -> AsyncGenerator[tuple[int, _T]]:
    """Each of several streams' values as it comes, with its stream's place; the first failure is raised."""
    arrived = asyncio.Queue[tuple[int, _T] | Exception | None]()

    async def pump(place: int, stream: AsyncIterator[_T]) -> None:
        try:
            async for one in stream:
                arrived.put_nowait((place, one))
            arrived.put_nowait(None)
        except Exception as error:
            arrived.put_nowait(error)

    tasks = [asyncio.ensure_future(pump(place, stream)) for place, stream in enumerate(streams)]
    num_running = len(tasks)
    try:
        while num_running:
            one = await arrived.get()
            if isinstance(one, Exception):
                raise one
            if one is None:
                num_running -= 1
            else:
                yield one
    finally:
        for task in tasks:
            task.cancel()


class Speaker:
    """Says one choice piece by piece; the pieces together are exactly the text of the whole answer."""

    def __init__(self, sample: Sample, engine: LanguageEngine) -> None:
        self.sample, self._engine = sample, engine
        self._token_ids: tuple[int, ...] = ()
        self._echo, self._num_said = sample.echo, 0

    def say(self, added: str, choice: Choice) -> CompletionChoice | None:
        """The piece that a token makes sure, or None if there is nothing to tell."""
        before, self._token_ids = self._token_ids, (*self._token_ids, choice.token_id)
        self._num_said += len(added)
        asked = self.sample.sampling.logprobs is not None
        if not (added or self._echo or asked):
            return None
        logprobs = logprobs_of([choice], before, self._engine) if asked else None
        return CompletionChoice(index=self.sample.index, text=self._with_echo(added), logprobs=logprobs)

    def end(self, done: Completion) -> CompletionChoice:
        """The last piece, with what ran."""
        return CompletionChoice(
            index=self.sample.index,
            text=self._with_echo(done.text[self._num_said :]),
            finish_reason=done.finish_reason,
            fathom=ran_of(done, self.sample, self._engine),
        )

    def _with_echo(self, text: str) -> str:
        echo, self._echo = self._echo, ""
        return echo + text


class ChatSpeaker:
    """Says one answer of a conversation; its first piece says who speaks, its last has no text."""

    def __init__(self, sample: Sample, engine: LanguageEngine) -> None:
        self.sample, self._engine = sample, engine
        self._is_first, self._num_said = True, 0

    def say(self, added: str, choice: Choice) -> ChatPiece | None:
        """The piece that a token makes sure, or None if there is nothing to tell."""
        asked = self.sample.sampling.logprobs is not None
        if not (added or self._is_first or asked):
            return None
        logprobs = chat_logprobs_of([choice], self._engine) if asked else None
        return ChatPiece(index=self.sample.index, delta=self._delta(added), logprobs=logprobs)

    def end(self, done: Completion) -> ChatPiece:
        """The last piece, with what ran."""
        return ChatPiece(
            index=self.sample.index,
            delta=self._delta(done.text[self._num_said :]),
            finish_reason=done.finish_reason,
            fathom=ran_of(done, self.sample, self._engine),
        )

    def _delta(self, added: str) -> Delta:
        is_first, self._is_first = self._is_first, False
        self._num_said += len(added)
        return Delta(role="assistant" if is_first else None, content=added)


def _event(chunk: CompletionResponse | ChatChunk) -> bytes:
    return b"data: " + chunk.model_dump_json().encode() + b"\n\n"
