"""How the comparison of two audits reads: lines for a terminal, a comment for a pull request, a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from pytest_bnn.records.codec import clean, show
from pytest_bnn.records.compare import STATES, Comparison, Row
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.report import wording
from pytest_bnn.report.markdown import code, escape

if TYPE_CHECKING:
    from pytest_bnn.records.run import AuditRun

#: What a reader looks at; the others are counted.
TOLD: Final = frozenset({"new", "worse", "fixed", "better", "known"})

_NOTHING: Final = "\N{EN DASH}"
#: A comment on GitHub holds 65,536 characters.
_MOST_ROWS: Final = 40


def title(comparison: Comparison) -> str:
    """Return the headline as a sentence without its full stop."""
    return comparison.headline[0].upper() + comparison.headline[1:]


def tone(comparison: Comparison) -> Verdict:
    """Return the verdict whose colours and symbol the comparison has."""
    return Verdict.FAIL if comparison.failing else Verdict.PASS


def side(evidence: Evidence | None) -> str:
    """Write what was found on one side: the verdict, and the value that decided it."""
    if evidence is None:
        return "not judged"
    threshold = evidence.threshold
    if threshold is None or threshold.observed is None or evidence.verdict is Verdict.NOT_APPLICABLE:
        return wording.word(evidence.verdict)
    return f"{wording.word(evidence.verdict)} {show(threshold.observed)}"


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
    rows = [row for row in comparison.rows if everything or row.fails or row.state in TOLD]
    found = [("", f"note: {words}") for words in comparison.warnings]
    if rows:
        table = [("state", "check", "subject", "before", "now")]
        table += [(row.state, row.id, row.subject, side(row.before), side(row.now)) for row in rows]
        widths = [max(len(clean(cells[column])) for cells in table) for column in range(4)]
        for row, cells in zip([None, *rows], table, strict=True):
            padded = [clean(cell).ljust(width) for cell, width in zip(cells, widths, strict=False)]
            found.append((row.state if row else "", "  ".join((*padded, clean(cells[4])))))
            found += [("", f"{'':<{widths[0]}}  {clean(' '.join(words.split()))}") for words in (why(row) if row else ())]
    return found


def markdown(comparison: Comparison) -> str:
    """Return the comparison as a short comment for a pull request, in GitHub's dialect."""
    blocks = [f"## {wording.SYMBOLS[tone(comparison)]} {title(comparison)}"]
    if comparison.warnings:
        blocks.append("\n".join(f"- {escape(words)}" for words in comparison.warnings))
    first = [row for row in comparison.rows if row.fails]
    fixed = [row for row in comparison.rows if row.state == "fixed"]
    rest = [row for row in comparison.rows if not row.fails and row.state != "fixed"]
    for head, rows in (("New or worse", first), ("Fixed", fixed)):
        if rows:
            blocks.append(f"**{head}**\n\n{_table(rows)}")
    if rest:
        words = ", ".join(f"{count:,} {state}" for state, count in _counts(rest))
        blocks.append(f"<details><summary>{words}</summary>\n\n{_table(rest)}\n\n</details>")
    return wording.clean("\n\n".join(blocks) + "\n")


def html(comparison: Comparison, before: AuditRun, now: AuditRun) -> str:
    """Return the comparison as one self-contained page.

    Args:
        comparison: What `compare` gave.
        before: The earlier audit, of which the page says how it was made.
        now: The later one.
    """
    from pytest_bnn.report.html import environment

    groups = [(state, rows) for state in STATES if (rows := [row for row in comparison.rows if row.state == state])]
    names = [name for name in dict.fromkeys((*before.provenance, *now.provenance))]
    page = environment().get_template("comparison.html.j2")
    return wording.clean(
        page.render(
            comparison=comparison,
            title=title(comparison),
            tone=tone(comparison),
            groups=groups,
            told=TOLD,
            side=side,
            why=why,
            nothing=_NOTHING,
            provenance=[(name, before.provenance.get(name, ""), now.provenance.get(name, "")) for name in sorted(names)],
        )
    )


def _counts(rows: Iterable[Row]) -> list[tuple[str, int]]:
    states = [row.state for row in rows]
    return [(state, states.count(state)) for state in STATES if state in states]


def _table(rows: Sequence[Row]) -> str:
    found = ["| | claim | before | now |", "|---|---|---|---|"]
    for row in rows[:_MOST_ROWS]:
        words = "".join(f"<br>{escape(text)}" for text in why(row)) if row.state in TOLD else ""
        name = f"{escape(row.claim)}<br>{code(row.id)} · {escape(row.subject)}"
        found.append(f"| {row.state} | {name} | {_cell(row.before)} | {_cell(row.now)}{words} |")
    if len(rows) > _MOST_ROWS:
        found.append(f"| | and {len(rows) - _MOST_ROWS:,} more | | |")
    return "\n".join(found)


def _cell(evidence: Evidence | None) -> str:
    symbol = _NOTHING if evidence is None else wording.SYMBOLS[evidence.verdict]
    return f"{symbol} {escape(side(evidence))}"
