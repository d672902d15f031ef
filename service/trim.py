"""Memory of an unloaded model back to the operating system."""

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Free what only cycles hold, then let the C library return its free pages; glibc keeps them otherwise."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
