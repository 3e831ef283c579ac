"""How often each sampling check finds a fault of a given size: power curves.

``python -m benchmarks.power --trials 40`` breaks small models by more and more, and counts verdicts. An effect of 0 is
a sound model, or one right at the threshold, which no check may fail. ``--svg FOLDER`` draws the
curves, ``--from FILE`` without measuring.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.curves import Curve, Mark, Point, dump, load, table, write_plots
from pytest_bnn import checks, convert
from pytest_bnn.checks.noise_posterior import TARGET
from pytest_bnn.evidence import Evidence, Verdict
from pytest_bnn.options import Settings, using

IMAGES = torch.linspace(-1, 1, 24).reshape(12, 2)


class Noisy(nn.Module):
    """Its input with noise of a known size."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x + self.size * torch.randn_like(x)


class Voting(nn.Module):
    """Probabilities of two classes from a Beta law: the first leads where an image is 0, the second where it is 1."""

    def forward(self, x: Tensor) -> Tensor:
        leads = torch.distributions.Beta(4 - 3 * x[:, 0], 1 + 3 * x[:, 0]).sample()
        return torch.stack([leads, 1 - leads], dim=1)


class Sure(nn.Module):
    """The first class, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.9, 0.1]).expand(len(x), 2)


def scaled_noise(effect: float, seed: int) -> Evidence:
    """Let a layer of 4,160 weights use ``1 + effect`` times the sigma of its posterior."""
    torch.manual_seed(seed)
    model = convert(nn.Sequential(nn.Linear(64, 64)).eval())
    layer: Any = model.get_submodule("0")

    def forward(x: Tensor) -> Tensor:
        drawn = {}
        for role in ("weight", "bias"):
            sigma = nn.functional.softplus(getattr(layer, f"rho_{role}"))
            eps = getattr(layer, f"eps_{role}").data.normal_()
            drawn[role] = getattr(layer, f"mu_{role}") + (1 + effect) * sigma * eps
        return nn.functional.linear(x, drawn["weight"], drawn["bias"])

    layer.forward = forward
    return checks.measure_noise_posterior(model, images=torch.rand(2, 64), seed=seed)


def wide_spread(effect: float, seed: int) -> Evidence:
    """Let the spread exceed the band by the share ``effect``."""
    torch.manual_seed(seed)
    model = convert(nn.Sequential(nn.Linear(2, 2)).eval())
    with torch.no_grad():
        for name, rho in model.named_parameters():
            if "rho_" in name:
                rho.fill_(math.log(math.expm1(0.1)))
    free = checks.measure_noise_spread(model, images=IMAGES, band=(1e-9, 1e9), max_passes=1000, seed=0)
    typical = float(str(free["spread"]))
    return checks.measure_noise_spread(model, images=IMAGES, band=(1e-9, typical / (1 + effect)), seed=seed + 1)


def low_spread(effect: float, seed: int) -> Evidence:
    """Let the typical spread lie below the floor by the share ``effect``.

    Half the squared difference of two passes, averaged over two outputs, is the noise's variance times an exponential
    variable, whose median is log 2.
    """
    size = 0.01 * (1 - effect) * float(IMAGES.double().std()) / math.sqrt(math.log(2))
    return checks.measure_noise_varies(Noisy(size), images=IMAGES, min_spread=0.01, seed=seed)


def disagreement(effect: float, seed: int, other: float = 1.0) -> Evidence:
    """Let the agreement of 100 images fall short of .9 by ``effect``; single passes say something else now and then.

    ``other`` says how clearly the other class leads there: by .6 on average at 1, and not at all at .5.
    """
    images = torch.zeros(100, 2)
    images[: round(100 * (0.1 + effect))] = other
    return checks.measure_teacher_agreement(Voting(), teacher=Sure(), images=images, min_agreement=0.9, seed=seed)


def close_votes(effect: float, seed: int) -> Evidence:
    """Let the other class lead by no more than .24 on average, where passes differ by .4."""
    return disagreement(effect, seed, 0.7)


def stated(sound: Evidence) -> tuple[Mark, ...]:
    """Mark the error of sigma that ``noise.posterior`` looks for, and the one that it says a layer this small shows."""
    shown = float(str(sound["effect shown in the small tensors together"]))
    return Mark(effect=TARGET, words="target"), Mark(effect=shown, words="stated for this layer")


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power", description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--trials", type=int, default=40, help="models at each effect (default: 40)")
    source.add_argument("--from", dest="file", type=Path, help="do not measure: read the curves that --json wrote")
    parser.add_argument("--json", type=Path, help="write the curves here")
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
        curves = tuple(curve(name, given.trials) for name in CURVES)
    print(table(curves))
    if given.json:
        given.json.write_text(dump(curves), encoding="utf-8")
    if given.svg:
        for path in write_plots(curves, given.svg):
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
