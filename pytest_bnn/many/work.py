"""What every checkpoint of one series has in common, and the audit of one of them, in whichever process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_bnn.audit.named import Named, Parts
from pytest_bnn.audit.provenance import provenance
from pytest_bnn.checks import own, registry
from pytest_bnn.checks.choices import Choices, choosing
from pytest_bnn.data import checkpoints
from pytest_bnn.errors import InputError, PytestBnnError, in_words
from pytest_bnn.many import key
from pytest_bnn.network.isolation import preserved_random_state
from pytest_bnn.options import Settings, Source, using
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.made_with import recorded
from pytest_bnn.records.run import AuditRun
from pytest_bnn.sampling.threads import limited

#: The id of what stands in an audit whose checkpoint could not be loaded, or whose worker ended.
LOADS = "checkpoint"
#: Where an audit says what it is the audit of: the digest of checkpoint, data and settings.
KEY = "audit key"

#: Audits of one process take turns: they share its random state, its current folder and the networks.
_turn = threading.RLock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all audits of a series share, as plain values that cross a process boundary.

    ``folder`` is the current folder of all of them, where modules are found that are not installed; ``plugins`` and its
    conftest.py declare more checks. ``known`` are the ids of all such checks, once it is known which there are.
    """

    named: Named
    checks: tuple[str, ...] | None = None
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    setting_sources: Mapping[str, Source] = field(default_factory=dict)
    choices: Choices = field(default_factory=Choices)
    plugins: tuple[str, ...] = ()
    folder: str = ""
    known: tuple[str, ...] | None = None

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Let its settings, options, checks and folder be in force inside, in whichever process."""
        known = registry.others() if self.known is None else self.known
        settings, choices = using(self.settings, self.setting_sources), choosing(self.choices)
        with _turn, registry.limited(known), _inside(self.folder), settings, choices:
            for module in (*self.plugins, *self.choices.plugins):
                registry.import_module(module, "--plugin")
            if self.folder:
                own.load(Path(self.folder))
            yield


@contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Let a folder be the current one, where it is there, and its modules be found."""
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    elsewhere = os.path.isdir(folder) and not Path(folder).samefile(Path.cwd())  # noqa: PTH112  an empty text is none
    with contextlib.chdir(folder) if elsewhere else contextlib.nullcontext():
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One checkpoint.

    Attributes:
        file: Its path.
        name: Its name in reports.
        sha256: The digest of its bytes; empty where it cannot be read.
        key: The digest of all that its audit depends on.
        shared: Digests of what it shares with the others of its series, by what they are of.
        earlier: Whether its audit was there before this start.
    """

    file: str
    name: str
    sha256: str
    key: str
    shared: Mapping[str, str] = field(default_factory=dict)
    earlier: bool = False


def perform(work: Work, job: Job, threads: int = 0) -> str:
    """Audit one checkpoint; return the audit's JSON.

    What cannot be loaded or judged is an audit with one verdict, ``error``: the others of the series go on. In one
    process, audits take turns.

    Args:
        work: What it shares with the others.
        job: The checkpoint.
        threads: As in `Settings`, for this process; 0 leaves it as it is in ``work``.
    """
    work = replace(work, setting_sources=_without_jobs(work))
    if threads:
        work = replace(work, settings=replace(work.settings, threads=threads, jobs=1))
    try:
        with work.in_force():
            run = _judged(work, job)
            now = {**provenance(seed=int(work.settings.seed)), "threads": run.provenance["threads"]}
            said = {**run.provenance, **now, "checkpoint": job.name}
        run = replace(run, provenance={**said, **_said(job)})
    except PytestBnnError as error:
        run = broken(job, error.problem, error.fix)
    except Exception as error:
        run = broken(job, f"judging it raised {in_words(error)}",
                     "load the checkpoint into the network in Python and call it, until that works")  # fmt: skip
    return run.to_json()


def _judged(work: Work, job: Job) -> AuditRun:
    parts, shared = _loaded_parts(work, job.shared)
    if differing := key.differing(job.shared, shared):
        raise InputError(
            f"the process that was to judge it has other {' and '.join(differing)} than the one that started all",
            fix="let the functions that are named give the same in every process, and all machines see the same files "
            "and packages",
        )
    missing = [id for id in work.known or () if id not in registry.others()]
    if missing:
        raise InputError(
            f"the process that was to judge it does not know the check {missing[0]!r}",
            fix="declare checks in a conftest.py or in a module, not in the script that is run",
        )
    run = parts.with_state(job.file, job.name).audit(name=job.name, checks=work.checks, options=work.options)
    if job.sha256 and checkpoints.sha256(job.file) != job.sha256:
        raise InputError(f"{job.name} changed while the series ran", fix="start again when it is written")
    return run


def broken(job: Job, headline: str, remedy: str) -> AuditRun:
    """Return the audit of a checkpoint that could not be judged."""
    evidence = Evidence(
        id=LOADS,
        subject=job.name,
        stage="unknown",
        verdict=Verdict.ERROR,
        claim="The checkpoint can be loaded into the network, and judged.",
        headline=headline,
        remedy=remedy,
    )
    return AuditRun(checks=(evidence,), provenance={"checkpoint": job.name, **_said(job)})


def _said(job: Job) -> dict[str, str]:
    return {"checkpoint sha256": job.sha256, KEY: job.key, **recorded(job.shared)}


def jobs_of(work: Work, files: list[str]) -> tuple[Work, list[Job]]:
    """Return a job a checkpoint, and the work as other processes get it; reads the data, and each file once.

    Raises:
        InputError: The model or the data cannot be used.
    """
    with work.in_force():
        forget()
        parts, shared = _loaded_parts(work, {})
        work = replace(work, known=registry.others())
        _loaded[:] = [(_threadless(work), parts, shared)]
    jobs = []
    for file in files:
        try:
            sha256 = checkpoints.sha256(file)
        except OSError:  # its own audit says so
            sha256 = ""
        said = json.dumps([shared, sha256, file], sort_keys=True)
        digest = hashlib.sha256(said.encode()).hexdigest()
        jobs.append(Job(file=str(Path(file).absolute()), name=file, sha256=sha256, key=digest, shared=shared))
    return work, jobs


#: The parts that this process has loaded, with their digests: one factory call for all checkpoints of a series.
_loaded: list[tuple[Work, Parts, dict[str, str]]] = []


def forget() -> None:
    """Let the parts that this process has loaded go."""
    _loaded.clear()


def _loaded_parts(work: Work, shared: Mapping[str, str]) -> tuple[Parts, dict[str, str]]:
    """Return the parts of an audit and their digests: those at hand where they are the series', or loaded anew."""
    if not (_loaded and _loaded[0][0] == _threadless(work) and not key.differing(shared, _loaded[0][2])):
        forget()
        with preserved_random_state(), limited(1):  # in every process the same, to the last bit
            parts = work.named.load(seed_parts=True)
        _loaded.append((_threadless(work), parts, _digests(work, parts)))
    return _loaded[0][1:]


def _digests(work: Work, parts: Parts) -> dict[str, str]:
    return key.digests(
        parts,
        checks=work.checks,
        options=work.options,
        settings=work.settings,
        choices=work.choices,
        plugins=work.plugins,
        folder=Path(work.folder),
    )


def _threadless(work: Work) -> Work:
    settings = replace(work.settings, threads=0, jobs=0)
    return replace(work, settings=settings, setting_sources=_without_jobs(work))


def _without_jobs(work: Work) -> dict[str, Source]:
    """Return the sources of settings without how many processes audit a series, of which no audit has to tell."""
    return {name: source for name, source in work.setting_sources.items() if name != "jobs"}
