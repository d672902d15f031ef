"""The reward that asks somebody else; here a Python callable that was registered, elsewhere an HTTP endpoint.

Verifiers hang, raise and lie; each of these ends the search with an error that says which.
"""

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, TypeAlias

from models.errors import VerifierError
from service.cola.evaluator import Answer
from service.cola.reward import Decoded

# (sample, answer) as text -> reward in 0..1, 1 for an answer that passes.
Check: TypeAlias = Callable[[str, str], float]
Ask: TypeAlias = Callable[[str, str], Awaitable[object]]

# A callable that hangs keeps its thread for ever, so there may be only so many of one verifier.
_MAX_RUNNING = 32


class Verifier(Decoded):
    """What a verifier says of the chain's own answer, 0..1."""

    name: ClassVar[str] = "verifier"
    deterministic: ClassVar[bool] = False
    ceiling: ClassVar[float | None] = 1.0

    def __init__(self, ask: Ask, sample: str, label: str, timeout_s: float) -> None:
        super().__init__()
        self._ask, self._sample, self._label, self._timeout_s = ask, sample, label, timeout_s
        self._said: dict[str, float] = {}

    async def _values(self, answers: Sequence[Answer]) -> Sequence[float]:
        """The same text is asked about once."""
        new = {answer.text for answer in answers if answer.token_ids} - self._said.keys()
        asked = [asyncio.ensure_future(self._about(text)) for text in sorted(new)]
        try:
            self._said.update(await asyncio.gather(*asked))
        finally:
            for one in asked:
                one.cancel()
        return [self._said[answer.text] if answer.token_ids else 0.0 for answer in answers]

    async def _about(self, text: str) -> tuple[str, float]:
        try:
            said = await asyncio.wait_for(self._ask(self._sample, text), self._timeout_s)
        except TimeoutError as error:
            raise VerifierError(
                f"{self._label} gave no answer within {self._timeout_s} s; make it faster or raise the limit"
            ) from error
        return text, self._checked(said)

    def _checked(self, said: object) -> float:
        if isinstance(said, bool | int | float) and math.isfinite(said) and 0 <= said <= 1:
            return float(said)
        raise VerifierError(f"{self._label} said {said!r:.80}; rewards are numbers from 0 to 1")


class Callables:
    """Python verifiers by name."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._num_running: dict[str, int] = {}

    def register(self, name: str, check: Check) -> None:
        """Let requests name `check`, which is called in threads, several at a time."""
        self._checks[name] = check

    def verifier(self, name: str, sample: str, timeout_s: float) -> Verifier:
        """The reward of a registered callable. Raises VerifierError listing the names there are."""
        if name not in self._checks:
            raise VerifierError(f"verifier {name!r} is not registered; there are {sorted(self._checks)}")
        return Verifier(lambda *said: self._call(name, *said), sample, f"verifier {name!r}", timeout_s)

    async def _call(self, name: str, sample: str, answer: str) -> object:
        if self._num_running.get(name, 0) >= _MAX_RUNNING:
            raise VerifierError(f"verifier {name!r} has {_MAX_RUNNING} calls that have not come back; mend it")
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        self._num_running[name] = self._num_running.get(name, 0) + 1

        def come_back(settle: Callable[[], None]) -> None:
            self._num_running[name] -= 1
            if not future.done():
                settle()

        def run() -> None:
            settle = _outcome(self._checks[name], sample, answer, future, name)
            if not loop.is_closed():
                loop.call_soon_threadsafe(come_back, settle)

        threading.Thread(target=run, name=f"verifier-{name}", daemon=True).start()
        said: object = await future
        return said


def _outcome(check: Check, sample: str, answer: str, future: "asyncio.Future[object]", name: str) -> Callable[[], None]:
    """Call `check`; what is to be done with the future then."""
    try:
        said = check(sample, answer)
    except Exception as error:
        failed = VerifierError(f"verifier {name!r} raised {type(error).__name__}: {error}; mend it")
        return lambda: future.set_exception(failed)
    return lambda: future.set_result(said)


VERIFIERS = Callables()
