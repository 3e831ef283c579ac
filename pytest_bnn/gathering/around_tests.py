"""Around every test and fixture: its checks are recorded, and sent with its report as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import pytest

from pytest_bnn.checks.changed import changes
from pytest_bnn.checks.choices import choosing
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.gathering.catching import is_behind, is_caught_by_raises, is_wanted
from pytest_bnn.gathering.outcomes import is_xfailed
from pytest_bnn.options import using
from pytest_bnn.records.codec import show, to_plain
from pytest_bnn.records.evidence import Evidence, is_failure
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.records.run import AuditRun
from pytest_bnn.session import InForce, baseline_of, of_session, of_test

_RECORDER = pytest.StashKey[Recorder]()
_RUNNING = pytest.StashKey[pytest.Item]()
#: What fixtures wider than a test recorded: "" for the place of the running test, else the end of a file or session.
_SHARED = pytest.StashKey[list[tuple[str, Recorder]]]()
_FAILURES = pytest.StashKey["Failures"]()
#: What a test checked so far: the id, the subject, and the verdict in words.
_SAID = pytest.StashKey[list[tuple[str, str, str]]]()

#: Behind every file: the place of what ends with the session.
_LAST = "\U0010ffff"
_PROPERTY = "bnn."


class Failures:
    """Numbers the failed evidence of a process, so that a later phase, or another test, can say that it expected it.

    It keeps the evidence alive: no other has the same identity.
    """

    def __init__(self, process: str) -> None:
        self._process = process
        self._known: dict[int, tuple[Evidence, str]] = {}

    def number(self, check: Evidence) -> str:
        """Return a failure's number, the same each time; empty for what did not fail."""
        if not is_failure(check.verdict):
            return ""
        return self._known.setdefault(id(check), (check, f"{self._process} {len(self._known)}"))[1]


def numbers_of(config: pytest.Config) -> Failures:
    """Return the numbers of this process."""
    if _FAILURES not in config.stash:
        worker: dict[str, str] = getattr(config, "workerinput", {})
        config.stash[_FAILURES] = Failures(worker.get("workerid", ""))
    return config.stash[_FAILURES]


@contextmanager
def in_force(settings: InForce) -> Iterator[None]:
    """Let settings and the options of checks be in force inside."""
    with using(settings.settings, settings.sources), choosing(settings.choices):
        yield


@contextmanager
def watched(item: pytest.Item) -> Iterator[None]:
    """Let the checks of a test, of its fixtures and of their tear-down report to its recorder, under its settings."""
    recorder = item.stash[_RECORDER] = Recorder(
        subject=item.name, key=item.nodeid, test=item.nodeid, is_wanted=is_wanted
    )
    item.stash[_SHARED], item.stash[_SAID] = [], []
    item.config.stash[_RUNNING] = item
    try:
        settings = of_test(item)
    except PytestBnnError:  # its set-up says so
        settings = of_session(item.config)
    with recording(recorder), in_force(settings):
        yield


def settle(item: pytest.Item) -> None:
    """Decide what fails a test: an undecided claim, a failure that is known from before."""
    recorder = item.stash[_RECORDER]
    recorder.inconclusive = of_test(item).settings.inconclusive
    if item.get_closest_marker("xfail") is None:  # a test that is expected to fail has to be able to
        recorder.baseline = baseline_of(item.config)


class SharedFixture:
    """A fixture that several tests share: it reports under its own name, and under the session's settings.

    It may be set up in one test and end in another, or after all of them, in any of the workers.
    """

    def __init__(self, fixture: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
        self.name = fixture.argname
        parameter = f"[{getattr(request, 'param_index', 0)}]" if hasattr(request, "param") else ""
        place = request.node.nodeid.removeprefix(".") or getattr(fixture, "baseid", "")
        self.key = f"{place}::{fixture.argname}{parameter}"
        self.config = request.config
        ends_last = fixture.scope in ("session", "package")
        self.end = _LAST if ends_last else request.node.nodeid.partition("::")[0]
        self._ending: AbstractContextManager[None] | None = None

    @contextmanager
    def reporting(self, place: str = "") -> Iterator[None]:
        """Record inside; the test that happens to run carries the evidence, to be put in its place later."""
        policy = of_session(self.config).settings.inconclusive
        recorder = Recorder(
            inconclusive=policy,
            subject=self.name,
            key=self.key,
            baseline=baseline_of(self.config),
            is_wanted=is_wanted,
        )
        self.config.stash[_RUNNING].stash[_SHARED].append((place, recorder))
        with recording(recorder), in_force(of_session(self.config)):
            yield

    def begin_end(self) -> None:
        """Record from here on, as the first step of the tear-down."""
        self._ending = self.reporting(self.end)
        self._ending.__enter__()

    def end_end(self) -> None:
        """Record no more, as the last step of the tear-down."""
        if self._ending is not None:
            self._ending.__exit__(None, None, None)
            self._ending = None


def set_up(fixture: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> Generator[None, object, object]:
    """Let a fixture that tests share report by itself, at its set-up and at its end."""
    if fixture.scope == "function" or _RUNNING not in request.config.stash:
        return (yield)
    shared = SharedFixture(fixture, request)
    # Finalizers run in reverse: the first that is added is the last step of the tear-down.
    fixture.addfinalizer(shared.end_end)
    with shared.reporting():
        result = yield
    fixture.addfinalizer(shared.begin_end)
    return result


def hand_over(item: pytest.Item) -> AuditRun:
    """Take what a phase recorded, and put each verdict into the test's properties."""
    run = item.stash[_RECORDER].drain()
    for check in run.checks:
        observed = "" if check.threshold is None else f" {show(check.threshold.observed)}"
        words = str(to_plain(f"{check.verdict.value}{observed}"))
        item.stash[_SAID].append((check.id, str(to_plain(check.subject)), words))
    if run.checks:
        others = [pair for pair in item.user_properties if not pair[0].startswith(_PROPERTY)]
        item.user_properties[:] = [*others, *properties(item.stash[_SAID])]
    return run


def properties(said: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Return the verdicts of a test as properties, each with its subject where a test has a check for several."""
    subjects = Counter(id for id, _ in {(id, subject) for id, subject, _ in said})
    return [(f"{_PROPERTY}{id}" + (f"[{subject}]" if subjects[id] > 1 else ""), words) for id, subject, words in said]


def attach(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport, run: AuditRun) -> None:
    """Attach to a report what its phase recorded, as plain values, which xdist carries to the controller.

    ``numbers`` are those of failed evidence, in the order of the evidence; ``expected`` the numbers of those whose
    error was caught, and ``counted`` of those that fail a test.
    """
    recorders = [(place, recorder) for place, recorder in item.stash[_SHARED]]
    item.stash[_SHARED].clear()
    raised = item.stash[_RECORDER].drain_raised()
    shared = []
    for place, recorder in recorders:
        raised += recorder.drain_raised()
        found = recorder.drain()
        if found != AuditRun():
            shared.append((place, found, _numbers(item, found)))
    if run.checks:
        run = _with_changes(item, run)
    expected, counted = _sorted(item, call, report, raised)
    if shared or run != AuditRun() or expected or counted:
        order = getattr(item, "order", report.nodeid)
        report.bnn = to_plain(  # type: ignore[attr-defined]
            {
                "order": order,
                "shared": shared,
                "test": run,
                "numbers": _numbers(item, run),
                "expected": expected,
                "counted": counted,
            }
        )


def _numbers(item: pytest.Item, run: AuditRun) -> list[str]:
    known = numbers_of(item.config)
    return [known.number(check) for check in run.checks]


def _sorted(
    item: pytest.Item,
    call: pytest.CallInfo[None],
    report: pytest.TestReport,
    raised: list[tuple[AssertionError, tuple[Evidence, ...]]],
) -> tuple[list[str], list[str]]:
    """Tell failures that the test expected from those that fail it, by the errors that claims raised in a phase."""
    expected: list[str] = []
    counted: list[str] = []
    ending = None if call.excinfo is None else call.excinfo.value
    for error, checks in raised:
        behind = ending is not None and is_behind(error, ending)
        caught = is_xfailed(report) or (not behind and (not report.failed or is_caught_by_raises(error)))
        (expected if caught else counted).extend(numbers_of(item.config).number(check) for check in checks)
    return expected, counted


def _with_changes(item: pytest.Item, run: AuditRun) -> AuditRun:
    """Add what the marker of a test changed."""
    try:
        marked = of_test(item)
    except PytestBnnError:
        return run
    session = of_session(item.config)
    if marked is session:
        return run
    with in_force(session):
        before = changes()
    with in_force(marked):
        now = [replace(change, tests=(item.nodeid,)) for change in changes() if change not in before]
    return replace(run, changed=(*now, *run.changed))
