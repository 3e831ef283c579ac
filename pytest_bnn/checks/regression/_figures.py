"""The figures of ``regression.coverage``: factor, distance, and observed against nominal coverage."""

from __future__ import annotations

import math

import torch

from pytest_bnn.checks._numbers import Numbers
from pytest_bnn.checks.regression._standard import FAR, Standard
from pytest_bnn.records.charts import Chart, ChartBand, ChartLine
from pytest_bnn.records.evidence import Measurement
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import clopper_pearson_lower, clopper_pearson_upper, distance_radius
from pytest_bnn.stats.likelihoods import Interval

LEVELS = (0.5, 0.8, 0.9, 0.95)


def measurements(found: Numbers, own: Standard, shown: Interval, budget: Budget) -> tuple[Measurement, ...]:
    """Return what stands beside the verdict.

    Args:
        found: What was predicted, and what occurred.
        own: The standard scores.
        shown: The interval of the factor that decided.
        budget: Of the bounds of each coverage, at beta.
    """
    between, within = float(found.mixture.between.mean()), float(found.mixture.within.mean())
    rows = [
        Measurement(name="factor of the spread", value=shown.best, note="1 is as predicted, more is wider"),
        Measurement(name="factor of the spread, lowest", value=shown_end(shown.low)),
        Measurement(name="factor of the spread, highest", value=shown_end(shown.high)),
        Measurement(name="distance", value=own.distance, note="of the distribution functions, from 0 to 1"),
        Measurement(
            name="mean", value=float(own.z.mean()), unit="predicted standard deviations", note="0 as predicted"
        ),
    ]
    for level in LEVELS:
        held, low, high = coverage_at(level, own, budget)
        rows.append(
            Measurement(name=f"coverage at {level:g}", value=held, note=f"certainly {low:.3g} to {high:.3g} (exact)")
        )
    rows += [
        Measurement(
            name="share of the passes", value=between / (between + within) if between + within > 0 else 0.0,
            note="of the predicted variance: what the passes disagree on",
        ),
        Measurement(name="predicted standard deviation", value=math.sqrt(between + within), note=f"by {found.source}"),
        Measurement(name="labels", value=len(found)),
    ]  # fmt: skip
    rows += [Measurement(name="outliers", value=own.far, note=f"beyond {FAR:g} deviations")] if own.far else []
    rows += [Measurement(name="examples left out", value=found.left_out)] if found.left_out else []
    return tuple(rows)


def coverage_at(level: float, own: Standard, budget: Budget) -> tuple[float, float, float]:
    """Return the share of labels in the central intervals of a nominal coverage, and its exact bounds at beta."""
    inside = (torch.special.ndtr(own.z) - 0.5).abs() <= level / 2
    held, count, rate = int(inside.sum()), len(own.z), budget.beta / 2
    return held / count, clopper_pearson_lower(held, count, rate), clopper_pearson_upper(held, count, rate)


#: Nominal coverages, and places of the distribution function, that a chart shows.
_SHOWN, _PLACES = tuple(level / 20 for level in range(1, 20)), 51


def charts(own: Standard, budget: Budget) -> tuple[Chart, ...]:
    """Return observed against nominal coverage, and the distribution function of the labels in their predictions'."""
    held, low, high = zip(*(coverage_at(level, own, budget) for level in _SHOWN), strict=True)
    places = torch.linspace(0, 1, _PLACES, dtype=torch.float64)
    below = torch.special.ndtr(own.z.double().sort().values)
    shares = torch.searchsorted(below, places, right=True).double() / len(below)
    radius = distance_radius(len(below), budget.beta)
    axis = tuple(places.tolist())
    return (
        Chart(
            title="Observed against nominal coverage",
            x_name="nominal coverage",
            y_name="share of labels inside",
            lines=(ChartLine(name="observed", x=_SHOWN, y=held, low=low, high=high, whose="model"),),
            caption="Central intervals of the predictive distributions; whiskers are exact bounds of each share. Above "
            "the diagonal the intervals are too wide, below it too narrow.",
            diagonal="as nominal",
            x_ends=(0.0, 1.0),
            y_ends=(0.0, 1.0),
        ),
        Chart(
            title="Are labels as spread as predicted? (PIT)",
            x_name="PIT of the label",
            y_name="share of labels below",
            lines=(ChartLine(name="labels", x=axis, y=tuple(shares.tolist()), steps=True, whose="model"),),
            caption="Where labels follow their predictions it is the diagonal, and runs inside of the band, all of it, "
            "but for the chance beta of a wrong pass.",
            band=ChartBand(
                name="where it runs when the predictions are right",
                x=axis,
                low=tuple((places - radius).clamp(0, 1).tolist()),
                high=tuple((places + radius).clamp(0, 1).tolist()),
            ),
            diagonal="as predicted",
            x_ends=(0.0, 1.0),
            y_ends=(0.0, 1.0),
        ),
    )


def shown_end(value: float) -> float | str:
    """Return an end of an interval as it is shown."""
    return float(f"{value:.3g}") if math.isfinite(value) else "any"
