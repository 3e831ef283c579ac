"""pytest's hooks: options, the recorder around every test, evidence from workers to the controller, the report.

Loads neither torch nor numpy: those come with the first fixture or check that a test uses.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_bnn.errors import PytestBnnError
from pytest_bnn.fixtures.settings import SETTINGS, settings_of
from pytest_bnn.options import OPTIONS, DrawnSeed, resolve, using
from pytest_bnn.records.codec import from_plain, show, to_plain
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report.files import require_writable

pytest_plugins = (
    "pytest_bnn.fixtures.teachers",
    "pytest_bnn.fixtures.images",
    "pytest_bnn.fixtures.audits",
)

_RECORDER = pytest.StashKey[Recorder]()
_RUNNING = pytest.StashKey[pytest.Item]()
#: What fixtures wider than a test recorded: "" for the place of the running test, else the end of a file or session.
_SHARED = pytest.StashKey[list[tuple[str, Recorder]]]()
_PHASES = ("setup", "call", "teardown")

#: Where a worker finds the seed of the session.
_SEED = "bnn_seed"

#: Claims that do not hold, as lines at the end of a session; the report has them all.
_MOST_LINES = 20

_REPORT_HELP = "write every check's evidence into this HTML file, and as JSON beside it"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--bnn-*`` and ``bnn_*``."""
    group = parser.getgroup("bnn", "Bayesian neural networks (pytest-bnn)")
    group.addoption("--bnn-report", metavar="FILE.html", default=None, help=_REPORT_HELP)
    for option in OPTIONS:
        text = f"{option.help} (default: {option.default}; ini bnn_{option.key}, environment {option.environment})"
        group.addoption(f"--bnn-{option.name}", help=text.replace("%", "%%"), **option.argument)
        parser.addini(f"bnn_{option.key}", option.help, default="")


def pytest_configure(config: pytest.Config) -> None:
    """Settle the settings, so that a wrong one is one line before any test runs."""
    config.addinivalue_line(
        "markers",
        "bnn(**options): settings of bnn_audit for one test, named as in the ini file without bnn_: "
        "bnn(min_agreement=0.9, samples=64, seed=1)",
    )
    try:
        config.stash[SETTINGS] = resolve(
            {option.key: config.getoption(f"--bnn-{option.name}") for option in OPTIONS},
            {option.key: str(config.getini(f"bnn_{option.key}")) for option in OPTIONS},
            prefix="--bnn-",
        )
        if hasattr(config, "workerinput"):
            config.stash[SETTINGS] = replace(config.stash[SETTINGS], seed=config.workerinput[_SEED])
        report = config.getoption("--bnn-report")
        if report is not None and not hasattr(config, "workerinput"):
            require_writable(report, "--bnn-report")
    except PytestBnnError as error:
        raise pytest.UsageError(str(error)) from None
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Collector(config), "bnn-collector")


def pytest_report_header(config: pytest.Config) -> str:
    """Say what the fixtures stand on."""
    settings = config.stash[SETTINGS]
    drawn = f" (drawn; --bnn-seed={settings.seed} repeats it)" if isinstance(settings.seed, DrawnSeed) else ""
    return f"bnn: weights {settings.weights}, seed {settings.seed}{drawn}, at most {settings.samples} passes a check"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let the checks of a test, of its fixtures and of their tear-down report to its recorder."""
    recorder = item.stash[_RECORDER] = Recorder(subject=item.name)
    item.stash[_SHARED] = []
    item.config.stash[_RUNNING] = item
    with recording(recorder), using(item.config.stash[SETTINGS]):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Let a fixture that tests share report under its own name, wherever its worker happens to set it up or end it."""
    if fixturedef.scope == "function" or _RUNNING not in request.config.stash:
        return (yield)

    def recorder(place: str) -> Recorder:
        found = Recorder(inconclusive=request.config.stash[SETTINGS].inconclusive, subject=fixturedef.argname)
        request.config.stash[_RUNNING].stash[_SHARED].append((place, found))
        return found

    end = ExitStack()
    fixturedef.addfinalizer(end.close)  # the first to be added is the last to run
    with recording(recorder("")):
        result = yield
    place = "\U0010ffff" if fixturedef.scope in ("session", "package") else request.node.nodeid.partition("::")[0]
    fixturedef.addfinalizer(lambda: end.enter_context(recording(recorder(place))) and None)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Settle what an undecided claim counts as in this test; a wrong ``bnn`` marker fails it with one line."""
    item.stash[_RECORDER].inconclusive = settings_of(item).inconclusive


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hand what a phase recorded to its report: plain values, which xdist carries to the controller."""
    run = item.stash[_RECORDER].drain()
    for check in run.checks:
        observed = "" if check.threshold is None else f" {show(check.threshold.observed)}"
        item.user_properties.append((f"bnn.{check.id}", to_plain(f"{check.verdict.value}{observed}")))
    report = yield
    shared = [(place, recorder.drain()) for place, recorder in item.stash[_SHARED]]
    item.stash[_SHARED].clear()
    shared = [(place, found) for place, found in shared if found.checks or found.subjects]
    if shared or run.checks or run.subjects:
        report.bnn = to_plain({"shared": shared, "test": run})  # type: ignore[attr-defined]
    return report


class _Collector:
    """Lives in the controller alone: gathers evidence, writes the report, says so in the terminal."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.found: list[tuple[tuple[str, int, str, int], AuditRun]] = []
        self.shared: dict[str, tuple[tuple[str, int, str, int], AuditRun]] = {}
        self.said = ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Let pytest-xdist's workers have one seed, also where it was drawn."""
        node.workerinput[_SEED] = int(self.config.stash[SETTINGS].seed)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        plain: Any = getattr(report, "bnn", None)
        if plain is not None:
            path, line, _ = report.location
            place = (path, line or 0, report.nodeid, _PHASES.index(report.when))
            for end, shared in plain["shared"]:
                self._take_shared((end, sys.maxsize, "", 0) if end else place, from_plain(shared, AuditRun))
            self.found.append((place, from_plain(plain["test"], AuditRun)))

    def _take_shared(self, place: tuple[str, int, str, int], run: AuditRun) -> None:
        """Keep what a shared fixture found once, at its earliest place: in two workers only the time differs."""
        timeless = replace(run, checks=tuple(replace(check, seconds=0.0) for check in run.checks)).to_json()
        self.shared[timeless] = min(self.shared.get(timeless, (place, run)), (place, run), key=lambda pair: pair[0])

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
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
        from pytest_bnn.audit.run import provenance
        from pytest_bnn.report.files import write_report

        arguments = [str(argument) for argument in self.config.invocation_params.args]
        said = provenance(seed=self.config.stash[SETTINGS].seed, command=["pytest", *arguments])
        written = write_report(self._run(said), path)
        return f"report: {written[0]} and {written[1].name}"

    def _run(self, provenance: dict[str, str]) -> AuditRun:
        runs = [run for _, run in sorted([*self.shared.values(), *self.found], key=lambda pair: pair[0])]
        return AuditRun.merged(runs, provenance=provenance, title="Bayesian checks of a test session")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        checks = self._run({}).checks
        if not checks and not self.said:
            return
        terminalreporter.section("bnn")
        counts = {verdict: sum(check.verdict is verdict for check in checks) for verdict in Verdict}
        words = [f"{count} {verdict.replace('_', ' ')}" for verdict, count in counts.items() if count]
        terminalreporter.line(f"{len(checks)} checks: {', '.join(words) or 'none ran'}")
        told = [check for check in checks if check.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE)]
        for check in told[:_MOST_LINES]:
            terminalreporter.line(f"  {check.verdict.value:<12} {check.id:<20} {check.subject}: {check.headline}")
        if len(told) > _MOST_LINES:
            terminalreporter.line(f"  and {len(told) - _MOST_LINES} more")
        for sampler, count in Counter(check.sampler for check in checks if check.sampler).items():
            terminalreporter.line(f"passes of {count} {'check' if count == 1 else 'checks'}: {sampler}")
        if self.said:
            terminalreporter.line(self.said)
