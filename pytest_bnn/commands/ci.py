"""What an audit on the command line tells a CI service: annotations at the factory, the summary of a step."""

from __future__ import annotations

import inspect
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from pytest_bnn.commands.command import on_stderr
from pytest_bnn.report import outputs

if TYPE_CHECKING:
    from pytest_bnn.records.evidence import Inconclusive
    from pytest_bnn.records.run import AuditRun
    from pytest_bnn.report.standing import Known


def tell(run: AuditRun, model: str | None, *, inconclusive: Inconclusive, known: Known) -> None:
    """Print annotations and append to the summary of the step, where a service reads them.

    Args:
        run: What was found.
        model: ``MODULE:FACTORY``, None for the ResNet18 that is made here.
        inconclusive: Whether an undecided claim is a failure.
        known: Says whether a failure is known from a baseline.
    """
    if outputs.annotations_wanted(os.environ):
        from pytest_bnn.report.github import annotation_lines

        place = None if model is None else place_of(model)
        places = {} if place is None else {"": place}
        for line in annotation_lines(run, places, inconclusive=inconclusive, known=known):
            print(line)
    failed = outputs.append_step_summary(run, os.environ)
    if failed:
        on_stderr(f"pytest-bnn: {failed}")


def place_of(name: str) -> tuple[str, int] | None:
    """Return the file and the first line of what ``MODULE:FACTORY`` names in a module that was imported."""
    module, _, attributes = name.partition(":")
    found: object = sys.modules.get(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute, None)
    while isinstance(found, partial):
        found = found.func
    try:
        source = inspect.unwrap(found)  # type: ignore[arg-type]
        file = inspect.getsourcefile(source)
        line = inspect.getsourcelines(source)[1]
    except (TypeError, OSError, ValueError):  # what was made by a call, or no Python
        return None
    return None if file is None else (outputs.in_repository(file, os.environ), line)
