"""Memory that was freed: kept by the C library while passes are drawn, and given back to the system at the end."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache

#: Parameters of glibc's ``mallopt``: memory freed at the end of the heap beyond which it goes back to the system, and
#: the size from which a piece of memory is had from the system by itself; 32 MiB is the most that glibc takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGE = 128 * 2**20, 32 * 2**20

#: What is raised where the C library is another one; Windows takes no library without a name.
_WITHOUT = OSError, AttributeError, TypeError


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what a pass frees for the next one, in this process from now on, where it can.

    Else a network of large outputs and few weights has its memory from the system anew in each pass, page by page,
    which takes longer than the pass itself. Whoever has set the environment's ``MALLOC_...``, or ``GLIBC_TUNABLES``
    of ``glibc.malloc``, has decided already.

    Source: mallopt(3).
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with suppress(*_WITHOUT):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)


def give_memory_back() -> None:
    """Let the C library give freed memory back to the system, where it can: what is taken next comes on top otherwise.

    Freed tensors leave holes that larger ones do not fit into, so that a process grows although it holds no more.
    """
    with suppress(*_WITHOUT):
        ctypes.CDLL(None).malloc_trim(0)
