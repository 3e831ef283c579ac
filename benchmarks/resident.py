"""How much memory processes have resident. Linux only.

``ru_maxrss`` does not do: a process inherits there the peak of the one that started it.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def forget_peak() -> None:
    """Let this process's peak start from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def kib(name: str, process: int | str = "self") -> float:
    """Return a figure of a process: ``VmHWM``, its resident peak, or ``VmRSS``, what is resident."""
    text = Path(f"/proc/{process}/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return float(line.split()[1])


@contextmanager
def peaks_of_children(every: float = 0.1) -> Iterator[dict[int, float]]:
    """Give the peaks of the processes that `multiprocessing` starts inside, in KiB, looked at every so many seconds."""
    found: dict[int, float] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(every):
            for child in multiprocessing.active_children():
                with suppress(OSError, ValueError):  # it has ended
                    assert child.pid is not None
                    found[child.pid] = kib("VmHWM", child.pid)

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()
