"""A baseline: an earlier audit that later ones are held to. What failed in it is known, and fails nothing."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

from pytest_bnn.errors import InputError, WriteError
from pytest_bnn.records import audits
from pytest_bnn.records.compare import state_of
from pytest_bnn.records.evidence import Evidence, Inconclusive, is_failure
from pytest_bnn.records.matching import key_of, matched
from pytest_bnn.records.run import AuditRun
from pytest_bnn.replacing import reason_of, replace_files, try_folder

_NO_FAILURE = ("known", "better")


class Baseline:
    """What an earlier audit found, for verdicts that arrive one by one.

    Args:
        run: The earlier audit.
        name: How its file is called.
    """

    def __init__(self, run: AuditRun, name: str = "") -> None:
        self.run = run
        self.name = name

    def knows(self, evidence: Evidence, *, inconclusive: Inconclusive = "fail", test: str = "") -> bool:
        """Return whether the same claim about the same subject failed before, and has not become worse.

        Args:
            evidence: What fails now.
            inconclusive: Whether an undecided claim is a failure.
            test: The node id of the test that found it, where subjects of several tests have one name.
        """
        if not is_failure(evidence.verdict, inconclusive=inconclusive):
            return False
        same = [old for old in self.run.checks if (old.id, old.subject) == (evidence.id, evidence.subject)]
        same = [old for old in same if evidence.key and old.key == evidence.key] or same
        same = [old for old in same if old.test and old.test == (evidence.test or test)] or same
        same = [old for old in same if old.stage == evidence.stage] or same
        return any(state_of(old, evidence, inconclusive=inconclusive)[0] in _NO_FAILURE for old in same)


class Recording(Baseline):
    """What is known while a baseline is made: every failure, so that a test goes on and all its claims are recorded."""

    def __init__(self) -> None:
        super().__init__(AuditRun())

    def knows(self, evidence: Evidence, *, inconclusive: Inconclusive = "fail", test: str = "") -> bool:
        """Return True for every failure."""
        return is_failure(evidence.verdict, inconclusive=inconclusive)


def with_known(run: AuditRun, known: Baseline, *, inconclusive: Inconclusive = "fail") -> AuditRun:
    """Say of each failure that is known that it is, and in the provenance how many are.

    Args:
        run: What was found.
        known: What it is held to.
        inconclusive: Whether an undecided claim is a failure.
    """
    found = [not c.expected and known.knows(c, inconclusive=inconclusive, test=c.test) for c in run.checks]
    said = f"It is known from the baseline {known.name}, so that it fails nothing here."
    checks = [
        replace(c, notes=(*c.notes, said)) if is_known else c for c, is_known in zip(run.checks, found, strict=True)
    ]
    count = "1 failure is known" if sum(found) == 1 else f"{sum(found)} failures are known"
    return replace(run, checks=tuple(checks), provenance={**run.provenance, "baseline": f"{known.name}: {count}"})


def read(path: str | Path, option: str, make: str, *, shown: str = "") -> AuditRun:
    """Read a baseline.

    Args:
        path: The JSON of an audit.
        option: How messages call it.
        make: The option that makes one.
        shown: How messages call the file; its path by default.

    Raises:
        InputError: There is no such file, or it is no audit.
    """
    shown = shown or str(path)
    try:
        return audits.read(path, shown=shown, option=option)
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise InputError(
                f"{option}: there is no baseline {shown!r}", fix=f"make it from what is found now: add {make}"
            ) from None
        if isinstance(error.__cause__, OSError | UnicodeDecodeError):
            raise
        fix = f"move it away and make it anew with {make}, or use the pytest-bnn that wrote it"
        raise InputError(error.problem, fix=fix) from error


def updated(before: AuditRun | None, now: AuditRun) -> AuditRun:
    """Return the next baseline: what is found now, and what a run that was cut did not judge."""
    kept: AuditRun = AuditRun()
    if before is not None and set(now.cut) - set(before.cut):
        pairs, _ = matched(before, now)
        found = {(key_of(check), check.id) for check in now.checks}
        keep = tuple(c for c in before.checks if (pairs.get(key_of(c), key_of(c)), c.id) not in found)
        here = {key_of(record) for record in now.subjects}
        named = {key_of(check) for check in keep}
        keep = tuple(_under(check, pairs.get(key_of(check))) for check in keep)
        records = tuple(r for r in before.subjects if key_of(r) in named and pairs.get(key_of(r)) not in here)
        kept = AuditRun(checks=keep, subjects=records)
        now = replace(now, cut=before.cut)
    return slim(replace(now, checks=(*kept.checks, *now.checks), subjects=(*kept.subjects, *now.subjects)))


def _under(check: Evidence, key: tuple[str, str, str] | None) -> Evidence:
    """Return evidence under the name that its subject has now."""
    return check if key is None else replace(check, key=key[0], subject=key[1], stage=key[2])  # type: ignore[arg-type]


def slim(run: AuditRun) -> AuditRun:
    """Return an audit without what a comparison does not need: pictures, curves, tables, times."""
    checks = tuple(
        replace(check, seconds=0.0, charts=(), layers=tuple(layer for layer in check.layers if not layer.ok))
        for check in run.checks
    )
    subjects = tuple(
        replace(subject, layers=(), predictions=(), training=(), prediction_summary=None) for subject in run.subjects
    )
    return replace(run, checks=checks, subjects=subjects, session=None)


def require_writable(path: str | Path, option: str) -> None:
    """Make sure, before a run takes its time, that a baseline can be written; nothing is made or changed.

    Raises:
        InputError: It is a folder, or its folder cannot be made or written to.
    """
    target = Path(path).resolve()
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try_folder(target.parent)
    except OSError as error:
        raise _cannot_be_written(path, option, error) from error


def write(run: AuditRun, path: str | Path, option: str) -> None:
    """Write a baseline in one step: an interruption leaves the old file whole.

    Raises:
        InputError: It cannot be written.
    """
    try:
        replace_files({Path(path): run.to_json().encode()})
    except WriteError as error:
        raise _cannot_be_written(path, option, error.__cause__) from error


def _cannot_be_written(path: str | Path, option: str, error: BaseException | None) -> InputError:
    problem = f"{option}: {str(path)!r} cannot be written ({reason_of(error)})"
    return InputError(problem, fix="choose another path")
