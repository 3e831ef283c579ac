"""False alarms and power of the claims about predictions, on simulated models whose truth is known.

``python -m benchmarks.predictions`` draws ten thousand sound models of each kind, and labels from their own
probabilities, and counts how often the truth is left out: at one in a million never, at .05 at most so often. A model
of which the truth is left in fails by no band that holds it. ``--power`` measures instead how often whole checks find
models that are wrong by so much, with so many labels, as a table.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pytest_bnn import checks
from pytest_bnn.checks._sides import brier, ranges_of
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.stats.intervals import hoeffding_radius, pairs_bounds
from pytest_bnn.stats.likelihoods import Family, odds, scale, temperature
from pytest_bnn.stats.order import auroc
from pytest_bnn.subject import Subject

LABELS, CLASSES = 360, 10
RATES = (0.05, 1e-6)


def _scores(generator: torch.Generator, classes: int) -> Tensor:
    """Scores of one model, which is unsure of its examples or sure: their size is drawn, too."""
    size = 0.5 + 4.5 * torch.rand((), generator=generator, dtype=torch.float64)
    return size * torch.randn(LABELS, classes, generator=generator, dtype=torch.float64)


def _drawn(log_shares: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(log_shares.exp(), 1, generator=generator)[:, 0]


def _rejects(family: Family, truth: float, rate: float) -> bool:
    return family.log_evidence(truth) >= math.log(1 / rate)


def _temperature(classes: int, truth: float) -> Callable[[torch.Generator], tuple[bool, ...]]:
    def one(generator: torch.Generator) -> tuple[bool, ...]:
        logs = _scores(generator, classes).log_softmax(1)
        labels = _drawn((logs / truth).log_softmax(1), generator)
        family = temperature(logs, labels)
        return tuple(_rejects(family, math.log(truth), rate) for rate in RATES)

    return one


def _classes(classes: int) -> Callable[[torch.Generator], tuple[bool, ...]]:
    def one(generator: torch.Generator) -> tuple[bool, ...]:
        logs = _scores(generator, classes).log_softmax(1)
        labels, sums = _drawn(logs, generator), logs.exp().sum(0)
        judged = [c for c in range(classes) if float(sums[c]) > 0]
        families = [odds(torch.stack([torch.log1p(-logs[:, c].exp()), logs[:, c]], 1), labels == c) for c in judged]
        return tuple(any(_rejects(family, 0.0, rate / len(judged)) for family in families) for rate in RATES)

    return one


def _scale(generator: torch.Generator) -> tuple[bool, ...]:
    family = scale(torch.randn(LABELS, generator=generator, dtype=torch.float64))
    return tuple(_rejects(family, 0.0, rate) for rate in RATES)


def _against_teacher(generator: torch.Generator) -> tuple[bool, ...]:
    """The labels follow the teacher; the margin is what the model is worse by in truth."""
    logs = _scores(generator, CLASSES).log_softmax(1)
    mine, labels = (logs / 3).log_softmax(1), _drawn(logs, generator)
    worse = brier(mine, labels) - brier(logs, labels)
    truth = sum((logs[:, c].exp() * (brier(mine, y) - brier(logs, y))).mean() for c, y in _each(len(logs)))
    radii = (hoeffding_radius(ranges_of(mine, logs), rate) for rate in RATES)
    return tuple(float(worse.mean() - truth) > radius for radius in radii)


def _each(count: int) -> Iterator[tuple[int, Tensor]]:
    return ((c, torch.full((count,), c)) for c in range(CLASSES))


#: How far apart two normal distributions are, of which one has the larger value with a chance of .7.
_APART = 0.7416


def _outside(generator: torch.Generator) -> tuple[bool, ...]:
    """The least chance is the true one."""
    inside, outside = (torch.randn(count, generator=generator, dtype=torch.float64) for count in (LABELS, 96))
    found = auroc(inside.exp(), (outside + _APART).exp())
    return tuple(pairs_bounds(found, 96, rate)[1] < 0.7 for rate in RATES)


SOUND: Mapping[str, Callable[[torch.Generator], tuple[bool, ...]]] = MappingProxyType(
    {
        "calibration.temperature, ten classes": _temperature(CLASSES, 1.0),
        "calibration.temperature, at the band's end": _temperature(CLASSES, 2.0),
        "calibration.temperature, binary": _temperature(2, 1.0),
        "calibration.classes, ten classes": _classes(CLASSES),
        "calibration.classes, binary": _classes(2),
        "scores.against_teacher, at the margin": _against_teacher,
        "uncertainty.ood, at the least chance": _outside,
        "normal predictions of a known spread": _scale,
    }
)


def false_alarms(name: str, models: int, seed: int = 0) -> tuple[int, ...]:
    """Return how many of so many sound models are wrong by what labels say, at each of `RATES`."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.tensor([SOUND[name](generator) for _ in range(models)])
    return tuple(found.sum(0).tolist())


class Says(nn.Module):
    """Its input as scores."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """How a check meets models that are wrong by each of some effects; ``break_by(effect, labels, seed)``."""

    check: str
    unit: str
    effects: tuple[float, ...]
    break_by: Callable[[float, int, int], Evidence]


def _unsure(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of ten classes whose leading probability is two thirds on average, and labels that follow them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, CLASSES, generator=generator)
    return logits, _drawn(logits.log_softmax(1), generator)


def _scaled(effect: float, count: int, seed: int) -> Evidence:
    logits, labels = _unsure(count, seed)
    return checks.measure_calibration_temperature(Subject(Says(), images=logits * effect, labels=labels))


def _rarer(effect: float, count: int, seed: int) -> Evidence:
    logits, labels = _unsure(count, seed)
    logits[:, 3] -= math.log(effect)
    return checks.measure_calibration_classes(Subject(Says(), images=logits, labels=labels))


class _Flatter(nn.Module):
    """Its input as scores, divided."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, scores: Tensor) -> Tensor:
        return scores / self.by


def _worse(effect: float, count: int, seed: int) -> Evidence:
    logits, labels = _unsure(count, seed)
    subject = Subject(_Flatter(effect), teacher=Says(), images=logits, labels=labels)
    return checks.measure_scores_against_teacher(subject)


class _Unsure(nn.Module):
    """Two classes, whose entropy grows with the input."""

    def forward(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(x) / 2
        return torch.cat([share, 1 - share], 1).log()


def _told(effect: float, count: int, seed: int) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    apart = math.sqrt(2) * float(torch.special.ndtri(torch.tensor(effect, dtype=torch.float64)))
    inside, outside = (torch.randn(count, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    return checks.measure_uncertainty_ood(Subject(_Unsure(), images=inside, ood=outside + apart, task="classification"))


WRONG = (
    Wrong(check="calibration.temperature", unit="scores times", effects=(1, 1.5, 2, 3, 4, 1 / 3), break_by=_scaled),
    Wrong(check="calibration.classes", unit="odds of a class divided by", effects=(1, 10, 30, 100), break_by=_rarer),
    Wrong(check="scores.against_teacher", unit="scores divided by", effects=(1, 1.2, 2, 4, 8), break_by=_worse),
    Wrong(check="uncertainty.ood", unit="true AUROC", effects=(0.95, 0.85, 0.7, 0.6, 0.5), break_by=_told),
)

COUNTS = (100, 360, 1000)


def power(trials: int) -> Iterator[str]:
    """Yield the rows of a table: which share of models fails, and which passes, for each number of labels."""
    heads = [f"{count} labels: fail, pass" for count in COUNTS]
    yield f"| check | the model | {' | '.join(heads)} |"
    yield "|---|---|" + "---|" * len(COUNTS)
    for wrong in WRONG:
        for effect in wrong.effects:
            cells = []
            for count in COUNTS:
                found = [wrong.break_by(effect, count, seed).verdict for seed in range(trials)]
                shares = [100 * found.count(verdict) / trials for verdict in (Verdict.FAIL, Verdict.PASS)]
                cells.append(", ".join(f"{share:.0f} %" for share in shares))
            yield f"| `{wrong.check}` | {wrong.unit} {effect:.3g} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predictions", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--models", type=int, default=10_000, help="sound models of each kind (default: 10000)")
    parser.add_argument("--power", action="store_true", help="measure how often wrong models are found instead")
    parser.add_argument("--trials", type=int, default=40, help="wrong models at each effect (default: 40)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.power:
        for row in power(given.trials):
            print(row, flush=True)
        return 0
    print(f"{'claim':<45}" + "".join(f"{f'at {rate:g}':>12}" for rate in RATES) + f"{'s':>8}")
    alarms = 0
    for name in SOUND:
        start = time.process_time()
        found = false_alarms(name, given.models)
        alarms += found[1] + int(found[0] > RATES[0] * given.models)
        print(
            f"{name:<45}" + "".join(f"{count:>12,}" for count in found) + f"{time.process_time() - start:>8.0f}",
            flush=True,
        )
    return int(alarms > 0)


if __name__ == "__main__":
    raise SystemExit(main())
