"""pytest's hooks, each a call: options, the recorder around every test, evidence to the controller, the report.

Loads neither torch nor numpy: those come with the first fixture or check that a test uses.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest

from pytest_bnn import collector, gate
from pytest_bnn.checks import choices, registry
from pytest_bnn.errors import PytestBnnError
from pytest_bnn.gathering import around_tests, outcomes
from pytest_bnn.items import nodes, requests
from pytest_bnn.options import OPTIONS, resolve_with_sources, using
from pytest_bnn.session import InForce, in_words, is_told_at_the_start, of_session, readable_errors, settle_session

pytest_plugins = (
    "pytest_bnn.fixtures.teachers",
    "pytest_bnn.fixtures.images",
    "pytest_bnn.fixtures.audits",
    "pytest_bnn.relaying",
    "pytest_bnn.tracebacks",
    "pytest_bnn.waiting",
)

_REPORT_HELP = "write every check's evidence into this HTML file, and as JSON beside it"
_CTRF_HELP = "write every check's verdict into this file, in the Common Test Report Format (https://ctrf.io)"
_SET_HELP = (
    "an option of one check, for example kl.loss.num_batches=45 or kl.loss.severity=warn; may be repeated; "
    "`pytest-bnn audit --help` lists the checks with their options"
)


class _Forgetting:
    """Forgets, at the end of a session, the checks that its conftests declared: it began before they were imported."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(registry.kept())

    def pytest_unconfigure(self) -> None:
        self.stack.close()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add ``--bnn-*`` and ``bnn_*``."""
    pluginmanager.register(_Forgetting(), "bnn-forgetting")
    group = parser.getgroup("bnn", "Bayesian neural networks (pytest-bnn)")
    group.addoption("--bnn-report", metavar="FILE.html", default=None, help=_REPORT_HELP)
    group.addoption("--bnn-ctrf", metavar="FILE.json", default=None, help=_CTRF_HELP)
    group.addoption("--bnn-set", metavar="ID.OPTION=VALUE", action="append", default=[], help=_SET_HELP)
    group.addoption("--bnn-baseline", metavar="FILE.json", default=None, help=f"{gate.HELP} (ini bnn_baseline)")
    group.addoption("--bnn-update-baseline", action="store_true", default=False, help=gate.UPDATE_HELP)
    parser.addini("bnn_baseline", gate.HELP, default="")
    for option in OPTIONS:
        text = f"{option.help} (default: {option.shown}; ini bnn_{option.key}, environment {option.environment})"
        group.addoption(f"--bnn-{option.name}", help=text.replace("%", "%%"), **option.argument)
        parser.addini(f"bnn_{option.key}", option.help, default="")
    requests.add_options(group, parser)


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the settings, so that a wrong one is reported in one line before any test runs."""
    config.addinivalue_line(
        "markers",
        "bnn(**options): settings of the checks in one test, named as in the ini file without bnn_, and options of "
        'single checks: bnn(min_agreement=0.9, samples=64, seed=1, set={"kl.loss.num_batches": 45})',
    )
    try:
        settle_session(config, _settings(config))
        held = gate.settle(config)
        baseline = None if held is None else held.path
        files = collector.Files() if hasattr(config, "workerinput") else collector.Files.of(config, baseline)
        requests.take(config)
    except PytestBnnError as error:
        raise pytest.UsageError(str(error)) from None
    if not hasattr(config, "workerinput"):
        gathers = collector.Collector(config, files)
        config.pluginmanager.register(gathers, "bnn-collector")
        if held is not None:
            config.pluginmanager.register(gate.Gate(config, gathers, held), "bnn-gate")


def _settings(config: pytest.Config) -> InForce:
    project = choices.from_project(config.rootpath)
    settings, sources = resolve_with_sources(
        {option.key: config.getoption(f"--bnn-{option.name}") for option in OPTIONS},
        {option.key: str(config.getini(f"bnn_{option.key}")) for option in OPTIONS},
        prefix="--bnn-",
        preset=project.preset,
    )
    if hasattr(config, "workerinput"):
        settings = replace(settings, seed=config.workerinput[collector.SEED])
    chosen = choices.from_texts(config.getoption("--bnn-set"), "--bnn-set")
    chosen = choices.from_preset(settings.preset).and_also(project).and_also(chosen)
    choices.require_usable(chosen, finally_=False)
    if settings.device not in ("", "cpu"):
        from pytest_bnn.data import placement  # it loads torch

        with using(settings, sources):
            placement.chosen()
    return InForce(settings, sources, chosen)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Show the settings, where one of them was given; most sessions of an environment use none of this."""
    told = [f"bnn: {in_words(of_session(config))}"] if is_told_at_the_start(config) else []
    return [*told, *filter(None, [requests.left_out(config)])]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Collect the networks that are audited without a test behind everything else."""
    report = yield
    if isinstance(collector, pytest.Session):
        report.result = [*report.result, *nodes.roots(collector)]
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what pytest-xdist says of groups."""
    for item in items:
        if isinstance(item, nodes.CheckItem):
            item.take_group()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what ``-k`` and its like leave out."""
    outcomes.count_deselected(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a worker tell the controller what it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[outcomes.LEFT_OUT] = outcomes.left_out(session.config)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse options of checks that do not exist, now that every conftest and test module was imported."""
    outcomes.see_last_failed(session)
    chosen = of_session(session.config).choices
    if chosen.plugins or hasattr(session.config, "workerinput"):
        return  # its plugins may still declare checks, and a worker's errors are hard to read: the audit will tell
    try:
        choices.require_usable(chosen, finally_=True)
    except PytestBnnError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let the checks of a test, of its fixtures and of their tear-down report to its recorder."""
    with around_tests.watched(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Let a fixture that tests share report under its own name, wherever its worker happens to set it up or end it."""
    return (yield from around_tests.set_up(fixturedef, request))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Decide whether an undecided claim fails this test; a wrong ``bnn`` marker fails it with one line."""
    with readable_errors():
        around_tests.settle(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hand what a phase recorded to its report."""
    run = around_tests.hand_over(item)
    report = yield
    around_tests.attach(item, call, report, run)
    return report
