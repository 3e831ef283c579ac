"""Full audits of healthy models: how often a sound model is accused, or left undecided.

``python -m benchmarks.false_alarms --audits 2000`` converts a small classifier again and again, and audits each
conversion with every check. Each audit has a network, data, a delta, an estimator and seeds of its own.

Healthy means what the claims say: every layer converted, the noise that of the posterior, a loss with the KL term at
1 / number of batches, and a teacher that is sure: of the images it was trained on, at least .9 on the leading class.
A teacher that tosses a coin on an image has no leading class to keep, and ``inconclusive`` would be the right verdict.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert
from pytest_bnn.audit.run import CHECK_IDS, Thresholds, audit_model
from pytest_bnn.options import Settings, using
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.stats.intervals import clopper_pearson_upper
from pytest_bnn.training.finetune import distillation_loss

#: Of the images that a network is trained on, how many an audit sees.
IMAGES = 6
CLASSES = 3
#: The teacher's least probability of its leading class.
SURE = 0.9
BATCHES = 10
#: Verdicts that a healthy model should not get; a warning is not an accusation, and is counted too.
ALARMS = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.WARN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A healthy conversion with what an audit of it takes."""

    model: nn.Module
    teacher: nn.Module
    images: Tensor
    labels: Tensor
    estimator: str
    delta: float
    seed: int


def teacher_of(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Train a convolution, BatchNorm and a linear layer until it is sure of noisy images of three prototypes.

    Raises:
        RuntimeError: It is not sure after 400 steps.
    """
    torch.manual_seed(seed)
    prototypes = torch.randn(CLASSES, 1, 8, 8)
    labels = torch.arange(IMAGES) % CLASSES
    images = prototypes[labels] + 0.1 * torch.randn(IMAGES, 1, 8, 8)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 16, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(40):
        network.train()
        for _ in range(10):
            optimizer.zero_grad()
            functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            sure = network(images).softmax(1).gather(1, labels[:, None])
        if float(sure.min()) >= SURE:
            optimizer.zero_grad()
            return network, images, labels
    raise RuntimeError(f"the teacher of seed {seed} is not sure of its images")


def patient(seed: int) -> Patient:
    """Return the healthy conversion of a seed: half of them Flipout, delta between .05 and .2."""
    teacher, images, labels = teacher_of(seed)
    estimator = ("Reparameterization", "Flipout")[seed % 2]
    delta = 0.05 + 0.15 * float(torch.rand(()))
    model = convert(teacher, type=estimator, moped_delta=delta)  # type: ignore[arg-type]
    return Patient(
        model=model, teacher=teacher, images=images, labels=labels, estimator=estimator, delta=delta, seed=seed
    )


def audited(healthy: Patient, *, sampler: str = "own") -> AuditRun:
    """Run the full audit with the default budget; a seed of its own each."""
    with using(Settings(sampler=sampler)):
        return audit_model(
            healthy.model,
            teacher=healthy.teacher,
            data=(healthy.images, healthy.labels),
            loss=distillation_loss(healthy.teacher, 1 / BATCHES),
            name=f"healthy {healthy.seed}",
            seed=healthy.seed,
            thresholds=Thresholds(num_batches=BATCHES),
        )


@dataclass(slots=True)
class Tally:
    """What the audits said, by check; every alarm with its explanation."""

    audits: int = 0
    seconds: float = 0.0
    verdicts: dict[str, Counter[str]] = field(default_factory=lambda: {id: Counter() for id in CHECK_IDS})
    alarms: list[dict[str, Any]] = field(default_factory=list)
    smallest_p: list[float] = field(default_factory=list)

    def take(self, healthy: Patient, run: AuditRun) -> None:
        self.audits += 1
        for evidence in run.checks:
            self.verdicts[evidence.id][evidence.verdict.value] += 1
            if evidence.verdict in ALARMS:
                about = {"estimator": healthy.estimator, "delta": healthy.delta, "seed": healthy.seed}
                said = {"id": evidence.id, "verdict": evidence.verdict.value, "said": evidence.explain()}
                self.alarms.append({**about, **said})
            if (
                evidence.id == "noise.posterior"
                and evidence.certainty is not None
                and evidence.certainty.low is not None
            ):
                self.smallest_p.append(evidence.certainty.low)

    @property
    def accused(self) -> int:
        """How many audits have a check that failed, broke or stayed undecided."""
        return len({alarm["seed"] for alarm in self.accusations})

    @property
    def accusations(self) -> list[dict[str, Any]]:
        """The alarms that are no mere warning; every Flipout convolution of the library gets a warning (A24)."""
        return [alarm for alarm in self.alarms if alarm["verdict"] != Verdict.WARN]

    def to_plain(self) -> dict[str, Any]:
        return {
            "audits": self.audits,
            "seconds": self.seconds,
            "accused": self.accused,
            "verdicts": {id: dict(counts) for id, counts in self.verdicts.items()},
            "smallest corrected p-value of noise.posterior": min(self.smallest_p, default=None),
            "alarms": self.alarms,
        }


def measure(audits: int, *, first: int = 0, sampler: str = "own", limit: float = float("inf")) -> Tally:
    """Audit so many healthy models, fewer where the seconds run out."""
    tally, start = Tally(), time.perf_counter()
    for seed in range(first, first + audits):
        if time.perf_counter() - start > limit:
            break
        with torch.random.fork_rng(devices=[]):
            healthy = patient(seed)
        tally.take(healthy, audited(healthy, sampler=sampler))
    tally.seconds = time.perf_counter() - start
    return tally


def show(tally: Tally) -> None:
    words = ("pass", *(verdict.value for verdict in ALARMS), "not_applicable")
    print(f"{'check':<22}" + "".join(f"{word:>16}" for word in words))
    for id, counts in tally.verdicts.items():
        print(f"{id:<22}" + "".join(f"{counts[word]:>16,}" for word in words))
    print(f"{tally.audits:,} audits of healthy models in {tally.seconds:.0f} s, {tally.accused} accused or undecided")
    if tally.audits:
        bound = clopper_pearson_upper(tally.accused, tally.audits, 0.05)
        print(f"so the rate is at most {bound:.2g} with confidence .95 (Clopper and Pearson)")
    for alarm in tally.accusations[:10]:
        print(f"\nseed {alarm['seed']}, {alarm['estimator']}, delta {alarm['delta']:.4g}\n{alarm['said']}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.false_alarms", description=__doc__.splitlines()[0])
    parser.add_argument("--audits", type=int, default=2000, help="how many models (default: 2000)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first (default: 0)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument(
        "--sampler", default="own", choices=("own", "auto", "engine"), help="of the passes (default: own)"
    )
    parser.add_argument("--json", type=Path, help="write the counts and every alarm here")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tally = measure(given.audits, first=given.first, sampler=given.sampler, limit=given.seconds)
    show(tally)
    if given.json:
        given.json.write_text(json.dumps(tally.to_plain(), indent=1) + "\n", encoding="utf-8")
    return int(tally.accused > 0)


if __name__ == "__main__":
    sys.exit(main())
