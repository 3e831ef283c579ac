"""The healthy networks that are broken: small ones that read digits, fresh and fine-tuned, and the ResNet18."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import nn
from torch.nn import functional

from benchmarks.mutators.case import BATCHES, MOPED_DELTA, Case
from pytest_bnn.conversion import Estimator, convert
from pytest_bnn.example.images import digits
from pytest_bnn.example.weights import load_teacher
from tests.faults.injectors.networks import small_digits, sure_of

IMAGES = 6
ESTIMATORS: tuple[Estimator, ...] = ("Reparameterization", "Flipout")

#: What the prior's mean is, so that scaling it changes it.
_PRIOR_MEAN = 0.1


def small_cases(networks: Mapping[str, nn.Module]) -> list[Case]:
    """Return both small networks under both estimators, freshly converted, and each of them fine-tuned under one."""
    return [*fresh_cases(networks), *trained_cases(networks)]


def fresh_cases(networks: Mapping[str, nn.Module]) -> list[Case]:
    return [_case(name, networks, estimator) for name in networks for estimator in ESTIMATORS]


def trained_cases(networks: Mapping[str, nn.Module]) -> list[Case]:
    return [_fine_tuned(_case(name, networks, how)) for name, how in zip(networks, ESTIMATORS, strict=True)]


def _case(name: str, networks: Mapping[str, nn.Module], estimator: Estimator) -> Case:
    images, labels = sure_of(networks, IMAGES)
    model = convert(networks[name], type=estimator, moped_delta=MOPED_DELTA, prior_mu=_PRIOR_MEAN)
    return Case(name=f"{name}, {estimator}", teacher=networks[name], model=model, images=images, labels=labels)


def _fine_tuned(case: Case) -> Case:
    """Train for an epoch; takes a second."""
    images, labels = small_digits("train")
    model = copy.deepcopy(case.model).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for rows in torch.randperm(len(images)).split(96):
            optimizer.zero_grad()
            value = functional.cross_entropy(model(images[rows]), labels[rows]) + get_kl_loss(model) / BATCHES
            value.backward()
            optimizer.step()
    optimizer.zero_grad()
    return Case(
        name=f"{case.name}, fine-tuned",
        teacher=case.teacher,
        model=model.eval(),
        images=case.images,
        labels=case.labels,
        trained=True,
    )


def resnet18_case() -> Case:
    teacher = load_teacher("digits").model
    images, labels = digits("held_out", 2)
    model = convert(teacher, prior_mu=_PRIOR_MEAN)
    return Case(name="resnet18, Reparameterization", teacher=teacher, model=model, images=images, labels=labels)
