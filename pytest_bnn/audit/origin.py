"""Where an audit ran: at which commit of the working folder, and on which machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

#: A repository on a slow disk is no reason to wait for its name.
_SECONDS = 5.0


def commit(folder: Path | None = None) -> str:
    """Return the commit of a folder, ``"2492b3f8c1d0 + changes"`` where tracked files differ from it.

    It is what git says, asked once a process; empty where there is no git, no repository or no commit.

    Args:
        folder: The folder; the working folder when None.
    """
    return _commit((folder or Path.cwd()).resolve())


@cache
def _commit(folder: Path) -> str:
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not head:
        return ""
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    return f"{head} + changes" if changed else head


def _git(folder: Path, *arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    # Asking must neither write to the repository nor start what its configuration names.
    command = [git, "-c", "core.fsmonitor=false", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


@cache
def machine() -> str:
    """Return the processor, the cores that this process may use, and the operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    system = f"{platform.system()} {platform.release()} {platform.machine()}".strip()
    words = (_processor(), f"{cores} core{'' if cores == 1 else 's'}", system)
    return ", ".join(word for word in words if word)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found = next(named, "") or platform.processor()
    return "" if found == platform.machine() else found
