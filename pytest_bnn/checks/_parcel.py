"""What goes to workers once: the networks, and the data that they read by themselves; nothing of it stays behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import platform
import re
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pytest_bnn.errors import InputError, in_words
from pytest_bnn.sampling.shards import require_no_forks

#: Files of processes that were killed go when they are older, in seconds, and no process has that number.
_OLD = 86400


class StaysHereError(InputError):
    """The model, its teacher or the data cannot be sent to another process."""


class Parcel:
    """What goes to workers once: a file for processes of this machine, an object of the cluster, or the bytes.

    The file has no name where a system lets others open it without one (Linux), so that it goes with this process,
    however that ends.

    Args:
        content: What every worker needs.
        executor: The workers.

    Raises:
        StaysHereError: It cannot be sent.
        InputError: The executor forks, or there is no room for a file.
    """

    def __init__(self, content: object, executor: Executor) -> None:
        require_no_forks(executor)
        try:
            packed = pickle.dumps((sys.path, pickle.dumps(content)))
        except Exception as error:
            raise StaysHereError(
                f"the model, its teacher or the data cannot be sent to other processes ({in_words(error)})",
                fix="define their classes in a module, without lambda functions; or judge them in this process: "
                "with --jobs 1, or without executor=",
            ) from error
        self.digest = hashlib.sha256(packed).hexdigest()
        put = getattr(executor, "put", None)
        self.content: Any = packed
        if put is not None:
            self.content = put(packed)
        elif isinstance(executor, ProcessPoolExecutor | ThreadPoolExecutor):
            self.content, remove = _nameless(packed) or _named(packed)
            weakref.finalize(self, remove)

    @property
    def shared(self) -> tuple[str, Any]:
        """The arguments of a task before the job."""
        return self.digest, self.content


def unpacked(digest: str, content: Any) -> Any:
    """Return what a parcel holds, in a worker.

    Raises:
        ValueError: It is another one: the process that sent it has closed it.
    """
    packed = Path(content).read_bytes() if isinstance(content, str) else content
    if hashlib.sha256(packed).hexdigest() != digest:
        raise ValueError("what was sent is closed, and another file has its place")
    paths, inner = pickle.loads(packed)  # noqa: S301  written by us, a moment ago
    sys.path.extend(path for path in paths if path not in sys.path)
    return pickle.loads(inner)  # noqa: S301


def _nameless(packed: bytes) -> tuple[str, Callable[[], object]] | None:
    """Write a file without a name; None where other processes could not open it."""
    me = Path(f"/proc/{os.getpid()}")
    if not me.exists():
        return None
    with _place():
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  it is open for as long as the parcel is there
    try:
        path = me / "fd" / str(file.fileno())
        mine = me.stat().st_uid == os.geteuid() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        mine = False
    if not mine:
        file.close()
        return None
    try:
        with _room():
            _write(file, packed)
    except BaseException:
        file.close()
        raise
    return str(path), file.close


def _named(packed: bytes) -> tuple[str, Callable[[], object]]:
    """Write a file with a name that says which process it is of."""
    with _place():
        _sweep(Path(tempfile.gettempdir()))
        handle, path = tempfile.mkstemp(prefix=f"{_prefix()}{os.getpid()}-", suffix=".parcel")
    remove = partial(Path(path).unlink, missing_ok=True)
    try:
        with _room(), os.fdopen(handle, "wb", buffering=0) as file:
            _write(file, packed)
    except BaseException:
        remove()
        raise
    return path, remove


def _write(file: Any, packed: bytes) -> None:
    left = memoryview(packed)
    while left:
        left = left[file.write(left) :]


def _prefix() -> str:
    return f"pytest-bnn-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"


def _sweep(folder: Path) -> None:
    """Remove files of processes of this machine that are gone."""
    if os.name != "posix":  # elsewhere nothing asks for a process without ending it
        return
    for path in folder.glob(f"{_prefix()}*.parcel"):
        found = re.fullmatch(r"(\d+)-.*", path.name.removeprefix(_prefix()))
        with contextlib.suppress(OSError):
            if found and path.stat().st_mtime < time.time() - _OLD and not _runs(int(found[1])):
                path.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextmanager
def _refused(problem: str, fix: str) -> Iterator[None]:
    """Tell an error of the system as one of what it was for."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{problem} ({in_words(error)})", fix=fix) from error


def _place() -> AbstractContextManager[None]:
    return _refused("there is no folder for what other processes need", "set TMPDIR to a folder that can be written to")


def _room() -> AbstractContextManager[None]:
    return _refused(
        "the model cannot be written for other processes",
        f"make room in {tempfile.gettempdir()}, or set TMPDIR to a folder with room",
    )
