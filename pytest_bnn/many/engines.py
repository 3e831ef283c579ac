"""Where jobs run: in processes of this machine, or on a Ray cluster; each is a `concurrent.futures.Executor`."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import ModuleType, TracebackType
from typing import Any, ParamSpec, TypeVar

from pytest_bnn.errors import InputError
from pytest_bnn.sampling.shards import require_no_forks

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds in which a cluster's address answers, from wherever it is.
_ANSWERS_WITHIN = 10.0


class Processes(ProcessPoolExecutor):
    """Fresh processes of this machine: torch's threads do not survive a fork.

    They do not run the script that started them, so that it needs no ``if __name__ == "__main__"``. An interrupt
    reaches this process alone, which ends them; and they end when it does, whatever ended it.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start ``fn`` in a process, which may be started for it."""
        with _uninterrupted(), _without_script():
            return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; at once where nobody waits for what they do."""
        if cancel_futures and not wait:
            self._end()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # nobody waits for what they do
            self._end()
            self.shutdown(wait=True, cancel_futures=True)
        super().__exit__(kind, error, trace)

    def _end(self) -> None:
        for process in list((self._processes or {}).values()):
            process.terminate()


def processes(workers: int) -> Processes:
    """Return a pool of processes of this machine."""
    return Processes(workers)


def require_usable(executor: Executor | None) -> None:
    """Refuse what would hang, or start everything again and again.

    Raises:
        InputError: The executor forks this process; or this process is being started, by a script that it runs again.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InputError(
            "the script that starts processes is run by each of them again, and comes to its audit of many checkpoints",
            fix="put what the script does under if __name__ == '__main__':",
        )
    if executor is not None:
        require_no_forks(executor)


def started() -> None:
    """Do nothing: a process that has done it was started, and could import this."""


def _end_with_parent() -> None:
    """Let this process end with the one that started it; a killed one tells nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let processes that are started inside not see an interrupt from the keyboard; it reaches us at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would end the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_script() -> Iterator[None]:
    """Let processes that are started inside not run the script of this one, which they would import as a module."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


class RayExecutor(Executor):
    """Gives jobs to Ray, which repeats the task of a worker that died. Use `ray_cluster` to make one."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote: dict[Callable[..., Any], Any] = {}

    @property
    def workers(self) -> int:
        """How many cores the cluster has."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def put(self, content: bytes) -> Any:
        """Put bytes into the cluster's memory, once for all tasks that are given what this returns."""
        return self._ray.put(content)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start ``fn`` on the cluster, on one core."""
        if fn not in self._remote:
            self._remote[fn] = self._ray.remote(num_cpus=1, max_retries=3)(fn)
        future: Future[T] = self._remote[fn].remote(*args, **kwargs).future()
        return future


def _require_answer(address: str | None) -> None:
    """Refuse an address at which nobody listens; Ray would try it for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # a word of Ray's, such as auto
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_WITHIN).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str | None, error: Exception) -> InputError:
    return InputError(
        f"the Ray cluster {address or 'of this machine'} does not answer ({error})",
        fix="start it with `ray start --head`, or leave out --ray-address for one that starts here",
    )


@contextmanager
def ray_cluster(address: str | None = None, workers: int | None = None) -> Iterator[RayExecutor]:
    """Connect to a Ray cluster, and leave it at the end.

    Args:
        address: The cluster's, ``"auto"`` for the one of this machine; None starts one here, on 127.0.0.1, without
            dashboard and usage statistics, and stops it at the end.
        workers: The cores of a cluster that is started here; all when None.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise InputError(f"Ray cannot be imported ({error})", fix="pip install 'pytest-bnn[ray]'") from error
    if ray.is_initialized():  # by who calls us, and it stays his
        if address is not None:
            raise InputError("Ray is connected to a cluster already", fix="leave out the address")
        yield RayExecutor(ray)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _require_answer(address)
    quiet = {"configure_logging": False, "log_to_driver": False}
    try:
        if address is None:
            ray.init(num_cpus=workers or os.cpu_count(), include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise _no_answer(address, error) from error
    try:
        yield RayExecutor(ray)
    finally:
        ray.shutdown()
