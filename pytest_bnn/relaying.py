"""Calls the hooks of other plugins, `pytest_bnn.hookspecs`, with what a session finds."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pytest_bnn import hookspecs
from pytest_bnn.records.codec import from_plain
from pytest_bnn.records.run import AuditRun


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Tell pytest of the hooks."""
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hand on what a phase of a test recorded, where somebody asks for it."""
    report = yield
    plain: Any = getattr(report, "bnn", None)
    hook = item.ihook
    if plain is None or not (hook.pytest_bnn_evidence.get_hookimpls() or hook.pytest_bnn_subject.get_hookimpls()):
        return report
    for found in (*(run for _, run, *_ in plain["shared"]), plain["test"]):
        run = from_plain(found, AuditRun)
        for evidence in run.checks:
            hook.pytest_bnn_evidence(item=item, evidence=evidence)
        for subject in run.subjects:
            hook.pytest_bnn_subject(item=item, subject=subject)
    return report


def reported(config: pytest.Config, run: AuditRun) -> AuditRun:
    """Return the run of a session with what other plugins add to its provenance."""
    provenance = dict(run.provenance)
    given: list[Mapping[str, str] | None] = config.hook.pytest_bnn_report(config=config, run=run)
    for texts in reversed(given):  # who is called first has the last word
        provenance.update({str(name): str(text) for name, text in (texts or {}).items()})
    return replace(run, provenance=provenance)
