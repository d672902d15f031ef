"""Where the process stands between start and exit."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lifecycle:
    """Loaded: every model was tried. Draining: nothing new is accepted, what was accepted is finished."""

    is_loaded: bool = False
    is_draining: bool = False
    # Called when draining begins, with the seconds there are for it, and again with 0 when it is cut short.
    closers: list[Callable[[float], object]] = field(default_factory=list)

    def close_within(self, seconds: float) -> None:
        """Tell everything beside the HTTP server to finish what it accepted. To be called on the event loop."""
        for close in self.closers:
            close(seconds)
