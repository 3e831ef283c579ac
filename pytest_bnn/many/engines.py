"""Where jobs run: in processes of this machine, or on a Ray cluster; each is a `concurrent.futures.Executor`."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from pytest_bnn.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


def processes(workers: int) -> ProcessPoolExecutor:
    """Return a pool of fresh processes: torch's threads do not survive a fork."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


class RayExecutor(Executor):
    """Gives jobs to Ray, which repeats the task of a worker that died. Use `ray_cluster` to make one."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote: dict[Callable[..., Any], Any] = {}

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start ``fn`` on the cluster, on one core."""
        if fn not in self._remote:
            self._remote[fn] = self._ray.remote(num_cpus=1, max_retries=3)(fn)
        future: Future[T] = self._remote[fn].remote(*args, **kwargs).future()
        return future


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
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"configure_logging": False, "log_to_driver": False}
    try:
        if address is None:
            ray.init(num_cpus=workers or os.cpu_count(), include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise InputError(
            f"the Ray cluster {address or 'of this machine'} does not answer ({error})",
            fix="start it with `ray start --head`, or leave out --ray-address for one that starts here",
        ) from error
    try:
        yield RayExecutor(ray)
    finally:
        ray.shutdown()
