"""The embedded ResNet18 on real digits: what only a full network shows. The slow file of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from pytest_bnn.conversion import convert
from pytest_bnn.example.images import digits
from pytest_bnn.example.weights import load_teacher
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.training.finetune import distillation_loss, finetune

Audit = Callable[..., dict[str, Evidence]]

#: 19 of them must agree: the least number at which one may be lost.
IMAGES = 20


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return load_teacher("digits").model


@pytest.fixture(scope="module")
def held_out() -> tuple[Tensor, Tensor]:
    return digits("held_out", IMAGES)


@pytest.mark.nightly("the README's first command audits both of these models, and .ci/run runs it")
def test_healthy_conversion_passes_all_checks(
    resnet18: nn.Module, held_out: tuple[Tensor, Tensor], audit: Audit
) -> None:
    """The project's own case must never be accused: 21 of 21 layers, at the delta that keeps the teacher's mind."""
    images, labels = held_out
    model = convert(resnet18, moped_delta=0.1)
    found = audit(
        model, teacher=resnet18, images=images, labels=labels, loss=distillation_loss(resnet18, 1 / 45), num_batches=45
    )
    assert [e.explain() for e in found.values() if e.verdict is not Verdict.PASS] == []
    assert found["layers.replaced"]["Bayesian layers"] == 21


@pytest.mark.fault("B1", "noise.spread", "teacher.agreement")
def test_much_too_wide_posterior_disagrees(resnet18: nn.Module, held_out: tuple[Tensor, Tensor], audit: Audit) -> None:
    """B1: the conversion is right in every other way; only the predictions show that delta is absurd."""
    model = convert(resnet18, moped_delta=2.0)
    found = audit(
        model,
        teacher=resnet18,
        images=held_out[0],
        labels=held_out[1],
        only=("noise.spread", "teacher.agreement", "mean.equals_teacher"),
    )
    assert found["teacher.agreement"].verdict is Verdict.FAIL, found["teacher.agreement"].explain()
    assert "moped_delta" in found["teacher.agreement"].remedy
    assert found["noise.spread"].verdict is Verdict.FAIL, found["noise.spread"].explain()
    assert "drowns" in found["noise.spread"].headline
    assert found["mean.equals_teacher"].verdict is Verdict.PASS


@pytest.mark.nightly("the README's first command audits both of these models, and .ci/run runs it")
def test_finetuned_toward_its_teacher_passes(
    resnet18: nn.Module, held_out: tuple[Tensor, Tensor], audit: Audit
) -> None:
    """A few steps of the project's own fine-tuning: nothing is accused, although mu has moved."""
    images, labels = held_out
    model = convert(resnet18, moped_delta=0.1)
    finetune(model, resnet18, digits("train", 64)[0], steps=8, batch=16)
    found = audit(
        model, teacher=resnet18, images=images, labels=labels, loss=distillation_loss(resnet18, 1 / 4), num_batches=4
    )
    assert found["kl.loss"].stage == "finetuned"
    assert found.pop("mean.equals_teacher").verdict is Verdict.NOT_APPLICABLE
    assert [e.explain() for e in found.values() if e.verdict is not Verdict.PASS] == []
