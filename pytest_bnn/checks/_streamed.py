"""Claims about labels: on the predictions."""

from __future__ import annotations

from collections.abc import Callable

from pytest_bnn.checks._labelled import Labels, labelled
from pytest_bnn.checks._labelled import calibrated as _calibrated
from pytest_bnn.checks.finding import Finding
from pytest_bnn.subject import Subject


def on_labels(subject: Subject, passes: int, judge: Callable[[Labels], Finding], *, calibrated: bool = True) -> Finding:
    return judge((_calibrated if calibrated else labelled)(subject, passes))
