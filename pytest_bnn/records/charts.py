"""Charts as records: what a report draws and writes as tables, as numbers that were computed before.

A check that has a curve to show returns it in its finding, ``Finding(..., charts=(Chart(...),))``. The report draws it
in its section on predictions, with a link to the evidence. The severity curves of some corruptions, for example, are
two charts, of the error and of the mean entropy, with a line for each corruption::

    Chart(
        title="Error under growing corruption",
        x_name="severity",
        y_name="share of wrong predictions",
        lines=tuple(ChartLine(name=kind, x=(0.0, 1.0, 2.0), y=errors) for kind, errors in found.items()),
        y_ends=(0.0, 1.0),
    )

Observed against nominal coverage is a line with bounds, ``ChartLine(name=..., x=nominal, y=observed, low=low,
high=high)``, in a chart with ``diagonal="as nominal"``. The ECDF of PIT values is a line with ``steps=True``, its
simultaneous band a `ChartBand`. All tuples of a line or a band have one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

#: Whose curve it is: what is audited, its teacher, or anything else, of which each gets a look of its own.
Whose: TypeAlias = Literal["model", "teacher", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartLine:
    """A line through points ``(x, y)``, in the order of ``x``. A y of NaN is no point and interrupts it.

    ``low`` and ``high`` are bounds of each y, drawn as whiskers; empty for none. With ``steps`` a value holds from its
    x to the next one, as in an ECDF.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    whose: Whose = "other"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    steps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartBand:
    """A shaded area between ``low`` and ``high`` over ``x``: where a line should run, as ``name`` says."""

    name: str
    x: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartCounts:
    """A histogram along the axis of x: ``counts[i]`` examples between ``edges[i]`` and ``edges[i + 1]``."""

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over one axis, at most a band behind them and at most a histogram below.

    ``diagonal`` names the line y = x, which is drawn for comparison; empty for none. ``x_ends`` and ``y_ends`` are ends
    of the axes, where the values should not decide them. ``caption`` says in a sentence or two what is seen.
    """

    title: str
    x_name: str
    y_name: str
    lines: tuple[ChartLine, ...]
    caption: str = ""
    band: ChartBand | None = None
    counts: ChartCounts | None = None
    diagonal: str = ""
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridge:
    """How one set of examples spreads over the bins of `Ridges`; ``inside`` says whether it is of the model's task."""

    name: str
    counts: tuple[int, ...]
    mean: float
    median: float
    inside: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridges:
    """Histograms of one quantity, one above the other, over the same bins between ``edges``."""

    title: str
    x_name: str
    edges: tuple[float, ...]
    rows: tuple[Ridge, ...]
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score with an interval; the bounds are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One score of each predictor of a `ScoreTable`, None where it has none; ``difference`` is model less teacher."""

    name: str
    scores: tuple[Score | None, ...]
    difference: Score | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """Scores of several predictors on the same labelled examples; ``note`` says what the intervals are."""

    predictors: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A wrong prediction: the example's place in the data, its picture, and what was said of it.

    ``image`` is a PNG as a data URI, empty where the example is no picture. ``confidence`` is the mean probability of
    the predicted class, ``of_label`` that of the label; ``teacher`` is the class that the teacher predicts.
    """

    index: int
    image: str
    label: str
    predicted: str
    confidence: float
    of_label: float
    teacher: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSummary:
    """What the predictions of a model are worth.

    ``missing`` says why nothing stands here that takes labels; empty where it does. ``mistakes`` are the wrong
    predictions with the largest confidence, of ``errors`` wrong ones in all. ``examples_of`` says where the labelled
    examples are from; it is empty where that is not known.
    """

    passes: int
    examples: int = 0
    left_out: int = 0
    missing: str = ""
    scores: ScoreTable | None = None
    charts: tuple[Chart, ...] = ()
    ridges: tuple[Ridges, ...] = ()
    errors: int = 0
    mistakes: tuple[Mistake, ...] = ()
    examples_of: Literal["", "data", "evaluation"] = ""
