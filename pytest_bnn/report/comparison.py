"""How the comparison of two audits reads: lines for a terminal, a comment for a pull request, a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from pytest_bnn.records.codec import Scalar, clean, show
from pytest_bnn.records.compare import Comparison, Row, in_words
from pytest_bnn.records.evidence import Evidence, Verdict, is_failure
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import wording
from pytest_bnn.report.markdown import code, escape
from pytest_bnn.report.policy import foot, policy
from pytest_bnn.report.prose import names_of
from pytest_bnn.report.standing import SYMBOLS, Standing, standing, word

#: What a reader looks at; the others are counted.
TOLD: Final = frozenset({"new", "worse", "fixed", "better", "known"})

_NOTHING: Final = "\N{EN DASH}"
#: What a state says, above its rows on a page.
_MEANINGS: Final = {
    "new": "Fails now and did not before, or was judged before and is not any more.",
    "worse": "Failed before, and is worse now.",
    "new warning": "A warning that was not there before; it fails nothing.",
    "newly undecided": "Held before, and is undecided now; it fails nothing.",
    "fixed": "Failed before, and holds now.",
    "better": "Failed before, and still does, by less.",
    "known": "Failed before, and still does.",
}
#: Of those that fail nothing, as lines of a terminal.
_MOST_LINES: Final = 20
#: A comment on GitHub holds 65,536 characters.
_MOST_ROWS: Final = 40


def title(comparison: Comparison) -> str:
    """Return the headline as a sentence without its full stop."""
    return comparison.headline[0].upper() + comparison.headline[1:]


def tone(comparison: Comparison) -> Verdict:
    """Return the verdict whose colours and symbol the comparison has; where failures are known it is no green one."""
    if comparison.failing:
        return Verdict.FAIL
    amber = any(row.state == "known" or row.state == "new" for row in comparison.rows)
    return Verdict.WARN if amber else Verdict.PASS


def side(evidence: Evidence | None, write: Callable[[Scalar], str] = show) -> str:
    """Write what was found on one side: the verdict, and the value that decided it, as ``write`` writes it."""
    if evidence is None:
        return "not judged"
    threshold = evidence.threshold
    if threshold is None or threshold.observed is None or evidence.verdict is Verdict.NOT_APPLICABLE:
        return word(evidence.verdict)
    return f"{word(evidence.verdict)} {write(threshold.observed)}"


def why(row: Row) -> tuple[str, ...]:
    """Say what there is to know of a row beside its two sides."""
    found = (row.now.headline,) if row.now is not None and row.state in ("new", "worse", "known", "better") else ()
    lost = row.now is None or row.now.verdict is Verdict.NOT_APPLICABLE
    return row.notes if lost else (*found, *row.notes)


def lines(comparison: Comparison, *, everything: bool = False) -> list[tuple[str, str]]:
    """Return the comparison as lines of text, each with the state that it tells of, empty for none.

    Args:
        comparison: What to tell.
        everything: Whether rows that did not change are told, too.
    """
    told = [row for row in comparison.rows if everything or row.fails or row.state in TOLD]
    most = sum(row.fails for row in told) + (len(told) if everything else _MOST_LINES)
    found = [("", f"note: {words}") for words in comparison.warnings]
    rows = told[:most]
    if rows:
        table: list[tuple[str, ...]] = [("state", "check", "subject", "before", "now")]
        table += [(row.label, row.id, row.subject, side(row.before), side(row.now)) for row in rows]
        table = [tuple(clean(" ".join(cell.split())) for cell in cells) for cells in table]
        widths = [max(len(cells[column]) for cells in table) for column in range(4)]
        for row, cells in zip([None, *rows], table, strict=True):
            padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
            found.append((row.label if row else "", "  ".join((*padded, cells[4]))))
            words = why(row) if row and (row.state in TOLD) else ()
            found += [("", f"{'':<{widths[0]}}  {clean(' '.join(text.split()))}") for text in words]
    if len(told) > most:
        found.append(("", f"and {len(told) - most} more"))
    return found


def recorded(run: AuditRun) -> str:
    """Say what a baseline holds."""
    failed = sum(is_failure(check.verdict) and not check.expected for check in run.checks)
    known = "1 failure is" if failed == 1 else f"{failed:,} failures are"
    claims = "1 claim" if len(run.checks) == 1 else f"{len(run.checks):,} claims"
    return f"{claims}; {known} known from now on" if failed else f"{claims}, none of which failed"


def advice(comparison: Comparison, update: str) -> list[str]:
    """Say what to do about claims that are fixed, and about failures that are meant to stay."""
    said = []
    if comparison.fixed:
        fixed = in_words(row for row in comparison.rows if row.state == "fixed")
        said.append(f"{fixed}: run with {update} to record it")
    if comparison.failing:
        said.append(f"mend what is new or worse, or accept it with {update}")
    return said


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a short comment for a pull request, in GitHub's dialect."""
    blocks = [f"## {SYMBOLS[Standing(tone(comparison).value)]} {title(comparison)}"]
    if comparison.warnings:
        blocks.append("\n".join(f"- {escape(words)}" for words in comparison.warnings))
    first = [row for row in comparison.rows if row.fails]
    fixed = [row for row in comparison.rows if row.state == "fixed"]
    for head, rows in (("New or worse", first), ("Fixed", fixed)):
        if rows:
            blocks.append(f"**{head}**\n\n{_table(rows)}")
    told = [row for row in comparison.rows if not row.fails and row.state in TOLD - {"fixed"}]
    rest = [row for row in comparison.rows if row.state not in TOLD]
    folded = [_table(told)] if told else []
    for state in dict.fromkeys(row.state for row in rest):
        same = [row for row in rest if row.state == state]
        ids = dict.fromkeys(row.id for row in same)
        folded.append(f"{in_words(same)}: {', '.join(map(code, ids))}")
    if folded:
        words = in_words([*told, *rest])
        blocks.append("\n\n".join((f"<details><summary>{words}</summary>", *folded, "</details>")))
    blocks.append("<!-- pytest-bnn -->")  # a later one may replace this
    return wording.clean("\n\n".join(blocks) + "\n")


def html(comparison: Comparison, before: AuditRun, now: AuditRun) -> str:
    """Return the comparison as one self-contained page.

    Args:
        comparison: What `compare` gave.
        before: The earlier audit, of which the page says how it was made.
        now: The later one.
    """
    from pytest_bnn.report.html import as_prose, environment, texts, trusted

    names = dict.fromkeys(row.label for row in comparison.rows)
    groups = [(name, [row for row in comparison.rows if row.label == name]) for name in names]
    made = before.provenance, now.provenance
    styles = ["".join(texts(("style.css", "print.css", "comparison.css"))), foot("Two audits compared")]
    known = names_of(before) | names_of(now)
    page = environment().get_template("comparison.html.j2")
    return wording.clean(
        page.render(
            comparison=comparison,
            title=title(comparison),
            tone=tone(comparison),
            groups=groups,
            told={*_MEANINGS},
            side=side,
            why=why,
            meanings=_MEANINGS,
            policy=policy(styles, ()),
            styles=[trusted(style) for style in styles],
            in_words=in_words,
            prose=partial(as_prose, known),
            nothing=_NOTHING,
            provenance=[(name, *(of.get(name, "") for of in made)) for name in sorted({*made[0], *made[1]})],
        )
    )


def _table(rows: Sequence[Row]) -> str:
    found = ["| | claim | before | now |", "|---|---|---|---|"]
    for row in rows[:_MOST_ROWS]:
        words = "".join(f"<br>{escape(text)}" for text in why(row))
        name = f"{code(row.id)}<br>{escape(row.subject)}"
        found.append(f"| {row.label} | {name} | {_cell(row.before)} | {_cell(row.now)}{words} |")
    if len(rows) > _MOST_ROWS:
        found.append(f"| | and {len(rows) - _MOST_ROWS:,} more | | |")
    return "\n".join(found)


def _cell(evidence: Evidence | None) -> str:
    symbol = _NOTHING if evidence is None else SYMBOLS[standing(evidence)]
    return f"{symbol} {escape(side(evidence))}"
