"""A shard of examples becomes a tally, in whichever process: what it needs goes there once, and no prediction back."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import nn

from pytest_bnn.checks import _kept
from pytest_bnn.checks._labelled import Labelled, beside_labels
from pytest_bnn.checks._parcel import unpacked
from pytest_bnn.checks._predictions import read_as
from pytest_bnn.checks._tallies import Tally
from pytest_bnn.checks.finding import NotHereError
from pytest_bnn.data.large import Kept, Part
from pytest_bnn.data.lazy import Source, Unreadable
from pytest_bnn.data.repeats import digests_of
from pytest_bnn.data.samples import Samples
from pytest_bnn.errors import InputError, PytestBnnError, in_words
from pytest_bnn.options import Settings, using
from pytest_bnn.sampling.threads import limited
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.task import Task

#: How messages call the examples.
WHERE = "--evaluation"

#: Tasks of one process take turns: they share its random state and the networks.
_turn = threading.RLock()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Setup:
    """What every shard needs. ``few`` are some examples, by which it is known how the networks take them."""

    model: nn.Module
    teacher: nn.Module | None
    few: Samples
    task: Task
    tasks: tuple[Task | None, Task | None]
    seed: int
    order_seed: int
    settings: Settings
    source: Source | None
    kept: Kept | None = None

    def subject(self) -> Subject:
        """Return the subject, on the few examples."""
        made = Subject(self.model, teacher=self.teacher, images=self.few, seed=self.seed).beside(self.few, self.task)
        made.require_images()
        return made


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """One shard.

    ``groups`` are those of its examples, by their numbers. Examples of a digest in ``known`` were in earlier
    shards, and do not count again.
    """

    part: Part
    passes: int
    groups: Mapping[int, str]
    known: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"shard {self.part.number} of the examples"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Result:
    """What became of a shard.

    Attributes:
        tally: Of its examples; None where none could be read.
        tried: How many examples it has, readable or not.
        unreadable: Those that could not be read.
        digests: Of the examples that count, in their order.
        shares: Whether the outputs are probabilities already.
    """

    tally: Tally | None
    tried: int
    unreadable: tuple[Unreadable, ...]
    digests: NDArray[numpy.uint64]
    shares: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why nothing can be said of a shard. ``fix`` is empty where the claim cannot be judged here."""

    problem: str
    fix: str = ""
    missing: tuple[str, ...] = ()

    def error(self) -> Exception:
        """Return what it would have raised."""
        return InputError(self.problem, fix=self.fix) if self.fix else NotHereError(self.problem, self.missing)


def judged(base: Subject, setup: Setup, job: Job) -> Result | Refused:
    """Tally one shard.

    Args:
        base: The subject on other examples, whose passes are drawn in the same way.
        setup: What every shard needs.
        job: The shard.
    """
    try:
        with _turn, using(setup.settings), limited(1):  # in every process the same, to the last bit
            return _judged(base, setup, job)
    except NotHereError as error:
        return Refused(problem=str(error), missing=error.missing)
    except PytestBnnError as error:
        return Refused(problem=error.problem, fix=error.fix)
    except (Exception, SystemExit) as error:
        return Refused(
            problem=f"judging {job} raised {in_words(error)}", fix="call the networks on these examples in Python"
        )


def _judged(base: Subject, setup: Setup, job: Job) -> Result | Refused:
    read, part = job.part.read, job.part
    if read is None:
        assert setup.source is not None
        read = setup.source.read(part.places, setup.order_seed + part.number)
    tried = len(read.unreadable) + (0 if read.samples is None else read.samples.rows)
    if read.samples is None:
        return Result(tally=None, tried=tried, unreadable=read.unreadable, digests=numpy.zeros(0, numpy.uint64))
    file = None
    if setup.kept is not None:
        file = _kept.path_of(setup.kept, read.samples, job.passes, job.groups, job.known)
    found = None if file is None else _kept.load(file)
    if found is None:
        found = _found(base, setup, job, read.samples)
        if file is not None:
            _kept.save(file, found)
    return Result(
        tally=found.tally, tried=tried, unreadable=read.unreadable, digests=found.digests, shares=found.shares
    )


def _found(base: Subject, setup: Setup, job: Job, samples: Samples) -> _kept.Found:
    shard = read_as(base.beside(samples, setup.task), setup.tasks)
    found = beside_labels(shard, job.passes, WHERE)
    digests = digests_of(shard.require_images())
    numbers = [int.from_bytes(one[:8], "little") for one in digests or ()]
    if job.known and numbers:
        new = torch.tensor([numbers[row] not in job.known for row in found.rows.tolist()], dtype=torch.bool)
        found = replace(found.part(new.nonzero().flatten()), left_out=found.left_out + int((~new).sum()))
    return _kept.Found(
        tally=Tally.of(found, _grouped(found, samples, job.groups)),
        digests=numpy.array([numbers[row] for row in found.rows.tolist()] if numbers else [], numpy.uint64),
        shares=found.predicted.task.shares,
    )


def _grouped(found: Labelled, samples: Samples, groups: Mapping[int, str]) -> dict[str, Labelled]:
    members: dict[str, list[int]] = {}
    for row, place in enumerate(samples.places[found.rows].tolist() if groups else ()):
        if place in groups:
            members.setdefault(groups[place], []).append(row)
    return {name: found.part(torch.tensor(rows)) for name, rows in sorted(members.items())}


#: What this process has unpacked, by its digest: one parcel at a time.
_unpacked: dict[str, tuple[Subject, Setup]] = {}


def perform(digest: str, content: Any, job: Job) -> Result | Refused:
    """Tally one shard in a worker, which keeps what it has unpacked."""
    with _turn:
        if digest not in _unpacked:
            try:
                _unpacked.clear()
                _unpacked[digest] = _unpack(digest, content)
            except Exception as error:
                return Refused(
                    problem=f"a worker cannot take the model ({in_words(error)})",
                    fix="let modules be found by all workers, and their packages be the same",
                )
        return judged(*_unpacked[digest], job)


def _unpack(digest: str, content: Any) -> tuple[Subject, Setup]:
    setup: Setup = unpacked(digest, content)
    with using(setup.settings), limited(1):
        return setup.subject(), setup
