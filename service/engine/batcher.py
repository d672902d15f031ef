"""Who runs a model's backend, and when: its device thread, or the event loop for work that is over at once.

Fed by the queue; one of the two at a time holds the device. Knows no text and no HTTP.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence

from models.errors import GroupLostError, UnavailableError
from service.backends.pools import Pooled
from service.backends.protocol import Array, Backend, Renewable
from service.engine.admission import WINDOW
from service.engine.background import Background
from service.engine.executor import Executor, LayerCounter
from service.engine.generate import Generator
from service.engine.one_pass import OnePass, ours, run_isolated
from service.engine.queue import Limits, Queue, QueueLimits
from service.engine.reader import Reader
from service.engine.shared_runner import SharedRunner
from service.engine.work import GenerateWork, SequenceWork, Work

_log = logging.getLogger("fathom.engine")


class Batcher:
    """Takes what waits and never waits when idle.

    A turn is one batch of one-pass work, one pass of long sequences, one token per sequence that is generated, and one
    slice of search work; as many slices as there are while nothing else wants the device. Tensor rows that are known to
    be quick run on the event loop, together with all that came in the same turn of the loop.
    """

    def __init__(self, backend: Backend, counter: LayerCounter, limits: Limits, queue_limits: QueueLimits) -> None:
        self._backend, self._limits = backend, limits
        self._renewable = backend if isinstance(backend, Renewable) else None
        self._executor = executor = Executor(backend, counter)
        self._one_pass = OnePass(executor)
        self._reader = Reader(executor, limits)
        self._background = Background(SharedRunner(backend, counter))
        pools = backend.pools if isinstance(backend, Pooled) else ()
        self._generator = Generator(executor, backend.num_pages, backend.page_size, limits, pools)
        self._sequences = self._generator.sequences
        self._queue = Queue(queue_limits)
        self._changed = threading.Condition()
        self._device = threading.Lock()
        self._is_inline_due = False
        self._is_closing = False
        self._taken: list[Work] = []
        self._thread = threading.Thread(target=self._loop, name="fathom-device", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def num_waiting_rows(self) -> int:
        return self._queue.num_rows

    @property
    def num_waiting_tokens(self) -> int:
        return self._queue.num_tokens

    @property
    def pressure(self) -> tuple[float, float]:
        """Seconds until what waits has left, and how full the queue is, 0 to 1."""
        return self._queue.wait_s, self._queue.fraction

    @property
    def num_running(self) -> int:
        return len(self._sequences) + len(self._reader)

    @property
    def num_pages_used(self) -> int:
        return self._sequences.tables.pages.num_used

    @property
    def num_pages_cached(self) -> int:
        return self._sequences.tables.pages.num_cached

    def submit(self, works: Sequence[Work]) -> None:
        """Queue the samples of one request, all or none. Raises OverloadError, LengthError, UnavailableError."""
        self.check()
        with self._changed:
            if self._is_closing:
                raise UnavailableError("the model is being unloaded; send the request again in a moment")
            self._sequences.refuse_oversized(works)
            self._queue.put(works)
            self._summon()

    def check(self) -> None:
        """Raise GroupLostError while the backend has lost what runs it."""
        if self._renewable:
            self._renewable.check()

    def withdraw(self, works: Sequence[Work]) -> None:
        """Forget those of a request's samples that still wait; those that run are let go at the next step."""
        with self._changed:
            self._queue.withdraw(works)

    def close(self) -> None:
        """Finish everything that was accepted, then free the backend. Blocks until done."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _summon(self) -> None:
        """Have what waits taken: on this event loop if it is soon done, else by the device thread."""
        is_quick = (
            self._queue.is_one_pass and self._one_pass.estimate_s(self._queue.num_rows) <= self._limits.max_inline_s
        )
        if not is_quick:
            self._changed.notify()
        elif not self._is_inline_due:
            self._is_inline_due = True
            asyncio.get_running_loop().call_soon(self._run_inline)

    def _run_inline(self) -> None:
        """One batch on the event loop, unless the device thread is at work: then it takes what waits."""
        is_free = self._device.acquire(blocking=False)
        with self._changed:
            self._is_inline_due = False
            if not is_free:
                self._changed.notify()
                return
            self._taken = self._queue.take(self._limits)
            overdue = self._queue.take_overdue()
        try:
            _resolve(_too_late(overdue))
            self._renew()
            _resolve(self._one_pass.run(self._taken))
            self._taken = []
        except Exception as error:
            self._give_up(error)
        finally:
            self._device.release()
        with self._changed:
            if len(self._queue):
                self._summon()

    def _loop(self) -> None:
        while self._wait():
            with self._device:
                try:
                    self._turn()
                except Exception as error:
                    self._give_up(error)
        with self._device:  # the event loop may be at work on the last batch
            self._executor.close()
            self._backend.close()

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._has_work() or self._is_closing)
            return self._has_work()

    def _has_work(self) -> bool:
        return bool(len(self._queue) or self.num_running or len(self._background))

    def _turn(self) -> None:
        self._renew()
        self._release_abandoned()
        with self._changed:
            self._taken = self._queue.take(self._limits)
            self._begin_reading()
            self._admit()
            if not len(self._background):
                self._begin_search()
            overdue = self._queue.take_overdue()
        _answer(_too_late(overdue))
        _answer(self._one_pass.run(self._taken))
        self._taken = []
        self._read(self._reader.next_batch())
        for works in self._generator.next_batches():
            self._step(works)
        self._advance_search()

    def _admit(self) -> None:
        self._sequences.resume()
        while self._sequences.has_room:
            admitted = self._sequences.admit_from(self._queue.next_prompts(WINDOW))
            if admitted is None:
                return
            self._queue.take_prompt(admitted)
            _start([admitted])

    def _begin_reading(self) -> None:
        works = self._queue.take_sequences(self._reader.num_free)
        _start(works)
        self._reader.add(works)

    def _begin_search(self) -> None:
        works = self._queue.take_search(self._limits)
        _start(works)
        self._background.begin(works)

    def _advance_search(self) -> None:
        while len(self._background):
            _answer([(work, ours(result)) for work, result in self._background.advance()])
            if self.num_running or self._queue.is_urgent:
                return

    def _read(self, works: list[SequenceWork]) -> None:
        told = run_isolated(self._reader.advance, works)
        ended = [(work, end) for work, end in zip(works, told, strict=True) if end is not None]
        self._reader.release([work for work, _ in ended])
        _answer(ended)

    def _step(self, works: list[GenerateWork]) -> None:
        rows = run_isolated(self._generator.logits, works)
        ends = [self._end_of(work, logits) for work, logits in zip(works, rows, strict=True)]
        ended = [(work, end) for work, end in zip(works, ends, strict=True) if end is not None]
        for work, _ in ended:
            self._sequences.release(work)
        _answer(ended)

    def _end_of(self, work: GenerateWork, logits: Array | Exception | None) -> object | None:
        if logits is None or isinstance(logits, Exception):
            return logits
        try:
            return self._generator.take_token(work, logits)
        except Exception as error:
            return ours(error)

    def _release_abandoned(self) -> None:
        for work in [work for work in self._sequences if work.future.done()]:
            self._sequences.release(work)
        self._reader.release([work for work in self._reader if work.future.done()])
        self._background.drop_abandoned()

    def _renew(self) -> None:
        """Go on with a backend that lost everything since, and is there again. Raises GroupLostError if it is not."""
        if self._renewable is None or not self._renewable.is_lost:
            return
        if self.num_running or len(self._background):
            self._renewable.check()
            raise GroupLostError(
                "what was kept of the request was lost with the ranks that held it; send it again", 1.0
            )
        self._sequences.forget()
        self._renewable.renew()

    def _give_up(self, error: Exception) -> None:
        """Answer everything in hand with the error: nothing that was accepted may be forgotten.

        If the backend is lost, what waits is in hand as well: nobody knows whether it comes back.
        """
        failed = [*self._taken, *self._reader, *self._sequences, *self._background.works]
        if isinstance(error, GroupLostError):
            with self._changed:
                failed += self._queue.clear()
        else:
            _log.error("everything in hand failed", exc_info=error)
        self._taken = []
        self._background.clear()
        self._reader.release(list(self._reader))
        for work in list(self._sequences):
            self._sequences.release(work)
        _answer([(work, ours(error)) for work in failed])


def _too_late(works: Sequence[Work]) -> list[tuple[Work, object]]:
    return [(work, work.too_late()) for work in works]


def _start(works: Sequence[Work]) -> None:
    now = time.perf_counter()
    for work in works:
        work.started_at = now


def _answer(ended: Sequence[tuple[Work, object]]) -> None:
    """Hand results to the event loops that wait for them, one wake-up each."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Work, object]]] = {}
    for work, result in ended:
        by_loop.setdefault(work.future.get_loop(), []).append((work, result))
    for loop, results in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, results)


def _resolve(results: Sequence[tuple[Work, object]]) -> None:
    now = time.perf_counter()
    for work, result in results:
        if work.future.done():
            continue
        if work.terms.deadline <= now:  # the alarm could not ring while the event loop itself was at work
            work.future.set_exception(work.too_late())
        elif isinstance(result, Exception):
            work.future.set_exception(result)
        else:
            work.future.set_result(result)
