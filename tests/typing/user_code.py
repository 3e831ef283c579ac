"""Code as users write it, with every type spelled out: mypy in strict mode has nothing to say about it.

It is checked with the tests (`mypy tests`) and, alone and as a user's project, by `test_user_code.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn import Audit, AuditRun, Batch, Event, Evidence, Finding, Loss, Subject, Verdict, check
from pytest_bnn.checks.values import Positive
from pytest_bnn.example import Teacher, load_teacher, outside_digits
from pytest_bnn.libraries.gaussian import EXP, PosteriorTensor, kl_of_normals
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.libraries.protocol import CAPABILITIES, Adapter, BayesianLayer, Convention, Words
from pytest_bnn.many.work import Job
from pytest_bnn.records.run import SubjectRecord


@check("mycompany.width", claim="No posterior is too wide.", needs=("images",))
def width(subject: Subject, *, allowed: Positive = 0.5) -> Finding:
    """Measure whether no posterior is too wide."""
    return Finding(verdict=Verdict.PASS, headline=f"at most {allowed} on {len(subject.require_images())} images")


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return cross-entropy + KL / number of batches."""
    images, labels = batch
    kl = pytest_bnn.kl(model)
    assert kl is not None
    return nn.functional.cross_entropy(model(images), labels) + kl / 45


def weighted(weight: float) -> Loss:
    """Return a loss whose KL term has a weight."""

    def of_batch(model: nn.Module, batch: Any) -> Tensor:
        return loss(model, batch) * weight

    return of_batch


def two_inputs(left: Tensor, right: Tensor) -> Batch:
    """Return a batch of a network that takes two inputs."""
    return Batch.of(left, right=right)


@pytest.fixture
def bayesian(bnn_convert: Callable[..., nn.Module], resnet18_teacher: nn.Module) -> nn.Module:
    """Return a conversion."""
    return bnn_convert(resnet18_teacher, moped_delta=0.2)


class Gaussian(nn.Module):
    """A layer of a library of one's own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.randn(outputs, inputs))
        self.log_sigma = nn.Parameter(torch.full((outputs, inputs), -3.0))
        self.prior_center, self.prior_width = 0.0, 1.0


class Mine:
    """What tells the checks how its layers compute."""

    name = "mine"
    can = CAPABILITIES
    conventions: tuple[Convention, ...] = ("sum",)
    words = Words(library="mine", kl="kl", rho="log_sigma", convert="build it", wider="wider", narrower="narrower")

    def owns(self, module: nn.Module) -> bool:
        """Return whether a module is one of its layers."""
        return isinstance(module, Gaussian)

    def layer(self, path: str, module: nn.Module) -> BayesianLayer | None:
        """Return the layer that a module is."""
        names = ("center", "log_sigma", "eps", "prior_center", "prior_width")
        tensors = (PosteriorTensor(path, "weight", module, *names, EXP),)
        return BayesianLayer(path, module, "Linear", "own", tensors, self) if self.owns(module) else None

    def layer_kl(self, layer: BayesianLayer) -> Tensor:
        """Return the KL of a layer."""
        (one,) = layer.tensors
        return kl_of_normals(one.mu, one.rho.exp(), one.prior_mu, one.prior_sigma).sum()

    def kl(self, model: nn.Module) -> Tensor | None:
        """Return the KL of a model."""
        layers = bayesian_layers(model)
        return torch.stack([self.layer_kl(layer) for layer in layers]).sum() if layers else None

    def brings_own_kl(self, layer: BayesianLayer) -> bool:
        """Return whether a layer has another KL."""
        return False

    def is_stock(self, layer: BayesianLayer) -> bool:
        """Return whether the sampler may stand in for a layer."""
        return False

    def border(self, layer: BayesianLayer) -> None:
        """Return how a layer pads its input."""


mine: Adapter = Mine()


def pytest_bnn_subject(item: pytest.Item, subject: SubjectRecord) -> None:
    """Take what was audited."""
    assert item.name or subject.name


def sweep(files: list[Path]) -> list[Verdict]:
    """Return the verdicts of checkpoints, judged by processes and by an executor."""
    with ThreadPoolExecutor(1) as executor:
        index = pytest_bnn.audit_many("my_net:bayesian", files, folder="sweep", executor=executor, done=told)
    again = pytest_bnn.audit_many(Mine, "runs/*.pt", folder=Path("sweep"), jobs=3, data="my_net:held_out")
    return [row.verdict for row in (*index.rows, *again.rows)]


def told(job: Job, run: AuditRun, count: int, of: int) -> None:
    """Take what is done."""
    assert job.earlier or count <= of or run.verdict


def test_audit(bnn_audit: Audit, bayesian: nn.Module) -> None:
    """The fixture has a type that can be named."""
    run: AuditRun = bnn_audit(bayesian, data=torch.zeros(2, 3, 32, 32), loss=weighted(1.0), checks=["kl.loss"])
    evidence: Evidence = run.raise_for_failures()["kl.loss"]
    verdict: Verdict = evidence.verdict
    assert verdict == "pass"
    assert evidence["expected weight"] is None


def show(event: Event) -> None:
    """Take what an audit is doing."""
    print(f"{event.number}/{event.of} {event.check}: {event.passes} passes")  # noqa: T201


def audited(model: nn.Module) -> Evidence:
    """Return the evidence of one's own check."""
    pytest_bnn.audit_model(model, checks=["mycompany.width"], progress=show)
    evidence: Evidence = width.measure(model, images=torch.zeros(2, 4), allowed=0.25)
    return pytest_bnn.assert_kl_present(model) if evidence.verdict == "fail" else evidence


def teacher() -> tuple[Teacher, Mapping[str, Tensor]]:
    """Return the example's teacher, and what is none of its task."""
    return load_teacher(), outside_digits()


VERSION: str = pytest_bnn.__version__
