"""Hooks of pytest-bnn for conftest.py files and other plugins of pytest.

Arguments may be left out of an implementation, as in all of pytest. Where pytest-bnn may not be installed, mark it with
``@pytest.hookimpl(optionalhook=True)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_bnn.records.evidence import Evidence
    from pytest_bnn.records.run import AuditRun, SubjectRecord


def pytest_bnn_evidence(item: pytest.Item, evidence: Evidence) -> None:
    """Take evidence that a test, or a fixture of it, has recorded.

    It is called once for each check that ran, when a phase of the test (set-up, call, tear-down) has ended: in the
    process that ran it, which is a worker under pytest-xdist.

    Args:
        item: The test. What a fixture of several tests records comes with the one that was running.
        evidence: What was found; a frozen record of plain values.
    """


def pytest_bnn_subject(item: pytest.Item, subject: SubjectRecord) -> None:
    """Take the description of a model that a test, or a fixture of it, has audited.

    Args:
        item: As in `pytest_bnn_evidence`, and called when it is.
        subject: What was audited: its layers, predictions, digests; a frozen record of plain values.
    """


def pytest_bnn_report(config: pytest.Config, run: AuditRun) -> Mapping[str, str] | None:
    """Add to the provenance of a session's report, such as the number of a build or the name of a data set.

    It is called once, before the report is written, in the controller under pytest-xdist.

    Args:
        config: pytest's.
        run: All that the session found, as the report will show it.

    Returns:
        Texts by name, which replace what the provenance has of the same names; None for nothing.
    """
