"""Code as users write it, with every type spelled out: mypy in strict mode has nothing to say about it.

It is checked with the tests (`mypy tests`) and, alone and as a user's project, by `test_user_code.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn import Audit, AuditRun, Batch, Event, Evidence, Finding, Loss, Subject, Verdict, check
from pytest_bnn.checks.values import Positive
from pytest_bnn.example import Teacher, load_teacher, outside_digits


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
