"""How often each sampling check finds a fault of a given size: power curves.

``python -m benchmarks.power --trials 40`` breaks small models by more and more, and counts verdicts. An effect of 0 is
a sound model, or one right at the threshold, which no check may fail. ``--curve NAME`` measures that curve alone.
``--svg FOLDER`` draws the curves, ``--from FILE`` without measuring.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from benchmarks.curves import Curve, Mark, Point, dump, load, table, write_plots
from benchmarks.weakened import (
    WIDTH,
    close_votes,
    disagreement,
    low_spread,
    no_source,
    scaled_flipout,
    scaled_noise,
    wide_spread,
)
from pytest_bnn.checks.noise.posterior import TARGET
from pytest_bnn.options import Settings, using
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import draws_below_median
from pytest_bnn.stats.normal import effect as effect_shown

#: Of a mark that says what a check shows.
POWER = 1 - Budget().beta


def stated(sound: Evidence) -> tuple[Mark, ...]:
    """Mark the error of sigma that ``noise.posterior`` looks for, and the one that it says a layer this small shows."""
    shown = float(str(sound["effect shown in the small tensors together"]))
    return Mark(effect=TARGET, words="target"), Mark(effect=shown, words="stated for this layer")


def shown_by_flipout(sound: Evidence) -> tuple[Mark, ...]:
    """Mark what the chi-square test of all pooled outputs shows, at half of alpha: the mean has the other half."""
    shown = effect_shown(sound.samples * WIDTH, Budget().alpha / 2, POWER)
    return (Mark(effect=shown, words=f"power {POWER:g}"),)


def shown_by_source(sound: Evidence) -> tuple[Mark, ...]:
    """Mark the threshold, and where no pair exceeds it at this power.

    Squared spreads are exponential, so one exceeds the squared threshold with the chance 2 to the power of minus its
    ratio to their median, ``(1 - effect)**-2``.
    """
    exceeds = 1 - POWER ** (1 / draws_below_median(Budget().alpha))
    return *threshold(sound), Mark(effect=1 - math.log2(1 / exceeds) ** -0.5, words=f"power {POWER:g}")


def threshold(sound: Evidence) -> tuple[Mark, ...]:
    """Mark the threshold: effects are counted from there."""
    return (Mark(effect=0.0, words="threshold"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What breaks a model for a check, by how much, and how the axis names it. The first effect is none."""

    check: str
    unit: str
    break_by: Callable[[float, int], Evidence]
    effects: tuple[float, ...]
    marks: Callable[[Evidence], tuple[Mark, ...]] = threshold
    case: str = ""


CURVES: Mapping[str, Experiment] = MappingProxyType(
    {
        "noise.posterior": Experiment(
            check="noise.posterior",
            unit="sigma in use, beyond the posterior's (%)",
            break_by=scaled_noise,
            effects=(0.0, 0.005, 0.0075, 0.009, 0.01, 0.011, 0.0125, 0.015, 0.02, 0.03),
            marks=stated,
        ),
        "estimator.flipout": Experiment(
            check="estimator.flipout",
            unit="noise of the layer, beyond the posterior's (%)",
            break_by=scaled_flipout,
            effects=(0.0, 0.05, 0.075, 0.1, 0.11, 0.125, 0.15, 0.175, 0.2, 0.3),
            marks=shown_by_flipout,
        ),
        "noise.source": Experiment(
            check="noise.source",
            unit="spread of the outputs, below the threshold (%)",
            break_by=no_source,
            effects=(0.0, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 1.0),
            marks=shown_by_source,
        ),
        "noise.spread": Experiment(
            check="noise.spread",
            unit="spread of the outputs, above the threshold (%)",
            break_by=wide_spread,
            effects=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0),
        ),
        "noise.varies": Experiment(
            check="noise.varies",
            unit="spread of the outputs, below the threshold (%)",
            break_by=low_spread,
            effects=(0.0, 0.1, 0.2, 0.25, 0.3, 0.325, 0.35, 0.4, 0.5, 1.0),
        ),
        "teacher.agreement": Experiment(
            check="teacher.agreement",
            case="clear votes",
            unit="images short of the 90 of 100 that must agree",
            break_by=disagreement,
            effects=(0.0, 0.01, 0.02, 0.05, 0.1),
        ),
        "teacher.agreement, close": Experiment(
            check="teacher.agreement",
            case="close votes",
            unit="images short of the 90 of 100 that must agree",
            break_by=close_votes,
            effects=(0.0, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3),
        ),
    }
)


def curve(name: str, trials: int) -> Curve:
    """Measure one experiment at each of its effects, the same seeds at each."""
    given = CURVES[name]
    points, sound = [], None
    with using(Settings(sampler="own")):
        for effect in given.effects:
            found = [given.break_by(effect, seed) for seed in range(trials)]
            sound = sound or found[0]
            verdicts = [evidence.verdict for evidence in found]
            points.append(
                Point(
                    effect=effect,
                    failed=verdicts.count(Verdict.FAIL),
                    undecided=verdicts.count(Verdict.INCONCLUSIVE),
                    trials=trials,
                )
            )
    assert sound is not None
    return Curve(check=given.check, case=given.case, unit=given.unit, marks=given.marks(sound), points=tuple(points))


def merged(old: Iterable[Curve], new: Iterable[Curve]) -> tuple[Curve, ...]:
    """Put new curves in the place of old ones, in the order of `CURVES`; curves that are there no more are left out."""
    found = {(curve.check, curve.case): curve for curve in (*old, *new)}
    order = [(experiment.check, experiment.case) for experiment in CURVES.values()]
    return tuple(found[key] for key in order if key in found)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power", description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--trials", type=int, default=40, help="models at each effect (default: 40)")
    source.add_argument("--from", dest="file", type=Path, help="do not measure: read the curves that --json wrote")
    parser.add_argument("--curve", action="append", choices=CURVES, help="measure only this one; may be repeated")
    parser.add_argument("--json", type=Path, help="write the curves here; of curves not measured, what is there stays")
    parser.add_argument("--svg", type=Path, help="draw the curves into this folder, for light and for dark pages")
    given = parser.parse_args(arguments)
    if given.trials < 1:
        parser.error("--trials must be at least 1")
    if given.file:
        try:
            curves = load(given.file)
        except ValueError as wrong:
            parser.error(str(wrong))
    else:
        torch.set_num_threads(1)
        chosen = given.curve or CURVES
        curves = tuple(curve(name, given.trials) for name in CURVES if name in chosen)
    print(table(curves))
    if given.json and given.curve and given.json.exists():
        curves = merged(load(given.json), curves)
    if given.json:
        given.json.write_text(dump(curves), encoding="utf-8")
    if given.svg:
        for path in write_plots(curves, given.svg):
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
