"""The figures of ``regression.coverage``: factor, distance, and observed against nominal coverage."""

from __future__ import annotations

import math

import torch

from pytest_bnn.checks._numbers import Numbers
from pytest_bnn.checks.regression._standard import FAR, Standard
from pytest_bnn.records.evidence import Measurement
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import clopper_pearson_lower, clopper_pearson_upper
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
    inside = (torch.special.ndtr(own.z) - 0.5).abs()
    for level in LEVELS:
        held, count, rate = int((inside <= level / 2).sum()), len(own.z), budget.beta / 2
        low, high = clopper_pearson_lower(held, count, rate), clopper_pearson_upper(held, count, rate)
        rows.append(
            Measurement(
                name=f"coverage at {level:g}", value=held / count, note=f"certainly {low:.3g} to {high:.3g} (exact)"
            )
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


def shown_end(value: float) -> float | str:
    """Return an end of an interval as it is shown."""
    return float(f"{value:.3g}") if math.isfinite(value) else "any"
