"""The shards of a subject's labelled examples: who judges them, and what the first ones say together."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy
from numpy.typing import NDArray

from pytest_bnn.checks._parcel import Parcel, StaysHereError
from pytest_bnn.checks._predictions import evaluated, tasks_of
from pytest_bnn.checks._shards import WHERE, Job, Refused, Result, Setup, judged, perform
from pytest_bnn.checks._slices import names_of
from pytest_bnn.checks._tallies import Tally, merged
from pytest_bnn.checks.finding import NotHereError
from pytest_bnn.data.large import LargeData, Part
from pytest_bnn.data.lazy import Source, Unreadable
from pytest_bnn.errors import InputError
from pytest_bnn.options import in_force
from pytest_bnn.progress import so_far
from pytest_bnn.sampling.shards import Crew, InOrder
from pytest_bnn.subject import Subject

#: Examples by which workers find out how the networks take them.
_FEW = 4

#: So many times as long as for all before, a stream may give examples that it gave already.
_ROUNDS = 4

#: Between looks at the labels there are so many times as many shards.
_GROWTH = 1.5


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Look:
    """All shards up to one.

    Attributes:
        tally: Of them together.
        shards: How many there are.
        tried: How many examples they have.
        unreadable: Those that could not be read.
        shares: Whether the outputs are probabilities already.
        no_groups: What the user's ``slices`` raised, where it did.
        stays_here: Why this process judged them though others could have helped; empty where they did.
        last: Whether there are no more.
        cut: Whether the stream that they come from goes on behind them.
    """

    tally: Tally
    shards: int
    tried: int
    unreadable: tuple[Unreadable, ...]
    shares: bool
    no_groups: InputError | None
    stays_here: str
    last: bool
    cut: bool


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Sum:
    """The shards that are judged so far: `Look` of them, with the digests of the examples that count.

    ``repeating`` are those at the end in which each example was in an earlier one.
    """

    tally: Tally | None = None
    shards: int = 0
    tried: int = 0
    unreadable: tuple[Unreadable, ...] = ()
    shares: bool = False
    cut: bool = False
    repeating: int = 0
    digests: NDArray[numpy.uint64]


class Shards:
    """The shards of a subject's labelled examples, by so many passes; read as far as somebody asks for.

    What was judged is kept, whatever ends the reading: who asks again goes on behind it.

    Args:
        subject: Whose examples they are.
        passes: Of the model.
        large: The examples.
        crew: Who judges them; this process when None.
    """

    def __init__(self, subject: Subject, passes: int, large: LargeData, crew: Crew | None) -> None:
        self._subject, self._passes, self._large, self._crew = subject, passes, large, crew
        self._known: list[Look] = []
        self._sum = _Sum(digests=numpy.zeros(0, numpy.uint64))
        self._more = self._merging()
        self._error: Exception | None = None
        self._no_groups: InputError | None = None
        self._stays_here = ""

    def looks(self) -> Iterator[Look]:
        """Yield what the first shards say, those that are known first; what is asked for later is the same again."""
        for number in itertools.count():
            if number == len(self._known):
                if self._error is not None:
                    raise self._error
                try:
                    look = next(self._more, None)
                except BaseException as error:  # an interrupt, too, which is no reason not to go on later
                    if isinstance(error, InputError | NotHereError):
                        self._error = error
                    self._more = self._merging()
                    raise
                if look is None:
                    return
                self._known.append(look)
            yield self._known[number]

    def has_more_groups(self, look: Look) -> bool:
        """Return whether examples behind a look are of groups that it has none of; those of a stream are not known."""
        places = self._large.places()
        if places is None:
            return False
        known = self._subject.evaluations.get("groups of all")
        if not isinstance(known, frozenset):
            known = frozenset(name for name in names_of(self._subject, places.tolist()) if name is not None)
            self._subject.evaluations["groups of all"] = known
        return not known <= look.tally.groups.keys()

    def close(self) -> None:
        """End the reading, and take back what workers have not begun."""
        self._more.close()

    def _merging(self) -> Generator[Look, None, None]:
        """Yield looks at the shards behind those that are judged; what is judged changes at once or not at all."""
        due = self._next_due()
        for job, first in self._results(self._sum.shards):
            before, result = self._sum, first
            repeated = numpy.isin(first.digests, before.digests)
            if repeated.any():  # an example counts once: here it counts no more
                known = frozenset(int(one) for one in first.digests[repeated])
                result = self._again(replace(job, known=known))
            self._sum = now = _Sum(
                tally=_together(before.tally, result.tally),
                shards=before.shards + 1,
                tried=before.tried + result.tried,
                unreadable=(*before.unreadable, *result.unreadable),
                shares=before.shares or result.shares,
                cut=job.part.cut,
                repeating=before.repeating + 1 if repeated.all() and len(repeated) else 0,
                digests=numpy.union1d(before.digests, result.digests),
            )
            so_far(f"{now.tried:,}{f' of {self._large.total:,}' if self._large.total else ''} examples judged")
            self._large.require_readable(list(now.unreadable), now.tried)
            self._require_an_end(now)
            if result.tally is not None and (now.shards >= due or now.tried == self._large.total):
                yield self._look(last=now.tried == self._large.total)
                due = self._next_due()
        if self._sum.tally is not None and self._sum.shards > self._looked:
            yield self._look(last=True)

    def _require_an_end(self, now: _Sum) -> None:
        """Refuse a stream that begins again and again, for which more examples are waited for that never come."""
        if self._large.total is None and now.repeating > _ROUNDS * (now.shards - now.repeating):
            raise InputError(
                f"{WHERE} gives the same {len(now.digests)} examples again and again: of {now.tried} no other one came",
                fix=f"let the stream end behind the last one, or say how many are judged: {WHERE}-images N",
            )

    @property
    def _looked(self) -> int:
        """How many shards the last look was at."""
        return self._known[-1].shards if self._known else 0

    def _next_due(self) -> int:
        """Return how many shards the next look is at, at the least."""
        return max(self._looked + 1, int(self._looked * _GROWTH))

    def _look(self, *, last: bool) -> Look:
        now = self._sum
        assert now.tally is not None
        return Look(tally=now.tally, shards=now.shards, tried=now.tried, unreadable=now.unreadable, shares=now.shares,
                    no_groups=self._no_groups, stays_here=self._stays_here, last=last, cut=now.cut)  # fmt: skip

    def _results(self, judged_before: int) -> Iterator[tuple[Job, Result]]:
        """Yield the shards behind the first ones, in their order, whoever judges them."""
        jobs = (self._job(part) for part in itertools.islice(self._large.parts(), judged_before, None))
        parcel = None if self._crew is None else self._parcel(self._crew)
        if self._crew is None or parcel is None:
            for job in jobs:
                yield job, _required(judged(*self._here, job))
            return
        self._side_by_side = InOrder(self._crew, perform, jobs, shared=parcel.shared)
        for job, result in self._side_by_side:
            yield job, _required(result)

    def _parcel(self, crew: Crew) -> Parcel | None:
        """Return what goes to the workers, the same for all passes; None where nothing can, and nobody asked for it."""
        known = self._subject.evaluations.get("parcel")
        if not isinstance(known, Parcel):
            try:
                known = self._subject.evaluations["parcel"] = Parcel(self._setup, crew.executor)
            except StaysHereError as error:
                if in_force().jobs or not crew.renewable:
                    raise
                self._crew, self._stays_here = None, error.problem
                return None
        return known

    def _again(self, job: Job) -> Result:
        return _required(judged(*self._here, job) if self._crew is None else self._side_by_side.again(job))

    def _job(self, part: Part) -> Job:
        places = part.places or (part.read.samples.places.tolist() if part.read and part.read.samples else ())
        groups: dict[int, str] = {}
        if self._subject.slices is not None and self._no_groups is None:
            try:
                names = names_of(self._subject, places)
            except InputError as error:
                self._no_groups = error
            else:
                groups = {place: name for place, name in zip(places, names, strict=True) if name is not None}
        return Job(part=part, passes=self._passes, groups=groups)

    @cached_property
    def _here(self) -> tuple[Subject, Setup]:
        # Here what draws the passes is decided already; workers are told which it was.
        return self._subject.evaluated, replace(self._setup, settings=replace(in_force(), threads=1))

    @cached_property
    def _setup(self) -> Setup:
        base, _ = evaluated(self._subject)
        tasks = tasks_of(base)
        sampler = next((name for name in ("engine", "native") if base.bank.sampler.startswith(name)), "own")
        return Setup(
            model=base.model,
            teacher=base.teacher,
            few=base.few(_FEW),
            task=base.task,
            tasks=tasks,
            seed=base.seed,
            order_seed=self._large.seed,
            settings=replace(in_force(), sampler=sampler, threads=1),
            source=self._large.data if isinstance(self._large.data, Source) and self._large.data.travels else None,
            kept=self._large.kept,
        )


def _together(one: Tally | None, other: Tally | None) -> Tally | None:
    return other if one is None else one if other is None else merged(one, other)


def _required(result: Result | Refused) -> Result:
    if isinstance(result, Refused):
        raise result.error()
    return result


def shards_of(subject: Subject, passes: int, large: LargeData) -> Shards:
    """Return the shards of a subject by so many passes, as far as they are judged already."""
    known = subject.evaluations.get(f"shards {passes}")
    if not isinstance(known, Shards):
        crew = subject.evaluations.get("crew")
        if crew is None and large.workers is not None:
            crew = subject.evaluations["crew"] = Crew(large.workers)
            weakref.finalize(subject, crew.close)  # where nobody dismisses them
        known = Shards(subject, passes, large, crew if isinstance(crew, Crew) else None)
        subject.evaluations[f"shards {passes}"] = known
    return known


def dismiss(subject: Subject) -> None:
    """Let the workers of a subject go, and what it reads; who asks for its shards again begins anew."""
    for kind in (Shards, Crew, Parcel):
        for key in [key for key, kept in subject.evaluations.items() if isinstance(kept, kind)]:
            kept = subject.evaluations.pop(key)
            if isinstance(kept, Shards | Crew):
                kept.close()
