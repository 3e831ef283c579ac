"""What the command line shows while an audit runs, and after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_bnn.audit.run import Progress
    from pytest_bnn.records.compare import Comparison
    from pytest_bnn.records.run import AuditRun


def show(run: AuditRun, *, verbose: bool) -> None:
    """Print the verdicts, and what a reader must know of those that do not hold."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pytest_bnn.records.codec import clean
    from pytest_bnn.records.evidence import Verdict

    style = {"pass": "green", "warn": "yellow", "fail": "bold red", "error": "bold red", "inconclusive": "magenta"}
    console = Console(highlight=False)
    for subject in dict.fromkeys(check.subject for check in run.checks):
        console.print(Text(subject, style="bold"))
        table = Table(box=None, pad_edge=False, show_edge=False, show_header=False)
        for name in ("verdict", "check", "finding"):
            table.add_column(no_wrap=name != "finding", overflow="fold")
        for check in run.checks:
            if check.subject == subject:
                word = Text(check.verdict.replace("_", " "), style=style.get(check.verdict, "dim"))
                table.add_row(word, check.id, Text(clean(check.headline)))
        console.print(table)
        for sampler in dict.fromkeys(c.sampler for c in run.checks if c.subject == subject and c.sampler):
            console.print(Text(f"passes: {sampler}", style="dim"))
        for trainer in dict.fromkeys(
            s.trainer for r in run.subjects if r.name == subject for s in r.training if s.trainer
        ):
            console.print(Text(f"fine-tuning: {trainer}", style="dim"))
        console.print()
    told = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.WARN)
    for check in run.checks:
        if check.verdict in told or verbose:
            console.print(Text(check.explain()), soft_wrap=True)
            console.print()
    for words in run.cut:
        console.print(Text(f"not the whole audit: {clean(words)}", style="yellow"), soft_wrap=True)
    console.print(Text(f"verdict: {run.verdict.replace('_', ' ')}", style=style.get(run.verdict, "bold")))


def show_comparison(comparison: Comparison, *, of: str = "", everything: bool = False) -> None:
    """Print what became of the claims of an earlier audit.

    Args:
        comparison: What `compare` gave.
        of: The name of the earlier audit, for the last line.
        everything: Whether claims that did not change are shown, too.
    """
    from rich.console import Console
    from rich.text import Text

    from pytest_bnn.report.comparison import lines, title

    style = {"new": "bold red", "worse": "bold red", "fixed": "green", "better": "green", "known": "yellow"}
    console = Console(highlight=False)
    for state, words in lines(comparison, everything=everything):
        console.print(Text(words, style=style.get(state, "")), soft_wrap=True)
    said = f"{of}: {comparison.headline}" if of else title(comparison)
    console.print(Text(said, style="bold red" if comparison.failing else "green"), soft_wrap=True)


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
