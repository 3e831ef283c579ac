"""What users write, with types: mypy in strict mode checks this file as it checks the package, and pytest runs it.

``assert_type`` does nothing at run time; mypy fails where a type is another.
"""

from __future__ import annotations

from typing import Any, assert_type

import pytest
import torch
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn import Audit, AuditRun, Batch, Evidence, Finding, Loss, Verdict
from pytest_bnn.example import digits


def my_loss(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()


def test_an_audit_in_a_test(bnn_audit: Audit, network: nn.Module) -> None:
    loss: Loss = my_loss
    images, labels = digits("held_out", 8)
    bnn = assert_type(pytest_bnn.convert(network), nn.Module)
    run = bnn_audit(bnn, teacher=network, data=(images, labels), loss=loss, checks=["layers.replaced"])
    assert_type(run, AuditRun)
    assert_type(run["layers.replaced"], Evidence)
    assert run.verdict is Verdict.PASS


def test_a_claim(network: nn.Module) -> None:
    evidence = assert_type(pytest_bnn.assert_layers_replaced(pytest_bnn.convert(network)), Evidence)
    assert evidence.verdict == "pass"


def test_a_batch() -> None:
    batch = assert_type(Batch.of(torch.zeros(4, 2), scale=torch.ones(4)), Batch)
    assert assert_type(batch.rows, int) == 4


@pytest_bnn.check("typed.rule", claim="A check of one's own has types.")
def rule(subject: pytest_bnn.Subject) -> Finding:
    return Finding(verdict=Verdict.PASS, headline=type(subject.model).__name__)


def test_a_check_of_ones_own(network: nn.Module) -> None:
    assert_type(rule.measure(network), Evidence)
    assert rule.measure(network).headline == "Sequential"
