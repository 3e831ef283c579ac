"""Work in forks of this process: they see all that it holds, share its memory, and send back plain values.

A fork has one thread. What torch's threads were doing in this process is lost in it, so that it must not wait for any
of them: it works with one thread of its own, for which torch needs no other one.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")

#: Seconds between two looks whether a place has become free.
_WAIT = 0.02

#: Seconds after which a fork that has used no processor time is given up: it may wait for a lock of a thread that this
#: process had and the fork has not.
STUCK = 60.0

#: Bytes that a fork may have sent before anybody receives them.
_ROOM = 2**20

_PR_SET_PDEATHSIG = 1


class LostError(Exception):
    """A fork could not be made, or ended or raised before it had sent what it was asked for."""


def possible() -> bool:
    """Return whether this process can be forked without risk.

    That is on Linux, from the main thread, where no accelerator is in use, torch's compiler has no workers, no debugger
    or tracer looks on, and not in a process that may have no children.
    """
    return (
        sys.platform == "linux"
        and threading.current_thread() is threading.main_thread()
        and not torch.cuda.is_initialized()
        and not torch.xpu.is_initialized()
        and "torch._inductor.async_compile" not in sys.modules
        and sys.gettrace() is None
        and not multiprocessing.current_process().daemon
    )


class Fork(Generic[T]):
    """A fork of this process that does something, and sends values while it does.

    Args:
        work: Is called in the fork, with a function that sends a value to this process. What it prints is sent too,
            and shown when it is received.

    Raises:
        LostError: The system has no room for another process.
    """

    def __init__(self, work: Callable[[Callable[[T], None]], None]) -> None:
        context = multiprocessing.get_context("fork")
        with contextlib.ExitStack() as unless_it_starts:
            try:
                self._mine, theirs = context.Pipe(duplex=False)
                unless_it_starts.callback(self._mine.close)
                with theirs, warnings.catch_warnings():
                    # Python 3.12 warns of threads, of which the fork knows nothing.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    with contextlib.suppress(OSError):  # it goes on while nobody receives
                        fcntl.fcntl(theirs.fileno(), fcntl.F_SETPIPE_SZ, _ROOM)
                    self._process = context.Process(target=_run, args=(work, theirs, os.getpid()))
                    self._process.start()
            except OSError as error:
                raise LostError from error
            unless_it_starts.pop_all()
        self.ended = False

    def __enter__(self) -> Fork[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, whatever it does."""
        if not self.ended:
            self._process.kill()
        self._process.join()
        self._process.close()
        self._mine.close()

    def received(self, *, wait: bool) -> Iterator[T]:
        """Yield what it has sent; with ``wait`` until it ends."""
        while not self.ended:
            if not self._sent(wait=wait):
                return
            try:
                value, printed = pickle.loads(self._mine.recv_bytes())  # noqa: S301  by ourselves
            except (EOFError, OSError):
                self.ended = True
                return
            except Exception:  # what cannot be made again here is done again here
                self._process.kill()
                self.ended = True
                return
            for stream, text in zip((sys.stdout, sys.stderr), printed, strict=True):
                if text:
                    stream.write(text)
            yield value

    def _sent(self, *, wait: bool) -> bool:
        """Return whether there is something to receive, be it the end; one that is stuck is ended."""
        used, since = -1.0, time.monotonic()
        while not self._mine.poll(1.0 if wait else 0.0):
            if not wait:
                return False
            now = _ticks_used(self._process.pid)
            if now != used:
                used, since = now, time.monotonic()
            elif time.monotonic() - since > STUCK:
                self._process.kill()
        return True

    def result(self) -> T:
        """Return the last value that it sends, when it has ended.

        Raises:
            LostError: It sent none.
        """
        found = [*self.received(wait=True)]
        if not found:
            raise LostError
        return found[-1]


def _ticks_used(pid: int | None) -> float:
    """Return the processor time of a process and its children, in ticks of the clock; -1 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return -1.0
    return sum(float(ticks) for ticks in fields[11:15])


def _run(work: Callable[[Callable[[Any], None]], None], pipe: Connection, parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it was to take us with it
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches the parent, which ends us
    torch.set_num_threads(1)
    # A lock of the parent's streams may be held by a thread that is not here.
    sys.stdout, sys.stderr = streams = io.StringIO(), io.StringIO()

    def send(value: object) -> None:
        printed = tuple(stream.getvalue() for stream in streams)
        for stream in streams:
            stream.seek(0)
            stream.truncate()
        pipe.send_bytes(pickle.dumps((value, printed)))

    try:
        work(send)
    except BaseException:
        os._exit(1)
    finally:
        pipe.close()
    os._exit(0)


class _Marks:
    """A file in memory that forks share, with a byte for each of so many numbers; processes lock single bytes of it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._file = os.memfd_create("pytest-bnn")  # a full disk is no matter of it
        os.write(self._file, bytes(count))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


class Places(_Marks):
    """So many places at work, of which each process may hold one; a process that ends leaves its place."""

    def take(self, until: Callable[[], bool]) -> bool:
        """Wait for a place and take it; return False where ``until`` came true before."""
        while not until():
            for place in range(self.count):
                with contextlib.suppress(BlockingIOError, PermissionError):
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                    return True
            time.sleep(_WAIT)
        return False

    def leave(self) -> None:
        """Leave the place of this process to others."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)


class Claims(_Marks):
    """Numbers from 0, each of which one process alone can claim."""

    def claim(self, number: int) -> bool:
        """Claim a number; return whether nobody had."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, number)  # a process that is killed leaves it
        try:
            free = os.pread(self._file, 1, number) == b"\0"
            if free:
                os.pwrite(self._file, b"\1", number)
            return free
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def left(self) -> bool:
        """Return whether some number is not claimed."""
        return 0 in os.pread(self._file, self.count, 0)
