"""The recorder in force: how what a plain ``assert_*`` finds reaches a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from pytest_bnn.records.evidence import Evidence, Inconclusive
from pytest_bnn.records.policy import following
from pytest_bnn.records.run import AuditRun, SubjectRecord


@dataclass(slots=True)
class Recorder:
    """Collects what checks find while it is in force; `recording` puts it there.

    ``subject`` is the name of subjects that were given none.
    """

    inconclusive: Inconclusive = "fail"
    subject: str = "model"
    checks: list[Evidence] = field(default_factory=list)
    subjects: list[SubjectRecord] = field(default_factory=list)

    def drain(self) -> AuditRun:
        """Return what was collected since the last call, and forget it."""
        run = AuditRun(checks=tuple(self.checks), subjects=tuple(self.subjects))
        self.checks.clear()
        self.subjects.clear()
        return run


_recorder: ContextVar[Recorder | None] = ContextVar("pytest_bnn_recorder", default=None)


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Let every check that runs inside report to ``recorder``, whose policy for inconclusive verdicts is in force."""
    token = _recorder.set(recorder)
    try:
        with following(recorder):
            yield recorder
    finally:
        _recorder.reset(token)


def record(item: Evidence | SubjectRecord) -> None:
    """Hand a record to the recorder in force, if there is one."""
    recorder = _recorder.get()
    if recorder is None:
        return
    if isinstance(item, Evidence):
        recorder.checks.append(item)
    else:
        recorder.subjects.append(item)


def amend(before: Evidence, after: Evidence) -> None:
    """Let what became known later take the place of evidence that was recorded, if there is a recorder in force."""
    recorder = _recorder.get()
    if recorder is None:
        return
    for place, item in enumerate(recorder.checks):
        if item is before:
            recorder.checks[place] = after


def recorder_in_force() -> bool:
    """Return whether a recorder is in force, as in a running test."""
    return _recorder.get() is not None


def default_subject_name() -> str:
    """Return the name of a subject that was given none: the recorder's, ``"model"`` without one."""
    recorder = _recorder.get()
    return Recorder().subject if recorder is None else recorder.subject
