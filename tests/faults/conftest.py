"""Healthy patients for the injectors: two small networks that know the digits, and one audit of all checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import checks
from pytest_bnn.checks.spread import BAND
from pytest_bnn.evidence import Evidence
from pytest_bnn.images import digits
from pytest_bnn.subject import Subject


class Block(nn.Module):
    """Two convolutions of one shape, so that they can be tied; residual or plain, with BatchNorm or without."""

    def __init__(self, channels: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=not residual)
        self.norm1 = nn.BatchNorm2d(channels) if residual else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=not residual)
        self.norm2 = nn.BatchNorm2d(channels) if residual else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return functional.relu(out + x if self.residual else out)


class Network(nn.Module):
    """Images ``[N, 3, 8, 8]`` to ten logits; both variants have the same paths."""

    def __init__(self, *, residual: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=not residual)
        self.norm = nn.BatchNorm2d(8) if residual else nn.Identity()
        self.block = Block(8, residual=residual)
        self.pool = nn.AvgPool2d(2)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(functional.relu(self.norm(self.stem(x))))
        out: Tensor = self.head(self.drop(self.pool(x).flatten(1)))
        return out


def _small_digits(part: Any) -> tuple[Tensor, Tensor]:
    images, labels = digits(part)
    return functional.avg_pool2d(images, 4), labels


@pytest.fixture(scope="session")
def trained() -> Mapping[str, nn.Module]:
    """Both networks, briefly trained, so that their predictions are confident; never hand one out uncopied."""
    images, labels = _small_digits("train")
    networks: dict[str, nn.Module] = {}
    for name in ("residual", "plain"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Network(residual=name == "residual")
            optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
            for _ in range(12):
                for rows in torch.randperm(len(images)).split(96):
                    optimizer.zero_grad()
                    functional.cross_entropy(network(images[rows]), labels[rows]).backward()
                    optimizer.step()
        optimizer.zero_grad()
        networks[name] = network.eval()
    return networks


@pytest.fixture(scope="session")
def batch(trained: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor]:
    """Held-out images, with labels, of which both networks are sure: agreement can be decided on every one."""
    images, labels = _small_digits("held_out")
    with torch.no_grad():
        sure = torch.stack([network(images).softmax(1).max(1).values > 0.99 for network in trained.values()]).all(0)
    return images[sure][:12], labels[sure][:12]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """What a test draws (new layers, traced noise) is the same in every run and in every order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        yield


@pytest.fixture(params=["residual", "plain"])
def teacher(request: pytest.FixtureRequest, trained: Mapping[str, nn.Module]) -> nn.Module:
    return deepcopy(trained[request.param])


@pytest.fixture(params=["Reparameterization", "Flipout"])
def estimator(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def bare() -> Callable[..., nn.Module]:
    """The library's own conversion of a copy, with nothing of ours around it."""

    def convert(model: nn.Module, estimator: str, *, delta: float = 0.1, moped: bool = True) -> nn.Module:
        converted = deepcopy(model)
        parameters = {
            "prior_mu": 0.0,
            "prior_sigma": 1.0,
            "posterior_mu_init": 0.0,
            "posterior_rho_init": -3.0,
            "type": estimator,
            "moped_enable": moped,
            "moped_delta": delta,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            dnn_to_bnn(converted, parameters)
        return converted

    return convert


@pytest.fixture(scope="session")
def measures() -> Mapping[str, Callable[..., Evidence]]:
    return {
        "layers.replaced": checks.measure_layers_replaced,
        "mean.equals_teacher": checks.measure_mean_equals_teacher,
        "noise.varies": checks.measure_noise_varies,
        "noise.source": checks.measure_noise_source,
        "noise.spread": checks.measure_noise_spread,
        "noise.posterior": checks.measure_noise_posterior,
        "kl.present": checks.measure_kl_present,
        "kl.loss": checks.measure_kl_loss,
        "teacher.agreement": checks.measure_teacher_agreement,
    }


@pytest.fixture(scope="session")
def audit(measures: Mapping[str, Callable[..., Evidence]]) -> Callable[..., dict[str, Evidence]]:
    """Run checks, all unless some are named, on one subject."""

    def run(
        model: nn.Module,
        *,
        only: tuple[str, ...] = (),
        num_batches: int | None = None,
        band: tuple[float, float] = BAND,
        **given: Any,
    ) -> dict[str, Evidence]:
        subject = Subject(model, **given)
        options: dict[str, dict[str, Any]] = {"kl.loss": {"num_batches": num_batches}, "noise.spread": {"band": band}}
        return {id: measures[id](subject, **options.get(id, {})) for id in only or measures}

    return run
