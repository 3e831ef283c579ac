"""A plugin of pytest: a log of all evidence, a line about each model, and the build's number in the report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_bnn import Evidence


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--evidence-log``."""
    parser.addoption("--evidence-log", metavar="FILE", default=None, help="append each verdict to this file")


# Without pytest-bnn these are no hooks, and pytest would refuse them.
@pytest.hookimpl(optionalhook=True)
def pytest_bnn_evidence(item: pytest.Item, evidence: Evidence) -> None:
    """Append a verdict to the log; the file is the workers' too."""
    path = item.config.getoption("--evidence-log")
    if path is not None:
        with Path(path).open("a", encoding="utf-8") as log:
            log.write(f"{item.nodeid}\t{evidence.subject}\t{evidence.id}\t{evidence.verdict}\n")


@pytest.hookimpl(optionalhook=True)
def pytest_bnn_report() -> Mapping[str, str]:
    """Name the build in the report."""
    build = os.environ.get("BUILD_NUMBER")
    return {} if build is None else {"build": build}
