"""The memory that models share: whoever was not asked for longest makes room, and nobody is sent away under a request.

Measured by the files a model is loaded from. Knows no repository and no runtime.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from models.errors import ArtifactError, UnavailableError
from service.repository.slots import Key, Slot

Evict = Callable[[Key, Slot], Awaitable[None]]


class Room:
    """A budget of `max_bytes`; 0 is none. `ready` lists what could leave, `evict` frees one of them once it is idle."""

    def __init__(
        self, max_bytes: int, patience_s: float, ready: Callable[[], Iterable[tuple[Key, Slot]]], evict: Evict
    ) -> None:
        self._max_bytes, self._patience_s, self._ready, self._evict = max_bytes, patience_s, ready, evict
        self._num_bytes = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()

    def has(self, num_bytes: int) -> bool:
        """Whether a model fits beside those that are there."""
        return not self._max_bytes or self._num_bytes + num_bytes <= self._max_bytes

    async def take(self, key: Key, num_bytes: int) -> None:
        """Reserve room, making it if need be; `give` it back when the model is freed.

        Raises ArtifactError if the model alone is too large, UnavailableError if nobody leaves in time.
        """
        if self._max_bytes and num_bytes > self._max_bytes:
            raise ArtifactError(
                f"model {key[0]!r} version {key[1]!r} takes {num_bytes} bytes and FATHOM_MODELS_BYTES is "
                f"{self._max_bytes}; raise it, or choose a smaller backend or export"
            )
        async with self._turn:
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._wait_for(num_bytes)
            except TimeoutError as error:
                raise UnavailableError(
                    f"model {key[0]!r} takes {num_bytes} bytes, and {self._num_bytes} of FATHOM_MODELS_BYTES = "
                    f"{self._max_bytes} are held by models that are at work; try again, or raise it"
                ) from error
            self._num_bytes += num_bytes

    def give(self, num_bytes: int) -> None:
        """A model is freed, or was not loaded after all."""
        self._num_bytes -= num_bytes
        self._changed.set()

    def look_again(self) -> None:
        """There is a model that could leave."""
        self._changed.set()

    async def _wait_for(self, num_bytes: int) -> None:
        while not self.has(num_bytes):
            self._changed.clear()
            if not self._leaving:
                self._send_away()
            await self._changed.wait()

    def _send_away(self) -> None:
        """Begin to free the model that was asked for longest ago, an idle one if there is one."""
        found = min(self._ready(), key=lambda one: (one[1].num_holders > 0, one[1].used_at), default=None)
        if found:
            task = asyncio.ensure_future(self._evict(*found))
            self._leaving.add(task)
            task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        self._changed.set()
