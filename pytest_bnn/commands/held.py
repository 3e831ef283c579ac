"""An audit that is held to a baseline: what failed before is known, what is new or worse fails."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.commands import terminal
from pytest_bnn.commands.command import BROKEN, FAILED, NOTHING_APPLIES, PASSED, reader_may_leave
from pytest_bnn.errors import InputError
from pytest_bnn.options import Settings

if TYPE_CHECKING:
    from pytest_bnn.records.baseline import Baseline
    from pytest_bnn.records.run import AuditRun
    from pytest_bnn.report.standing import Known

_OPTION, _UPDATE = "--baseline", "--update-baseline"


@dataclass(frozen=True, slots=True)
class Held:
    """What an audit is held to: the file, what is in it (None where there is none yet), whether it is to be written."""

    path: Path
    before: AuditRun | None
    update: bool


def baseline_of(given: argparse.Namespace, report: Path) -> Held | None:
    """Read the baseline, before an audit takes its time.

    Args:
        given: The command line.
        report: Where the audit's report is written, with its JSON beside it.

    Raises:
        InputError: There is no such file, or it is no audit; it is to be written and none was named; the report would
            overwrite it.
    """
    if given.baseline is None:
        if given.update_baseline:
            raise InputError(
                f"{_UPDATE} without {_OPTION}", fix=f"say which file: {_OPTION} bnn-baseline.json {_UPDATE}"
            )
        return None
    from pytest_bnn.records.baseline import read, require_writable

    path = Path(given.baseline)
    if path.resolve() == report.with_suffix(".json").resolve():
        raise InputError(
            f"{_OPTION} is {given.baseline!r}, which this audit's report overwrites",
            fix="give the baseline another name, or the report with -o",
        )
    if given.update_baseline:
        require_writable(path, _OPTION)
    missing = given.update_baseline and not path.exists()
    return Held(path, None if missing else read(path, _OPTION, _UPDATE), given.update_baseline)


def known_of(held: Held | None, settings: Settings) -> Known:
    """Return what says whether a failure is known from before; nothing is while the baseline is written."""
    from pytest_bnn.report.standing import nothing_known

    baseline = _in_force(held)
    if baseline is None:
        return nothing_known
    return lambda check: baseline.knows(check, inconclusive=settings.inconclusive)


def with_known(run: AuditRun, held: Held | None, settings: Settings) -> AuditRun:
    """Say in a run which of its failures are known from before."""
    from pytest_bnn.records import baseline

    known = _in_force(held)
    return run if known is None else baseline.with_known(run, known, inconclusive=settings.inconclusive)


def _in_force(held: Held | None) -> Baseline | None:
    """Return what an audit is held to; None without a baseline, and while it is written."""
    if held is None or held.before is None or held.update:
        return None
    from pytest_bnn.records.baseline import Baseline

    return Baseline(held.before, str(held.path))


def judge(run: AuditRun, held: Held, settings: Settings) -> int:
    """Show what became of the claims of the baseline, or write it; return the exit code."""
    from pytest_bnn.records.baseline import updated, write
    from pytest_bnn.records.compare import compare
    from pytest_bnn.records.evidence import Verdict
    from pytest_bnn.report.comparison import advice, recorded

    if run.verdict is Verdict.NOT_APPLICABLE and held.update:
        print(f"{held.path} stays as it is: nothing was judged")
        return NOTHING_APPLIES
    comparison = None if held.before is None else compare(held.before, run, inconclusive=settings.inconclusive)
    if comparison is not None:
        with reader_may_leave():
            terminal.show_comparison(comparison, of=str(held.path))
    if comparison is None or held.update:
        written = updated(held.before, run)
        write(written, held.path, _OPTION)
        print(f"wrote {held.path}: {recorded(written)}")
        return PASSED
    for words in advice(comparison, _UPDATE):
        print(words)
    if comparison.failing:
        return BROKEN if any(row.now and row.now.verdict is Verdict.ERROR for row in comparison.failing) else FAILED
    return NOTHING_APPLIES if run.verdict is Verdict.NOT_APPLICABLE else PASSED
