"""A session that is held to a baseline: what failed before is known and fails nothing, what is new or worse does."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_bnn.collector import Collector
from pytest_bnn.errors import InputError, PytestBnnError
from pytest_bnn.records import baseline
from pytest_bnn.records.baseline import Baseline
from pytest_bnn.records.compare import Comparison, compare
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report.comparison import advice, lines, recorded
from pytest_bnn.session import hold_to, of_session

HELP: Final = "fail only on what is new or worse than in this earlier audit"
UPDATE_HELP: Final = "write the file of --bnn-baseline from what this session finds"

_OPTION: Final = "--bnn-baseline"
_UPDATE: Final = "--bnn-update-baseline"
#: Where a worker finds the path of the baseline, empty where it is to be written.
_PATH: Final = "bnn_baseline"
#: Sessions that ran: others judged what they judged by chance.
_RAN: Final = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


@dataclass(frozen=True, slots=True)
class Held:
    """What a session is held to: the file, what is in it (None where there is none yet), whether to write it."""

    path: Path
    before: AuditRun | None
    update: bool


def settle(config: pytest.Config) -> Held | None:
    """Read the baseline of a session and let it be in force; None where it has none, and in workers.

    Raises:
        InputError: There is no such file, or it is no audit; it is to be written and none was named; the session's
            report would overwrite it.
    """
    worker: dict[str, Any] = getattr(config, "workerinput", {})
    if worker:
        if _PATH in worker:
            path = worker[_PATH]
            hold_to(config, Baseline(baseline.read(path, _OPTION, _UPDATE)) if path else baseline.Recording())
        return None
    update = bool(config.getoption(_UPDATE))
    given, ini = config.getoption(_OPTION), str(config.getini("bnn_baseline"))
    if not given and not ini:
        if update:
            raise InputError(
                f"{_UPDATE} without {_OPTION}", fix=f"say which file: {_OPTION} bnn-baseline.json {_UPDATE}"
            )
        return None
    path = config.invocation_params.dir / given if given else config.rootpath / ini
    report = config.getoption("--bnn-report")
    if report is not None and (config.invocation_params.dir / report).with_suffix(".json").resolve() == path.resolve():
        raise InputError(
            f"{_OPTION} is {given or ini!r}, which the report's JSON overwrites", fix="give the baseline another name"
        )
    if update:
        baseline.require_writable(path, _OPTION)
        before = baseline.read(path, _OPTION, _UPDATE, shown=given or ini) if path.exists() else None
        hold_to(config, baseline.Recording())
    else:
        before = baseline.read(path, _OPTION, _UPDATE, shown=given or ini)
        hold_to(config, Baseline(before, given or ini))
    return Held(path, before, update)


class Gate:
    """Lives in the controller alone: compares what a session found with its baseline, or writes it.

    Args:
        config: The session's.
        gathers: Has what the session found.
        held: What it is held to.
    """

    def __init__(self, config: pytest.Config, gathers: Collector, held: Held) -> None:
        self.config = config
        self.gathers = gathers
        self.held = held
        self.comparison: Comparison | None = None
        self.said: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Let pytest-xdist's workers know the same failures."""
        node.workerinput[_PATH] = "" if self.held.update else str(self.held.path)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """Let a session fail that lost a claim, or found something new in a test that did not fail by it."""
        result = yield
        if session.exitstatus in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERNAL_ERROR):
            return result
        if any(self.config.getoption(name, False) for name in ("collectonly", "setuponly", "setupplan")):
            return result
        now = self._now(session)
        if self.held.before is not None:
            policy = of_session(self.config).settings.inconclusive
            self.comparison = compare(self.held.before, now, inconclusive=policy)
        if self.held.update:
            self._update(session, now)
        elif self.comparison is not None and self.comparison.failing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return result

    def _now(self, session: pytest.Session) -> AuditRun:
        run = self.gathers.everything(session)
        if self.config.args_source is not pytest.Config.ArgsSource.ARGS:
            return run
        return replace(run, cut=(*run.cut, f"pytest was given {shlex.join(self.config.args)}"))

    def _update(self, session: pytest.Session, now: AuditRun) -> None:
        name = self._shown()
        if session.exitstatus not in _RAN or not now.checks:
            why = "nothing was judged" if session.exitstatus in _RAN else "the session did not run to its end"
            self.said = [f"{name} stays as it is: {why}"]
            return
        written = baseline.updated(self.held.before, now)
        try:
            baseline.write(written, self.held.path, _OPTION)
        except PytestBnnError as error:
            self.said = [str(error)]
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
            return
        self.said = [f"wrote {name}: {recorded(written)}"]

    def _shown(self) -> str:
        start = self.config.invocation_params.dir
        return str(self.held.path.relative_to(start) if self.held.path.is_relative_to(start) else self.held.path)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what is new, worse, known and fixed, before and now."""
        if self.comparison is None and not self.said:
            return
        terminalreporter.section("bnn baseline")
        if self.comparison is not None:
            for state, words in lines(self.comparison):
                terminalreporter.line(words, red=state in ("new", "worse"), green=state == "fixed")
            failing = bool(self.comparison.failing) and not self.held.update
            terminalreporter.line(f"{self._shown()}: {self.comparison.headline}", red=failing, green=not failing)
            if not self.held.update:
                for words in advice(self.comparison, _UPDATE):
                    terminalreporter.line(words)
        for words in self.said:
            terminalreporter.line(words)
