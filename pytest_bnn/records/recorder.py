"""The recorder in force: how what a plain ``assert_*`` finds reaches a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from pytest_bnn.records.baseline import Baseline
from pytest_bnn.records.evidence import Evidence, Inconclusive
from pytest_bnn.records.policy import following
from pytest_bnn.records.raising import listening
from pytest_bnn.records.run import AuditRun, Change, SubjectRecord


@dataclass(slots=True)
class Recorder:
    """Collects what checks find while it is in force; `recording` puts it there.

    ``subject`` is the name of subjects that were given none, ``key`` tells them apart from others of this name.
    ``test`` is the node id of the test that runs. ``cut`` says what was left out of an audit.
    ``raised`` are the errors that claims raised, each with the evidence that it is about.
    ``baseline`` is what is known from before; ``is_wanted`` says whether the caller expects a failure, so that a known
    one has to be raised all the same.
    """

    inconclusive: Inconclusive = "fail"
    subject: str = "model"
    checks: list[Evidence] = field(default_factory=list)
    subjects: list[SubjectRecord] = field(default_factory=list)
    key: str = ""
    test: str = ""
    changed: list[Change] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    raised: list[tuple[AssertionError, tuple[Evidence, ...]]] = field(default_factory=list)
    baseline: Baseline | None = None
    is_wanted: Callable[[], bool] | None = None

    def knows(self, evidence: Evidence) -> bool:
        """Return whether the baseline, where there is one, has a failure already."""
        known = self.baseline
        if known is None or not known.knows(evidence, inconclusive=self.inconclusive, test=self.test):
            return False
        return self.is_wanted is None or not self.is_wanted()

    def drain(self) -> AuditRun:
        """Return what was collected since the last call, and forget it."""
        run = AuditRun(
            checks=tuple(self.checks),
            subjects=tuple(self.subjects),
            changed=tuple(dict.fromkeys(self.changed)),
            cut=tuple(dict.fromkeys(self.cut)),
        )
        for collected in (self.checks, self.subjects, self.changed, self.cut):
            collected.clear()
        return run

    def drain_raised(self) -> list[tuple[AssertionError, tuple[Evidence, ...]]]:
        """Return the errors that claims raised since the last call, and forget them."""
        raised, self.raised = self.raised, []
        return raised

    def hear(self, error: AssertionError, evidence: Sequence[Evidence]) -> None:
        """Keep an error that a claim raises."""
        self.raised.append((error, tuple(evidence)))


_recorder: ContextVar[Recorder | None] = ContextVar("pytest_bnn_recorder", default=None)


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Let every check that runs inside report to ``recorder``, whose policy for inconclusive verdicts is in force."""
    token = _recorder.set(recorder)
    try:
        with following(recorder), listening(recorder.hear):
            yield recorder
    finally:
        _recorder.reset(token)


def record(item: Evidence | SubjectRecord | Change) -> None:
    """Hand a record to the recorder in force, if there is one; a change is that of the test or fixture that runs."""
    recorder = _recorder.get()
    if recorder is None:
        return
    if isinstance(item, Evidence):
        recorder.checks.append(item)
    elif isinstance(item, SubjectRecord):
        recorder.subjects.append(item)
    else:
        test = recorder.test or recorder.key
        recorder.changed.append(replace(item, tests=(test,)) if test else item)


def record_cut(words: str) -> None:
    """Tell the recorder in force, if there is one, what was left out of an audit."""
    recorder = _recorder.get()
    if recorder is not None:
        recorder.cut.append(words)


@contextmanager
def held_back() -> Iterator[None]:
    """Keep evidence that is found inside from the recorder in force: whoever asks hands it over later, in order."""
    recorder = _recorder.get()
    if recorder is None:
        yield
        return
    before, recorder.checks = recorder.checks, []
    try:
        yield
    finally:
        recorder.checks = before


def record_run(run: AuditRun) -> None:
    """Hand what an audit found to the recorder in force, if there is one: of an audit that ran in another process."""
    for evidence in run.checks:
        record(evidence)
    for subject in run.subjects:
        record(subject)
    for words in run.cut:
        record_cut(words)


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


def default_subject_key() -> str:
    """Return what tells a subject that was given no name apart from others of its name; empty without a recorder."""
    recorder = _recorder.get()
    return "" if recorder is None else recorder.key


def running_test() -> str:
    """Return the node id of the test that runs; empty outside of tests, and in what several tests share."""
    recorder = _recorder.get()
    return "" if recorder is None else recorder.test
