"""Where the process stands between start and exit."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lifecycle:
    """Draining: nothing new is accepted, what was accepted is finished."""

    is_draining: bool = False
