"""A session's evidence: recorded around tests and fixtures, gathered from workers, written into one report."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pytest_bnn.checks.choices import choosing
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.options import using
from pytest_bnn.records.codec import from_plain, one_line, show, to_plain
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.records.run import AuditRun
from pytest_bnn.session import InForce, of_session, of_test

#: Where a worker finds the seed of the session.
SEED = "bnn_seed"

_RECORDER = pytest.StashKey[Recorder]()
_RUNNING = pytest.StashKey[pytest.Item]()
#: What fixtures wider than a test recorded: "" for the place of the running test, else the end of a file or session.
_SHARED = pytest.StashKey[list[tuple[str, Recorder]]]()
_PHASES = ("setup", "call", "teardown")

#: Behind every file: the place of what ends with the session.
_LAST = "\U0010ffff"

#: Claims that do not hold, as lines at the end of a session; the report has them all.
_MOST_LINES = 20

Place: TypeAlias = tuple[str, int, str, int]


@contextmanager
def in_force(settings: InForce) -> Iterator[None]:
    """Let settings and the options of checks be in force inside."""
    with using(settings.settings, settings.sources), choosing(settings.choices):
        yield


@contextmanager
def watched(item: pytest.Item) -> Iterator[None]:
    """Let the checks of a test, of its fixtures and of their tear-down report to its recorder, under its settings."""
    recorder = item.stash[_RECORDER] = Recorder(subject=item.name)
    item.stash[_SHARED] = []
    item.config.stash[_RUNNING] = item
    try:
        settings = of_test(item)
    except PytestBnnError:  # its set-up says so
        settings = of_session(item.config)
    with recording(recorder), in_force(settings):
        yield


def settle(item: pytest.Item) -> None:
    """Decide whether an undecided claim is a failure or a warning in a test."""
    item.stash[_RECORDER].inconclusive = of_test(item).settings.inconclusive


class SharedFixture:
    """A fixture that several tests share: it reports under its own name, and under the session's settings.

    It may be set up in one test and end in another, or after all of them, in any of the workers.
    """

    def __init__(self, fixture: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
        self.name = fixture.argname
        self.config = request.config
        ends_last = fixture.scope in ("session", "package")
        self.end = _LAST if ends_last else request.node.nodeid.partition("::")[0]
        self._ending: AbstractContextManager[None] | None = None

    @contextmanager
    def reporting(self, place: str = "") -> Iterator[None]:
        """Record inside; the test that happens to run carries the evidence, to be put in its place later."""
        recorder = Recorder(inconclusive=of_session(self.config).settings.inconclusive, subject=self.name)
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
        item.user_properties.append((f"bnn.{check.id}", to_plain(f"{check.verdict.value}{observed}")))
    return run


def attach(item: pytest.Item, report: pytest.TestReport, run: AuditRun) -> None:
    """Attach to a report what its phase recorded, as plain values, which xdist carries to the controller."""
    shared = [(place, recorder.drain()) for place, recorder in item.stash[_SHARED]]
    shared = [(place, found) for place, found in shared if found.checks or found.subjects]
    item.stash[_SHARED].clear()
    if shared or run.checks or run.subjects:
        report.bnn = to_plain({"shared": shared, "test": run})  # type: ignore[attr-defined]


class Collector:
    """Lives in the controller alone: gathers evidence, writes the report, says so in the terminal."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.found: list[tuple[Place, AuditRun]] = []
        self.shared: dict[str, tuple[Place, AuditRun]] = {}
        self.said = ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Let pytest-xdist's workers have one seed, also where it was drawn."""
        node.workerinput[SEED] = int(of_session(self.config).settings.seed)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a phase of a test recorded, here or in a worker."""
        plain: Any = getattr(report, "bnn", None)
        if plain is not None:
            path, line, _ = report.location
            place = (path, line or 0, report.nodeid, _PHASES.index(report.when))
            for end, shared in plain["shared"]:
                self._take_shared((end, sys.maxsize, "", 0) if end else place, from_plain(shared, AuditRun))
            self.found.append((place, from_plain(plain["test"], AuditRun)))

    def _take_shared(self, place: Place, run: AuditRun) -> None:
        """Keep what a shared fixture found once, at its earliest place: in two workers only the time differs."""
        timeless = replace(run, checks=tuple(replace(check, seconds=0.0) for check in run.checks)).to_json()
        self.shared[timeless] = min(self.shared.get(timeless, (place, run)), (place, run), key=lambda pair: pair[0])

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Write the report, where one was asked for."""
        result = yield
        path = self.config.getoption("--bnn-report")
        if path is not None:
            try:
                self.said = self._write(Path(path))
            except (OSError, PytestBnnError) as error:
                self.said = f"the report could not be written: {error}"
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        return result

    def _write(self, path: Path) -> str:
        from pytest_bnn.audit.provenance import provenance
        from pytest_bnn.report.files import write_report

        arguments = [str(argument) for argument in self.config.invocation_params.args]
        settings = of_session(self.config)
        with in_force(settings):
            said = provenance(seed=settings.settings.seed, command=["pytest", *arguments])
        written = write_report(self._run(said), path)
        return f"report: {written[0]} and {written[1].name}"

    def _run(self, provenance: dict[str, str]) -> AuditRun:
        runs = [run for _, run in sorted([*self.shared.values(), *self.found], key=lambda pair: pair[0])]
        return AuditRun.merged(runs, provenance=provenance, title="Bayesian checks of a test session")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how many checks ran, which claims do not hold, and where the report is."""
        checks = self._run({}).checks
        if not checks and not self.said:
            return
        terminalreporter.section("bnn")
        counts = {verdict: sum(check.verdict is verdict for check in checks) for verdict in Verdict}
        words = [f"{count} {verdict.replace('_', ' ')}" for verdict, count in counts.items() if count]
        terminalreporter.line(f"{len(checks)} checks: {', '.join(words) or 'none ran'}")
        told = [check for check in checks if check.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE)]
        for check in told[:_MOST_LINES]:
            terminalreporter.line(
                one_line(f"  {check.verdict.value:<12} {check.id:<20} {check.subject}: {check.headline}")
            )
        if len(told) > _MOST_LINES:
            terminalreporter.line(f"  and {len(told) - _MOST_LINES} more")
        for sampler, count in Counter(check.sampler for check in checks if check.sampler).items():
            terminalreporter.line(f"passes of {count} {'check' if count == 1 else 'checks'}: {sampler}")
        if self.said:
            terminalreporter.line(self.said)
