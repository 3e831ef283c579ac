"""Checks and subjects of one audit side by side: this process and forks of it take them as they come.

Each has one thread, so that nobody waits for threads of others, and the numbers are those of one process alone. What
checks have drawn that the report shows is sent back with their evidence. Where a fork is lost, what it had begun is
done here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

from pytest_bnn.audit.forks import Claims, Fork, LostError, Places, possible
from pytest_bnn.options import in_force
from pytest_bnn.progress import unwatched
from pytest_bnn.sampling import cores
from pytest_bnn.sampling.threads import allotted, one_thread_each, share

T = TypeVar("T")

#: The places at work beside this process, of the audit that runs; None where it works alone.
_places: ContextVar[Places | None] = ContextVar("pytest_bnn_places", default=None)


def jobs() -> int:
    """Return how many processes an audit may use.

    One where this process cannot be forked, or shall have several threads. Otherwise ``jobs`` in the settings, where it
    is given, or the cores of this process; beside others' work one more than the cores that these leave free, since one
    thread each suffers little from sharing a core.
    """
    settings = in_force()
    if settings.threads > 1 or not possible():
        return 1
    return settings.jobs or min(allotted(), cores.free() + 1)


def in_words() -> str:
    """Say with how many threads work is done here: ``"2"``, or inside `side_by_side` ``"1 in each of 2 processes"``."""
    places = _places.get()
    return f"1 in each of {places.count + 1} processes" if places is not None and places.count else str(share())


@contextmanager
def side_by_side(parts: int) -> Iterator[None]:
    """Let work inside be shared with forks, where this process can be forked; inside of another such block with its.

    Args:
        parts: How many parts it has, at the least; a single one is not shared.
    """
    if parts < 2 or _places.get() is not None or in_force().threads > 1 or not possible():
        yield
        return
    with Places(jobs() - 1) as places, one_thread_each():
        token = _places.set(places)
        try:
            yield
        finally:
            _places.reset(token)


class Elsewhere(Generic[T]):
    """Something that a fork does meanwhile, or that is done; `elsewhere` makes one."""

    def __init__(self, do: Callable[[], T], fork: Fork[T] | None, received: Callable[[T], None]) -> None:
        self._do, self._fork, self._received = do, fork, received

    def result(self) -> T:
        """Return what it gives, from the fork; done here where that gives nothing, so that what is raised is raised."""
        if self._fork is not None:
            try:
                found = self._fork.result()
            except LostError:
                pass
            else:
                self._received(found)
                return found
        return self._do()


@contextmanager
def elsewhere(do: Callable[[], T], *, received: Callable[[T], None]) -> Iterator[Elsewhere[T]]:
    """Begin something in a fork, which is ended at the end of the block; where there are none, do it at once.

    Args:
        do: Does it, and returns a plain value.
        received: Is given that value where a fork has done it, of which this process knows no more.
    """
    places = _places.get()
    if places is None or not places.count:
        done = do()
        yield Elsewhere(lambda: done, None, received)
        return

    def work(send: Callable[[T], None]) -> None:
        if places.take(lambda: False):
            with unwatched():
                value = do()
            places.leave()  # it may take a while until somebody receives
            send(value)

    try:
        fork = Fork[T](work)
    except LostError:
        yield Elsewhere(do, None, received)
        return
    with fork:
        yield Elsewhere(do, fork, received)


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """One of several things to do.

    Attributes:
        do: Does it, and returns a plain value.
        here: Whether it can be done in this process alone.
        long: Whether it takes longer than most: the sooner it begins, the less others wait for it in the end.
    """

    do: Callable[[], T]
    here: bool = False
    long: bool = False


def each(
    tasks: Sequence[Task[T]],
    *,
    first_here: Collection[int] = (),
    begin: Callable[[int, Collection[int], int], None],
    take: Callable[[int, T], None],
) -> dict[int, T]:
    """Do all tasks, each once, here or in forks that help.

    Args:
        tasks: In their order.
        first_here: The numbers of those that this process begins with, in this order, and forks end with.
        begin: Told in this process of each task that it begins, of those that are not done then, and how many processes
            are at work on them.
        take: Told in this process of each result of a fork.

    Returns:
        What each task gave, by its number.
    """
    found: dict[int, T] = {}

    def do(number: int, ahead: Iterable[int], processes: int) -> None:
        begin(number, [other for other in ahead if other != number and other not in found], processes)
        found[number] = tasks[number].do()

    places = _places.get()
    if places is not None and places.count and len(tasks) > 1:
        _shared(tasks, first_here, found, do, take, places)
    for number in range(len(tasks)):
        if number not in found:  # this process is alone, or a fork was lost
            do(number, range(number, len(tasks)), 1)
    return found


def _shared(
    tasks: Sequence[Task[T]],
    first_here: Collection[int],
    found: dict[int, T],
    do: Callable[[int, Iterable[int], int], None],
    take: Callable[[int, T], None],
    places: Places,
) -> None:
    others = sorted((n for n in range(len(tasks)) if n not in first_here), key=lambda n: not tasks[n].long)
    here, elsewhere = [*first_here, *others], [*others, *reversed([*first_here])]
    forkable = [number for number in elsewhere if not tasks[number].here]
    at_work = set[int]()

    def help_(send: Callable[[tuple[int, T]], None]) -> None:
        if places.take(lambda: not claims.left()):
            _places.set(None)
            with unwatched():
                for number in forkable:
                    if claims.claim(number):
                        send((number, tasks[number].do()))

    def receive(fork: Fork[tuple[int, T]], *, wait: bool) -> None:
        for number, value in fork.received(wait=wait):
            found[number] = value
            at_work.add(id(fork))
            take(number, value)

    with Claims(len(tasks)) as claims, ExitStack() as stack:
        count = min(places.count, len(forkable))
        forks: list[Fork[tuple[int, T]]] = []
        for _ in range(count):
            try:
                fork = Fork[tuple[int, T]](help_)
            except LostError:
                break  # there are as many as could be made
            forks.append(stack.enter_context(fork))
        for number in here:
            if claims.claim(number):
                do(number, here, 1 + len(at_work))
                for fork in forks:
                    receive(fork, wait=False)
        for fork in forks:
            receive(fork, wait=True)
