"""Memory that was freed and that the C library keeps, given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_memory_back() -> None:
    """Let the C library give freed memory back to the system, where it can: what is taken next comes on top otherwise.

    Freed tensors leave holes that larger ones do not fit into, so that a process grows although it holds no more.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
