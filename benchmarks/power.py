"""How often each sampling check finds a fault of a given size: power curves.

``python -m benchmarks.power --trials 40`` breaks small models by more and more, and counts verdicts. An effect of 0 is
a sound model, whose rate is that of false alarms.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn import checks, convert
from pytest_bnn.evidence import Evidence, Verdict
from pytest_bnn.options import Settings, using

IMAGES = torch.linspace(-1, 1, 24).reshape(12, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Of ``trials`` models that are broken by ``effect``, how many failed and how many stayed undecided."""

    check: str
    effect: float
    failed: int
    undecided: int
    trials: int


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
    """Let the spread lie below the floor by the share ``effect``."""
    scale = float(IMAGES.double().std())
    return checks.measure_noise_varies(Noisy(0.01 * (1 - effect) * scale), images=IMAGES, min_spread=0.01, seed=seed)


def disagreement(effect: float, seed: int) -> Evidence:
    """Let the agreement of 100 images fall short of .9 by ``effect``; single passes say something else now and then."""
    images = torch.zeros(100, 2)
    images[: round(100 * (0.1 + effect))] = 1
    return checks.measure_teacher_agreement(Voting(), teacher=Sure(), images=images, min_agreement=0.9, seed=seed)


CURVES: dict[str, tuple[Callable[[float, int], Evidence], tuple[float, ...]]] = {
    "noise.posterior": (scaled_noise, (0.0, 0.005, 0.01, 0.015, 0.02, 0.03)),
    "noise.spread": (wide_spread, (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)),
    "noise.varies": (low_spread, (0.0, 0.05, 0.1, 0.15, 0.25, 1.0)),
    "teacher.agreement": (disagreement, (0.0, 0.01, 0.02, 0.05, 0.1)),
}


def curve(check: str, trials: int) -> Iterator[Point]:
    """Measure one check at each of its effects, the same seeds at each."""
    break_by, effects = CURVES[check]
    for effect in effects:
        with using(Settings(sampler="own")):
            verdicts = [break_by(effect, seed).verdict for seed in range(trials)]
        yield Point(
            check=check,
            effect=effect,
            failed=verdicts.count(Verdict.FAIL),
            undecided=verdicts.count(Verdict.INCONCLUSIVE),
            trials=trials,
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=40, help="models at each effect (default: 40)")
    parser.add_argument("--json", type=Path, help="write the points here")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    points = []
    print("| check | effect | found | undecided |\n|---|---|---|---|")
    for check in CURVES:
        for point in curve(check, given.trials):
            points.append(point)
            shares = (f"{100 * count / point.trials:.0f} %" for count in (point.failed, point.undecided))
            print(f"| `{check}` | {point.effect:g} | {' | '.join(shares)} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
