"""How good the predictions are: what a reader wants to know first of each subject, from its table of scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pytest_bnn.records.charts import PredictionSummary, ScoreTable
from pytest_bnn.report.outline import Group, Outline
from pytest_bnn.report.tables import score

#: From the name of a score in a table of scores to what it is called here.
_COLUMNS: Final[Mapping[str, str]] = {
    "accuracy": "Accuracy",
    "Brier score": "Brier score",
    "negative log likelihood (nats)": "NLL (nats)",
    "best temperature": "Temperature",
}
_MODEL, _TEACHER = "BNN", "teacher"
_ORDER: Final = (_MODEL, _TEACHER, "mean network", "one pass")
#: From so many subjects on each has one line.
_MANY = 3


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
    pairs = [(group, record) for group in shape.groups for record in group.records]
    summaries = [record.prediction_summary for _, record in pairs if record.prediction_summary]
    tables = [summary.scores for summary in summaries if summary.scores]
    found = {row.name for table in tables for row in table.rows}
    brief = len(tables) >= _MANY
    names = tuple(name for name in _COLUMNS if name in found)
    blocks = tuple(_block(group, record.prediction_summary, names, brief) for group, record in pairs)
    return Quality(tuple(_COLUMNS[name] for name in names), blocks, brief)


def _block(group: Group, summary: PredictionSummary | None, names: tuple[str, ...], brief: bool) -> Block:
    if summary is None:
        return Block(group, 0, (), "no claim about predictions was judged")
    if summary.scores is None or not names:
        return Block(group, summary.examples, (), summary.missing or "no scores were recorded")
    lines = _brief(summary.scores, names) if brief else _lines(summary.scores, names)
    return Block(group, summary.examples, lines)


def _lines(table: ScoreTable, names: tuple[str, ...]) -> tuple[Line, ...]:
    known = {row.name: row for row in table.rows}
    order = sorted(table.predictors, key=lambda who: _ORDER.index(who) if who in _ORDER else len(_ORDER))
    return tuple(
        Line(
            who,
            tuple(
                _short(score(known[name].scores[table.predictors.index(who)])) if name in known else ("", "")
                for name in names
            ),
        )
        for who in order
    )


def _short(written: tuple[str, str]) -> tuple[str, str]:
    """Write an interval of positive numbers with a dash."""
    value, between = written
    return value, between if "\N{MINUS SIGN}" in between else between.replace(" to ", "\N{EN DASH}")


def _brief(table: ScoreTable, names: tuple[str, ...]) -> tuple[Line, ...]:
    """Return the model's scores in one line, with the teacher's beside each."""
    lines = {line.name: line for line in _lines(table, names)}
    model = lines.get(_MODEL) or next(iter(lines.values()))
    taught = lines.get(_TEACHER)
    beside = [f"({value})" if taught and value else "" for value, _ in (taught or model).cells]
    return (Line(model.name, tuple((value, other) for (value, _), other in zip(model.cells, beside, strict=True))),)
