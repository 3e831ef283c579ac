"""A small network of somebody's own, as the module that they would write, and an environment without our settings."""

from __future__ import annotations

import os

import pytest

NET = """
import torch
from torch import nn
from bayesian_torch.models.dnn_to_bnn import get_kl_loss

import pytest_bnn


def teacher():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))
    with torch.no_grad():
        net[3].weight *= 40
    return net.eval()


def bayesian():
    return pytest_bnn.convert(teacher(), moped_delta=0.01)


def forgetful():
    net = bayesian()
    with torch.no_grad():
        net[3].mu_weight.neg_()
    return net


def partly():
    net = bayesian()
    net[0] = teacher()[0]
    return net


def held_out():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        images = torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        shares = teacher()(images).softmax(1)
    images = images[shares.max(1).values > 0.999][:12]
    assert len(images) == 12
    with torch.no_grad():
        return images, teacher()(images).argmax(1)


def loss(model, batch):
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels) + get_kl_loss(model) / 100
"""


@pytest.fixture(scope="session")
def net_py() -> str:
    return NET


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> None:
    ours = ("PYTEST_BNN_", "PYTEST_ADDOPTS", "GITHUB_")
    for name in [name for name in os.environ if name.startswith(ours)]:
        del os.environ[name]
