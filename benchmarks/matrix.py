"""What became of the mutants of `benchmarks.mutation`, and its tables in Markdown."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.expected import EXPECTED
from pytest_bnn.audit.run import CHECK_IDS
from pytest_bnn.checks import registry
from pytest_bnn.records.evidence import Verdict

#: A check that raised instead of giving a verdict, because it took the mutant for wrong input.
REFUSED = "refused"

#: The checks that judge mutants. Claims about data are none of these: few examples decide nothing about predictions.
JUDGES = tuple(id for id in CHECK_IDS if not getattr(registry.declaration(id), "of_data", False))

BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


class Outcome(enum.StrEnum):
    KILLED = "killed"
    SURVIVED = "survived"
    BELOW_POWER = "below power"
    EQUIVALENT = "equivalent"
    CHOICE = "a choice"
    FALSE_ALARM = "false alarm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one mutant: each check's verdict, and the checks that failed and name its layer."""

    case: str
    mutant: str
    attribute: str
    mutation: str
    outcome: Outcome
    reason: str
    verdicts: dict[str, str]
    named_by: tuple[str, ...]

    @property
    def kind(self) -> tuple[str, str]:
        return self.attribute, self.mutation


def score(results: Iterable[Result]) -> tuple[int, int]:
    """Return how many were killed, of those that had to be: neither equivalent, nor a choice, nor below power."""
    counts = Counter(result.outcome for result in results)
    return counts[Outcome.KILLED], counts[Outcome.KILLED] + counts[Outcome.SURVIVED]


def table(results: list[Result]) -> str:
    lines = [
        "| attribute | mutation | mutants | outcome | " + " | ".join(f"`{id}`" for id in JUDGES) + " |",
        "|---|---|---|---|" + "---|" * len(JUDGES),
    ]
    for kind in EXPECTED:
        mine = [result for result in results if result.kind == kind]
        if mine:
            outcomes = Counter(result.outcome for result in mine)
            said = ", ".join(
                f"{outcome} {count}" if len(outcomes) > 1 else outcome for outcome, count in outcomes.items()
            )
            cells = [sum(result.verdicts.get(id) == Verdict.FAIL for result in mine) for id in JUDGES]
            row = [*kind, str(len(mine)), said, *(str(cell or "") for cell in cells)]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def summary(results: list[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    killed, of = score(results)
    named = sum(bool(result.named_by) for result in results if result.outcome is Outcome.KILLED)
    cases = "; ".join(dict.fromkeys(result.case for result in results))
    rest = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if outcome is not Outcome.KILLED)
    share = f"{100 * killed / max(1, of):.1f} %"
    return (
        f"{len(results)} mutants ({cases}): {killed} killed of the {of} that had to be ({share}), {named} "
        f"of them by a check that names the layer. The others: {rest}.{_refusals(results)}"
    )


def _refusals(results: list[Result]) -> str:
    found = Counter((id, result.kind) for result in results for id, v in result.verdicts.items() if v == REFUSED)
    return "".join(
        f"\n`{id}` raised an input error, no verdict, on {count} ({' '.join(kind)})."
        for (id, kind), count in found.items()
    )


def survivors(results: list[Result]) -> str:
    """List what was not killed, kind by kind, with the reason."""
    lines = []
    for outcome in (Outcome.SURVIVED, Outcome.FALSE_ALARM, Outcome.BELOW_POWER, Outcome.EQUIVALENT, Outcome.CHOICE):
        rows: dict[tuple[tuple[str, str], str], list[Result]] = {}
        for result in results:
            if result.outcome is outcome:
                rows.setdefault((result.kind, result.reason), []).append(result)
        lines += [
            f"| {outcome} | {' '.join(kind)} | {len(mine)} | {reason} | {_accusers(mine)} |"
            for (kind, reason), mine in rows.items()
        ]
    return "\n".join(
        ["| outcome | mutant | mutants | why | verdicts other than pass |", "|---|---|---|---|---|", *lines]
    )


def _accusers(results: list[Result]) -> str:
    quiet = (Verdict.PASS, Verdict.NOT_APPLICABLE)
    found = Counter((id, v) for result in results for id, v in result.verdicts.items() if v not in quiet)
    return ", ".join(f"`{id}` {verdict} {count}" for (id, verdict), count in found.items())


def put(page: str, text: str) -> str:
    """Put a text between the markers of a page."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"the page has no {BEGIN} with {END} after it")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
