"""How many cores an audit may use: those of the process, shared with the workers beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from pytest_bnn.options import in_force

W = TypeVar("W")
J = TypeVar("J")
T = TypeVar("T")


def share() -> int:
    """Return the number of threads that this process should use.

    What ``threads`` in the settings says; otherwise the cores that the process may run on, split over pytest-xdist's
    workers, and never more than torch was told to use (``OMP_NUM_THREADS``, ``torch.set_num_threads``).
    """
    chosen = in_force().threads
    if chosen:
        return chosen
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT", "")
    return max(1, min(cores // (int(workers) if workers.isdecimal() and int(workers) else 1), torch.get_num_threads()))


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
