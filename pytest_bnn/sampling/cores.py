"""Which cores this process may use, and how many of them nobody else keeps busy."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Seconds over which other processes' use of the cores is measured, at the least.
_LEAST = 0.1

#: Seconds after which it is measured again.
_LASTS = 5.0

_PROC_STAT = Path("/proc/stat")
_CGROUPS = Path("/sys/fs/cgroup")


def usable() -> int:
    """Return how many cores this process may use: those that it may run on, and no more than its cgroup's quota.

    Source: cgroups(7) and the kernel's documentation of ``cpu.max`` (version 2) and ``cpu.cfs_quota_us`` (version 1).
    """
    return max(1, math.ceil(min(len(_allowed()), _quota())))


def free() -> int:
    """Return how many of the `usable` cores other processes leave free now, at least 1.

    What this process and the children that it has waited for use is not counted. Where the system does not tell
    (other than Linux), all are.
    """
    before, measured = _known[-1]
    if measured is not None and time.monotonic() - before.at < _LASTS:
        return _beside(measured)
    now = _look()
    if now is None:
        return usable()
    if now.at - before.at < _LEAST:
        time.sleep(_LEAST - (now.at - before.at))
        now = _look() or now
    if measured is None or now.at - before.at >= _LASTS:
        elsewhere = max(0.0, (now.busy - before.busy) - (now.own - before.own)) / (now.at - before.at)
        measured = round(elsewhere)
        _known[-1] = (now, measured)
    return _beside(measured)


def _beside(busy: int) -> int:
    """Return how many cores are free beside so many busy ones: others may run where a quota lets this process not."""
    return max(1, min(usable(), len(_allowed()) - busy))


@dataclass(frozen=True, slots=True)
class _Use:
    """Seconds of processor time until a moment: of all processes on the allowed cores, and of this one."""

    at: float
    busy: float
    own: float


def _look() -> _Use | None:
    try:
        lines = _PROC_STAT.read_text(encoding="ascii").splitlines()
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    allowed, busy = {f"cpu{core}" for core in _allowed()}, 0
    for line in lines:
        name, *counts = line.split()
        if name in allowed:
            user, nice, system, _, _, interrupts, soft, *steal = (int(count) for count in counts)
            busy += user + nice + system + interrupts + soft + (steal[0] if steal else 0)
    return _Use(at=time.monotonic(), busy=busy / tick, own=sum(os.times()[:4]))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


@cache
def _quota() -> float:
    """Return the cores that the cgroups of this process allow; infinite where they set no limit. Read once."""
    found = math.inf
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            root = _CGROUPS if not controllers else _CGROUPS / "cpu" if "cpu" in controllers.split(",") else None
            folder = None if root is None else root / name.lstrip("/")
            while root is not None and folder is not None:
                found = min(found, _quota_of(folder))
                folder = None if folder == root else folder.parent
    return found


def _quota_of(folder: Path) -> float:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
        period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        return math.inf if int(quota) <= 0 else int(quota) / int(period)
    return math.inf


#: The last look, and how many cores others kept busy until then, where that is known.
_known: list[tuple[_Use, int | None]] = [(_look() or _Use(0.0, 0.0, 0.0), None)]
