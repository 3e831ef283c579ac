"""Tasks that are done side by side, a few at a time, whose results come in the order of the tasks."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from typing import Any, Generic, TypeVar

from pytest_bnn.data.large import Workers
from pytest_bnn.errors import InputError, in_words

T = TypeVar("T")
R = TypeVar("R")

#: Of this process; a fork has it too, with another number of its own.
_HERE = uuid.uuid4().hex


class Crew:
    """Workers that are there when they are needed, and others in their place where they break.

    Args:
        workers: An executor, which stays as it is; or what makes one, of which the last one is shut down here.
    """

    def __init__(self, workers: Workers) -> None:
        self._make = None if isinstance(workers, Executor) else workers
        self._executor = workers if isinstance(workers, Executor) else None

    @property
    def renewable(self) -> bool:
        """Whether others can take the place of workers that broke."""
        return self._make is not None

    @property
    def executor(self) -> Executor:
        """The workers, which are made when they are first needed."""
        if self._executor is None:
            assert self._make is not None
            self._executor = self._make()
        return self._executor

    def close(self) -> None:
        """Let the workers go that were made here; others are made when they are needed again."""
        if self._make is not None and self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


class InOrder(Generic[T, R]):
    """The results of tasks, in their order: whoever was done first, and whoever died.

    At most twice as many tasks as workers are under way; further ones are taken from ``tasks`` when results are asked
    for. It is one task until it is known that other processes do them, by the kind of executor or by who did the last
    one: what works in this process shares its random state, with which this thread goes on at each result. Where a
    worker dies, those under way are done again, one by one; the one at which a worker dies again is to blame.

    Args:
        crew: Who does them.
        do: Gives the result of a task; it crosses process boundaries, and does not raise.
        tasks: Tasks.
        shared: The arguments of ``do`` before the task.
        name: What a task is, for messages.
    """

    def __init__(
        self,
        crew: Crew,
        do: Callable[..., R],
        tasks: Iterator[T],
        *,
        shared: tuple[Any, ...] = (),
        name: Callable[[T], str] = str,
    ) -> None:
        self._crew, self._do, self._tasks, self._shared, self._name = crew, do, tasks, shared, name
        self._under_way: deque[tuple[T, Future[tuple[str, R]] | None]] = deque()
        self._elsewhere = False

    def __iter__(self) -> Iterator[tuple[T, R]]:
        """Yield each task with its result."""
        try:
            while True:
                self._fill()
                if not self._under_way:
                    return
                task, future = self._under_way.popleft()
                yield task, self._result(task, future)
        finally:
            for _, future in self._under_way:
                if future is not None:
                    future.cancel()
            self._under_way.clear()

    def again(self, task: T) -> R:
        """Do one more task, now."""
        return self._result(task, self._submitted(task))

    def _fill(self) -> None:
        if any(future is None for _, future in self._under_way):  # suspects are done one by one
            return
        executor = self._crew.executor
        apart = self._elsewhere or isinstance(executor, ProcessPoolExecutor)
        most = 2 * workers_of(executor) if apart else 1
        while len(self._under_way) < most:
            task = next(self._tasks, None)
            if task is None:
                return
            self._under_way.append((task, self._submitted(task)))

    def _submitted(self, task: T) -> Future[tuple[str, R]]:
        try:
            told: Callable[..., tuple[str, R]] = _told
            return self._crew.executor.submit(told, self._do, *self._shared, task)
        except Exception as error:
            refused: Future[tuple[str, R]] = Future()
            refused.set_exception(error)
            return refused

    def _result(self, task: T, future: Future[tuple[str, R]] | None) -> R:
        try:
            who, result = (self._submitted(task) if future is None else future).result()
        except BrokenExecutor as error:
            self._crew.close()
            if future is None or not self._crew.renewable:
                raise self._lost(task, error) from error
            self._under_way = deque((waiting, None) for waiting, _ in self._under_way)
            return self._result(task, None)
        except Exception as error:
            raise InputError(
                f"the executor lost {self._name(task)} ({in_words(error)})",
                fix="see what its workers say; with --jobs 1, and without executor=, it is done in this process",
            ) from error
        self._elsewhere = who != _this_process()
        return result

    def _lost(self, task: T, error: BaseException) -> InputError:
        often = "twice" if self._crew.renewable else "while it worked"
        return InputError(
            f"the process that had {self._name(task)} was ended {often} ({in_words(error)})",
            fix="give it more memory, or less to do at a time: --shard-size N, --jobs N",
        )


def _told(do: Callable[..., R], *arguments: Any) -> tuple[str, R]:
    """Return which process does something, and what it gives."""
    return _this_process(), do(*arguments)


def _this_process() -> str:
    return f"{_HERE} {os.getpid()}"


def require_no_forks(executor: Executor) -> None:
    """Refuse an executor whose processes would wait for ever.

    Raises:
        InputError: It forks this process.
    """
    context = getattr(executor, "_mp_context", None) if isinstance(executor, ProcessPoolExecutor) else None
    if context is not None and context.get_start_method() == "fork":
        raise InputError(
            "the executor forks its processes, in which torch waits for threads that are not there",
            fix="give it mp_context=multiprocessing.get_context('spawn'), or leave it out",
        )


def workers_of(executor: Executor) -> int:
    """Return how many tasks an executor does at a time, as far as it tells."""
    told = getattr(executor, "_max_workers", None) or getattr(executor, "workers", None)
    return told if isinstance(told, int) and told > 0 else os.cpu_count() or 1
