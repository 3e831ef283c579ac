"""What the command line shows while an audit runs, and after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_bnn.audit.run import Progress
    from pytest_bnn.records.run import AuditRun


def show(run: AuditRun, *, verbose: bool) -> None:
    """Print the verdicts, and what a reader must know of those that do not hold."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pytest_bnn.records.codec import one_line
    from pytest_bnn.records.evidence import Verdict

    style = {"pass": "green", "warn": "yellow", "fail": "bold red", "error": "bold red", "inconclusive": "magenta"}
    console = Console(highlight=False)
    for subject in dict.fromkeys(check.subject for check in run.checks):
        console.print(Text(one_line(subject), style="bold"))
        table = Table(box=None, pad_edge=False, show_edge=False, show_header=False)
        for name in ("verdict", "check", "finding"):
            table.add_column(no_wrap=name != "finding", overflow="fold")
        for check in run.checks:
            if check.subject == subject:
                word: str = check.verdict.replace("_", " ")
                word += f", {len(check.accepted)} accepted" if check.accepted else ""
                shown = Text(word, style=style.get(check.verdict, "dim"))
                table.add_row(shown, check.id, Text(one_line(check.headline)))
        console.print(table)
        for sampler in dict.fromkeys(c.sampler for c in run.checks if c.subject == subject and c.sampler):
            console.print(Text(one_line(f"passes: {sampler}"), style="dim"))
        for trainer in dict.fromkeys(
            s.trainer for r in run.subjects if r.name == subject for s in r.training if s.trainer
        ):
            console.print(Text(one_line(f"fine-tuning: {trainer}"), style="dim"))
        console.print()
    told = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.WARN)
    for check in run.checks:
        if check.verdict in told or verbose:
            console.print(Text(check.explain()), soft_wrap=True)
            console.print()
    console.print(Text(f"verdict: {run.verdict.replace('_', ' ')}", style=style.get(run.verdict, "bold")))


@contextmanager
def progress() -> Iterator[Progress]:
    """Show what an audit is about to do, while it lasts."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("starting") as status:
        yield status.update
