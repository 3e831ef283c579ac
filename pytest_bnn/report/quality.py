"""How good the predictions are: what a reader wants to know first of each subject, from its scores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pytest_bnn.records.charts import PredictionSummary, ScoreTable
from pytest_bnn.records.evidence import Evidence
from pytest_bnn.report.outline import Group, Outline
from pytest_bnn.report.tables import score
from pytest_bnn.report.wording import number, percent

#: From the name of a score in a table of scores to what it is called here.
_COLUMNS: Final[Mapping[str, str]] = {
    "accuracy": "Accuracy",
    "Brier score": "Brier score",
    "negative log likelihood (nats)": "NLL (nats)",
    "best temperature": "Temperature",
}
#: The same of a regression, from the measurements of a claim: ``CRPS of the teacher`` is the teacher's CRPS.
_MEASURED: Final[Mapping[str, str]] = {"CRPS": "CRPS", "root mean square error": "RMSE"}
_MODEL, _TEACHER = "BNN", "teacher"
_ORDER: Final = (_MODEL, _TEACHER, "mean network", "one pass")
#: From so many subjects on each has one line.
_MANY = 3

_Scores = dict[str, dict[str, tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: whose scores, and each as a value with what stands beside it, an interval for example."""

    name: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Block:
    """The scores of one subject, or why there are none."""

    group: Group
    examples: int
    lines: tuple[Line, ...]
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Quality:
    """The table: its columns, a block for each subject, and whether each block is one line."""

    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    brief: bool

    @property
    def scored(self) -> tuple[Block, ...]:
        """The blocks with scores."""
        return tuple(block for block in self.blocks if block.lines)


def quality(shape: Outline) -> Quality:
    """Take from the records what the predictions of each subject are worth."""
    found = [
        (group, record.prediction_summary, _scores_of(group, record.prediction_summary))
        for group in shape.groups
        for record in group.records
    ]
    named = dict.fromkeys(column for _, _, scores in found for cells in scores.values() for column in cells)
    order = [*_COLUMNS.values(), *_MEASURED.values()]
    columns = tuple(sorted(named, key=lambda column: order.index(column) if column in order else len(order)))
    brief = sum(bool(scores) for _, _, scores in found) >= _MANY
    return Quality(columns, tuple(_block(*one, columns, brief) for one in found), brief)


def _scores_of(group: Group, summary: PredictionSummary | None) -> _Scores:
    """Return the scores by predictor and column."""
    if summary is not None and summary.scores is not None:
        return _of_table(summary.scores)
    return _of_measurements(card.evidence for card in group.cards)


def _of_table(table: ScoreTable) -> _Scores:
    found: _Scores = {}
    for row in table.rows:
        if row.name in _COLUMNS:
            for who, one in zip(table.predictors, row.scores, strict=False):
                value, between = score(one)
                between = between if "\N{MINUS SIGN}" in between else between.replace(" to ", "\N{EN DASH}")
                found.setdefault(who, {})[_COLUMNS[row.name]] = value, between
    return found


def _of_measurements(checks: Iterable[Evidence]) -> _Scores:
    found: _Scores = {}
    for check in checks:
        if check.id not in ("regression.scores", "regression.coverage"):
            continue
        for one in check.measurements:
            name, _, whose = one.name.partition(" of ")
            if isinstance(one.value, bool) or not isinstance(one.value, int | float):
                continue
            if name in _MEASURED:
                who = whose.removeprefix("the ") or _MODEL
                found.setdefault(who, {})[_MEASURED[name]] = number(float(one.value), 3), ""
            elif level := re.fullmatch(r"coverage at (0?\.\d+)", one.name):
                column = f"Within {percent(float(level[1]))}"
                found.setdefault(_MODEL, {})[column] = percent(float(one.value)), ""
    return found


def _block(
    group: Group, summary: PredictionSummary | None, scores: _Scores, columns: tuple[str, ...], brief: bool
) -> Block:
    examples = summary.examples if summary is not None else 0
    if not scores:
        why = "no claim about predictions was judged" if summary is None else summary.missing or "no labels to score by"
        return Block(group, examples, (), why)
    order = sorted(scores, key=lambda who: _ORDER.index(who) if who in _ORDER else len(_ORDER))
    none = "\N{EN DASH}", ""
    lines = tuple(Line(who, tuple(scores[who].get(column, none) for column in columns)) for who in order)
    return Block(group, examples, (_brief(lines),) if brief else lines)


def _brief(lines: tuple[Line, ...]) -> Line:
    """Return the model's scores in one line, with the teacher's beside each."""
    taught = next((line for line in lines if line.name == _TEACHER), None)
    beside = [f"({value})" if taught and value else "" for value, _ in (taught or lines[0]).cells]
    return Line(lines[0].name, tuple((value, other) for (value, _), other in zip(lines[0].cells, beside, strict=True)))
