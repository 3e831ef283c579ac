"""How many cores this process may use, shared with the workers beside it, and how it uses them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from pytest_bnn.options import in_force
from pytest_bnn.sampling import cores

W = TypeVar("W")
J = TypeVar("J")
T = TypeVar("T")


#: Whether other processes of the same audit work beside this one, each with one thread.
_one_of_many: ContextVar[bool] = ContextVar("pytest_bnn_one_of_many", default=False)


def share() -> int:
    """Return the number of threads that this process should use.

    What ``threads`` in the settings says; 1 inside `one_thread_each`; otherwise the cores that are `allotted` and that
    nobody else keeps busy.
    """
    chosen = in_force().threads
    if chosen:
        return chosen
    return 1 if _one_of_many.get() else max(1, min(allotted(), cores.free()))


def allotted() -> int:
    """Return how many cores are this process's own: those that it may run on, split over pytest-xdist's workers.

    They are never more than torch was told to use (``OMP_NUM_THREADS``, ``torch.set_num_threads``).
    """
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT", "")
    found = cores.usable() // (int(workers) if workers.isdecimal() and int(workers) else 1)
    return max(1, min(found, torch.get_num_threads()))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let this process be one of several that share the cores: the share is one thread, unless settings say more."""
    token = _one_of_many.set(True)
    try:
        yield
    finally:
        _one_of_many.reset(token)


@contextmanager
def limited(threads: int | None = None) -> Iterator[None]:
    """Set torch's number of threads to ``threads``, or to the `share`, and put it back, also after errors."""
    before = torch.get_num_threads()
    torch.set_num_threads(share() if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(workers: Sequence[W], jobs: Sequence[J], do: Callable[[W, J], T]) -> list[T]:
    """Do jobs without gradients, each by the next worker that is free: a thread each, with one torch thread.

    The first worker is the thread that asks.

    Returns:
        ``do(worker, job)`` of each job, in their order.
    """
    results: list[Any] = [None] * len(jobs)
    places = iter(range(len(jobs)))  # next() on it is atomic

    def run(worker: W) -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            for place in places:
                results[place] = do(worker, jobs[place])

    with limited(1), ThreadPoolExecutor(len(workers), "pytest-bnn") as pool:
        others = [pool.submit(run, worker) for worker in workers[1 : len(jobs)]]
        run(workers[0])
        for other in others:
            other.result()
    return results
