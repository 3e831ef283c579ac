"""What the command line shows after an audit: what does not hold, whole, and five lines about all of it."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from pytest_bnn.commands.watching import progress
from pytest_bnn.records.codec import one_line
from pytest_bnn.records.evidence import Evidence, Verdict

if TYPE_CHECKING:
    from rich.console import Console

    from pytest_bnn.records.compare import Comparison
    from pytest_bnn.records.run import AuditRun

_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "error": "bold red", "inconclusive": "magenta"}

#: Told whole, in this order.
_BAD = (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE)

#: What the last line says of a claim that was judged alone.
_ALONE = {
    Verdict.PASS: "holds",
    Verdict.WARN: "holds; it has a warning",
    Verdict.FAIL: "does not hold",
    Verdict.INCONCLUSIVE: "is not decided",
    Verdict.ERROR: "could not be judged for an error",
}

#: An option in a sentence.
_OPTION = re.compile(r"--[a-z][a-z-]*[a-z]")

#: The fewest columns that text is wrapped to.
_NARROWEST = 20


def show(run: AuditRun, *, verbose: bool = False, quiet: bool = False) -> None:
    """Print what does not hold, whole, then what was found in all: the verdict, what is not judged, what is accepted.

    Args:
        run: What an audit found.
        verbose: Whether claims that hold, and those that are not judged, are told one by one.
        quiet: Whether to print the verdict alone, as one line.
    """
    console = _console()
    if not quiet:
        _tell(console, run, verbose)
    _print(console, f"verdict: {_verdict(run)}", style=_STYLES.get(run.verdict, "bold"))
    if not quiet:
        for words in run.cut:
            _print(console, f"not the whole audit: {words}", style="yellow")
        _print(console, f"not judged: {_not_judged(run)}")
        _print(console, f"accepted: {_accepted(run)}")


def show_comparison(comparison: Comparison, *, of: str = "", everything: bool = False) -> None:
    """Print what became of the claims of an earlier audit.

    Args:
        comparison: What `compare` gave.
        of: The name of the earlier audit, for the last line.
        everything: Whether claims that did not change are shown, too.
    """
    from pytest_bnn.report.comparison import lines, title

    style = {"new": "bold red", "worse": "bold red", "fixed": "green", "better": "green", "known": "yellow"}
    console = _console()
    for state, words in lines(comparison, everything=everything):
        _print(console, words, style=style.get(state))
    said = f"{of}: {comparison.headline}" if of else title(comparison)
    _print(console, said, style="bold red" if comparison.failing else "green")


def _console() -> Console:
    from rich.console import Console

    class ForReaders(Console):
        """Lets a reader that leaves be the caller's business; Rich would end the process."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return ForReaders(highlight=False)


def _tell(console: Console, run: AuditRun, verbose: bool) -> None:
    """Print the evidence that somebody has to read, the worst first."""
    whole = [check for verdict in _BAD for check in run.checks if check.verdict is verdict]
    short = [check for check in run.checks if check.verdict is Verdict.WARN]
    if verbose:
        whole += [*short, *(check for check in run.checks if check.verdict is Verdict.PASS)]
        short = [check for check in run.checks if check.verdict is Verdict.NOT_APPLICABLE]
    for check in whole:
        head, *lines = check.explain().split("\n")
        _print(console, head, style=_STYLES[check.verdict])
        for line in lines:
            _print(console, line)
        _print(console, "")
    several = len({check.subject for check in run.checks}) > 1
    for check in short:
        about = f" on {check.subject}" if several else ""
        _print(console, f"{_standing(check)} {check.id}{about}: {check.headline}", style=_STYLES.get(check.verdict))
        if check.remedy and check.verdict is Verdict.WARN:
            _print(console, f"  fix:      {check.remedy}")
    if short:
        _print(console, "")
    if verbose:
        for name, words in _computed(run):
            _print(console, f"{name}: {words}")


def _computed(run: AuditRun) -> list[tuple[str, str]]:
    """Say what computed passes and fine-tuning, each sentence once."""
    trainers = (step.trainer for subject in run.subjects for step in subject.training if step.trainer)
    samplers = (check.sampler for check in run.checks if check.sampler)
    return [("passes", said) for said in dict.fromkeys(samplers)] + [
        ("fine-tuning", said) for said in dict.fromkeys(trainers)
    ]


def _verdict(run: AuditRun) -> str:
    """Say in a sentence how many claims were judged, and how many hold."""
    judged = [check for check in run.checks if check.verdict is not Verdict.NOT_APPLICABLE]
    word = _word(run.verdict)
    names = list(dict.fromkeys(check.subject for check in run.checks))
    about = f"{len(names)} models" if len(names) != 1 else names[0]
    if not judged and len(run.checks) == 1:
        return f"{word}. The one claim about {about} could not be judged."
    if not judged:
        return f"{word}. None of {_claims(len(run.checks))} about {about} could be judged."
    holding = sum(check.verdict in (Verdict.PASS, Verdict.WARN) for check in judged)
    if len(judged) == 1:
        that = "" if judged[0].verdict is Verdict.ERROR else " that was judged"
        return f"{word}. The one claim about {about}{that} {_ALONE[judged[0].verdict]}."
    if holding == len(judged):
        said = f"All {_claims(len(judged))} about {about} that were judged hold"
    else:
        hold = "holds" if holding == 1 else "hold"
        said = f"{holding or 'None'} of {_claims(len(judged))} about {about} that were judged {hold}"
    parts = [
        f"{count} {one if count == 1 else many}"
        for verdict, one, many in (
            (Verdict.WARN, "has a warning", "have warnings"),
            (Verdict.FAIL, "fails", "fail"),
            (Verdict.INCONCLUSIVE, "is not decided", "are not decided"),
            (Verdict.ERROR, "could not be judged for an error", "could not be judged for errors"),
        )
        if (count := sum(check.verdict is verdict for check in judged))
    ]
    return f"{word}. {'; '.join([said, *parts])}."


def _not_judged(run: AuditRun) -> str:
    """Say which claims were not judged with what would let them be, and apart from them which do not apply here."""
    from pytest_bnn.report.unjudged import option

    lacking: dict[str, list[Evidence]] = {}
    others: dict[str, list[Evidence]] = {}
    for check in run.checks:
        if check.unjudged:
            lacking.setdefault(f" (give {' and '.join(option(it).command for it in check.missing)})", []).append(check)
        elif check.verdict is Verdict.NOT_APPLICABLE:
            named = dict.fromkeys(_OPTION.findall(check.headline))
            others.setdefault(f" (see {', '.join(named)})" if named else "", []).append(check)
    said, apart = ([f"{_ids(checks)}{how}" for how, checks in of.items()] for of in (lacking, others))
    parts = ["; ".join(said) or "nothing", *([f"not applicable: {', and '.join(apart)}"] if apart else [])]
    return "; ".join([*parts, *(["-v says why"] if said or apart else [])])


def _accepted(run: AuditRun) -> str:
    """Say what was left out of the claims on purpose, and for which reason."""
    found = dict.fromkeys((one.path, one.reason) for check in run.checks for one in check.accepted)
    return "; ".join(f"{path or '(the model itself)'} ({reason!r})" for path, reason in found) or "nothing"


def _ids(checks: list[Evidence]) -> str:
    return ", ".join(dict.fromkeys(check.id for check in checks))


def _claims(count: int) -> str:
    return f"{count} {'claim' if count == 1 else 'claims'}"


def _standing(check: Evidence) -> str:
    """Name what a claim counts as, as the page does."""
    from pytest_bnn.report.standing import standing, word

    return word(standing(check))


def _word(verdict: Verdict) -> str:
    return verdict.replace("_", " ")


def _print(console: Console, line: str, *, style: str | None = None) -> None:
    """Print a line: wrapped to a terminal's width, with what follows indented, and nowhere else."""
    from rich.text import Text

    for part in _wrapped(one_line(line)):
        console.print(Text(part, style=style or ""), soft_wrap=True)


def _wrapped(line: str) -> list[str]:
    if not sys.stdout.isatty():
        return [line]
    width = max(_NARROWEST, shutil.get_terminal_size().columns)
    label = line[: len(line) - len(line.lstrip())] + "  "
    if line.startswith("  ") and line[:12].rstrip().endswith(":") and width >= 60:
        label = 12 * " "
    return textwrap.wrap(
        line, width, subsequent_indent=label, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    ) or [""]


__all__ = ["progress", "show", "show_comparison"]
