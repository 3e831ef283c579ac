"""A session's evidence: gathered from tests, fixtures and workers, written into one report, and told at the end."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_bnn.checks.changed import changes
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.gathering.around_tests import in_force
from pytest_bnn.gathering.gathered import Gathered
from pytest_bnn.gathering.outcomes import LEFT_OUT, Outcomes, left_out
from pytest_bnn.presets import PRESETS
from pytest_bnn.records.baseline import Recording, with_known
from pytest_bnn.records.codec import one_line
from pytest_bnn.records.evidence import Evidence
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import outputs
from pytest_bnn.report.files import require_writable, write_report
from pytest_bnn.session import baseline_of, in_words, is_told_at_the_start, of_session

#: Where a worker finds the seed of the session.
SEED = "bnn_seed"

#: Claims that do not hold, as lines at the end of a session; the report has them all.
_MOST_LINES = 20


@dataclass(frozen=True, slots=True)
class Files:
    """What a session writes, None for what it does not; relative paths are of the folder where pytest was started."""

    report: Path | None = None
    ctrf: Path | None = None

    @classmethod
    def of(cls, config: pytest.Config, baseline: Path | None = None) -> Files:
        """Return what a session was asked to write, which is nothing where it runs no tests.

        Raises:
            InputError: A file cannot be written, or it is another one of the session, as its ``baseline``.
        """
        if any(config.getoption(name, False) for name in ("collectonly", "setuponly", "setupplan")):
            return cls()
        start, others = config.invocation_params.dir, {} if baseline is None else {"the baseline": baseline}

        def given(option: str) -> str | Path | None:
            text: str | None = config.getoption(option)
            return start / text if text and Path.cwd() != start else text

        report, ctrf = given("--bnn-report"), given("--bnn-ctrf")
        if report is not None:
            require_writable(report, "--bnn-report")
            others["the report's JSON"] = Path(report).with_suffix(".json")
        if ctrf is not None:
            outputs.require_writable_json(ctrf, "--bnn-ctrf", others)
        return cls(*(None if path is None else start / path for path in (report, ctrf)))


class Collector:
    """Lives in the controller alone: gathers evidence, writes the report, says so in the terminal."""

    def __init__(self, config: pytest.Config, files: Files) -> None:
        self.config = config
        self.start = time.perf_counter()
        self.files = files
        self.gathered = Gathered()
        self.outcomes = Outcomes()
        self.said: list[str] = []
        self.session: pytest.Session | None = None
        self.written: int | None = None

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Know the session, until its very end."""
        self.session = session

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Let pytest-xdist's workers have one seed, also where it was drawn."""
        node.workerinput[SEED] = int(of_session(self.config).settings.seed)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Know which tests there are, where workers collect them."""
        self.outcomes.collect(ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Know what workers left out, which they tell as they end."""
        self.outcomes.leave_out(*getattr(node, "workeroutput", {}).get(LEFT_OUT, (0, False)))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Know which tests there are."""
        self.outcomes.collect(item.nodeid for item in session.items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Know what could not be collected."""
        self.outcomes.take_collection(report)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Know why a session ended early."""
        self.outcomes.stopped = str(excinfo.value) or "the session was interrupted"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take how a phase of a test ended and what it recorded, here or in a worker."""
        self.outcomes.take(report)
        self.gathered.take(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Write what was asked for."""
        try:
            return (yield)
        finally:
            self._write(session)

    def pytest_unconfigure(self) -> None:
        """Write again where another plugin has changed what pytest ends with."""
        if self.session is not None and self.written not in (None, int(self.session.exitstatus)):
            self._write(self.session)

    def _write(self, session: pytest.Session) -> None:
        """Write the files; what was there stays where pytest was called wrongly, and where there was no test to run."""
        if session.exitstatus == pytest.ExitCode.USAGE_ERROR:
            return
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not self.outcomes.collected:
            self.said = ["no test ran, so that no report was written"] if self.files != Files() else []
            return
        self.outcomes.leave_out(*left_out(self.config))
        first, self.written, self.said = self.written is None, int(session.exitstatus), []
        wanted = self.files != Files() or "GITHUB_STEP_SUMMARY" in os.environ
        run = self._run(session, written=True) if wanted else AuditRun()
        try:
            if self.files.report is not None:
                page, data = write_report(run, self.files.report)
                self.said.append(f"report: {self._shown(page)} and {data.name}")
            if self.files.ctrf is not None:
                policy = of_session(self.config).settings.inconclusive
                outputs.write_ctrf(run, self.files.ctrf, inconclusive=policy, known=self._known)
                self.said.append(f"CTRF: {self._shown(self.files.ctrf)}")
        except (OSError, PytestBnnError) as error:
            self.said.append(f"the report could not be written: {error}")
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
            self.written = int(session.exitstatus)
        if run.checks and first:
            self.said += filter(None, [outputs.append_step_summary(run, os.environ)])

    def _shown(self, path: Path) -> str:
        start = self.config.invocation_params.dir
        return str(path.relative_to(start) if path.is_relative_to(start) else path)

    def everything(self, session: pytest.Session) -> AuditRun:
        """Return everything that was gathered, as it is written."""
        return self._run(session, written=True)

    def _run(self, session: pytest.Session | None, *, written: bool) -> AuditRun:
        """Return everything that was gathered; with what only files need where it is ``written``."""
        if session is None or not written:
            return self.gathered.run(self.outcomes)
        from pytest_bnn.audit.provenance import provenance
        from pytest_bnn.audit.repeating import repeating
        from pytest_bnn.audit.subjects import own_choices
        from pytest_bnn.relaying import reported  # pytest rewrites it when it registers it

        settings, why = of_session(self.config), self.outcomes.why(session)
        arguments = [str(argument) for argument in self.config.invocation_params.args]
        program = ["python", "-m", "pytest"] if Path(sys.argv[0]).name == "__main__.py" else ["pytest"]
        with in_force(settings):
            run = self.gathered.run(self.outcomes, changes(), self.outcomes.cut(self.config, why))
            own = own_choices(self.config.rootpath, {subject.name for subject in run.subjects})
            repeat = repeating(program, [*added_arguments(os.environ), *arguments], prefix="--bnn-", own=own)
            said = provenance(
                seed=settings.settings.seed,
                command=["pytest", *arguments],
                repeat=repeat,
                duration=time.perf_counter() - self.start,
            )
        record = self.outcomes.record(int(session.exitstatus), self.gathered.tests(), why)
        run = reported(self.config, replace(run, provenance=said, session=record))
        held = baseline_of(self.config)
        if held is None or isinstance(held, Recording):
            return run
        return with_known(run, held, inconclusive=settings.settings.inconclusive)

    def _known(self, check: Evidence) -> bool:
        """Return whether a failure is known from the session's baseline."""
        held = baseline_of(self.config)
        if held is None or isinstance(held, Recording):
            return False
        return held.knows(check, inconclusive=of_session(self.config).settings.inconclusive, test=check.test)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how many checks ran, which claims do not hold, and where the report is."""
        run = self._run(None, written=False)
        if not run.checks and not self.said:
            return
        terminalreporter.section("bnn")
        for line in _summary(run):
            terminalreporter.line(line)
        words = PRESETS[of_session(self.config).settings.preset].words
        if words and any(cut.startswith(words) for cut in run.cut):
            terminalreporter.line(f"not the whole audit: {words}")
        if not is_told_at_the_start(self.config):
            terminalreporter.line(f"settings: {in_words(of_session(self.config))}")
        for line in self.said:
            terminalreporter.line(line)
        if outputs.annotations_wanted(os.environ):
            from pytest_bnn.report.github import annotation_lines

            root = self.config.rootpath
            places = {
                test: (outputs.in_repository(root / file, os.environ), line)
                for test, (file, line) in self.gathered.places.items()
            }
            policy = of_session(self.config).settings.inconclusive
            for line in annotation_lines(run, places, inconclusive=policy, known=self._known):
                terminalreporter.line(line)


def _summary(run: AuditRun) -> Iterable[str]:
    """Say what was found, counted as on the page: claims about subjects, without the failures that tests expected."""
    from pytest_bnn.report.outline import outline
    from pytest_bnn.report.standing import LOUD, Standing, word

    shape = outline(run)
    order = (Standing.PASS, Standing.WARN, Standing.INCONCLUSIVE, Standing.FAIL, *Standing)
    words = [f"{shape.counts[of]} {word(of)}" for of in dict.fromkeys(order) if shape.counts.get(of)]
    total = sum(shape.counts.values())
    yield f"{total} {'claim' if total == 1 else 'claims'}: {', '.join(words) or 'none was checked'}"
    cards = [cell.card for group in shape.groups for cell in group.cells if cell.card.standing in LOUD]
    told = [card.evidence for card in sorted(cards, key=lambda card: int(card.anchor[1:]))]
    for check in told[:_MOST_LINES]:
        yield one_line(f"  {check.verdict.value:<12} {check.id:<20} {check.subject}: {check.headline}")
    if len(told) > _MOST_LINES:
        yield f"  and {len(told) - _MOST_LINES} more"
    expected = len(shape.expected)
    if expected:
        yield f"{expected} {'failure was' if expected == 1 else 'failures were'} expected"
    for sampler, count in Counter(check.sampler for check in run.checks if check.sampler).items():
        yield f"passes of {count} {'check' if count == 1 else 'checks'}: {sampler}"


def added_arguments(environment: Mapping[str, str]) -> list[str]:
    """Return the arguments that pytest took from the environment."""
    return shlex.split(environment.get("PYTEST_ADDOPTS", ""))
