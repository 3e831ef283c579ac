"""Layers of other libraries than the one that most models here come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.cases.case import Input, case
from tests.cases.networks import noise, seeded

TORCHBNN, BLITZ = "torchbnn", "blitz-bayesian-pytorch"


def _labels() -> Tensor:
    return torch.arange(64) % 3


@case("layers of torchbnn", says={"kl.loss": r"0\.1"}, push=True, needs=TORCHBNN)
def two_layers_and_their_kl() -> Input:
    import torchbnn

    kl = torchbnn.BKLLoss(reduction="mean", last_layer_only=False)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value: Tensor = functional.cross_entropy(model(batch[0]), batch[1]) + 0.1 * kl(model)
        return value

    def make() -> nn.Module:
        one, two = (torchbnn.BayesLinear(0, 0.1, rows, columns) for rows, columns in ((6, 32), (32, 3)))
        return nn.Sequential(one, nn.ReLU(), two)

    return Input(model=seeded(make), data=lambda: (noise(64, 6), _labels()), loss=loss)


@case("layers of torchbnn", needs=TORCHBNN)
def convolution_and_batchnorm() -> Input:
    import torchbnn

    def make() -> nn.Module:
        return nn.Sequential(
            torchbnn.BayesConv2d(0, 0.1, 1, 4, 3), nn.ReLU(), nn.Flatten(), torchbnn.BayesLinear(0, 0.1, 144, 3)
        )

    return Input(model=seeded(make).eval(), data=lambda: (noise(64, 1, 8, 8), _labels()))


@case(
    "layers that nobody knows",
    verdicts={"noise.varies": "pass or not_applicable"},
    push=True,
    needs=BLITZ,
)
def layers_of_blitz() -> Input:
    from blitz.modules import BayesianLinear
    from blitz.utils import variational_estimator

    @variational_estimator  # type: ignore[untyped-decorator, unused-ignore]
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = BayesianLinear(6, 32), BayesianLinear(32, 3)

        def forward(self, x: Tensor) -> Any:
            return self.two(self.one(x).relu())

    def loss(model: Any, batch: Any) -> Tensor:
        value: Tensor = model.sample_elbo(
            *batch, criterion=nn.CrossEntropyLoss(), sample_nbr=3, complexity_cost_weight=1 / 1000
        )
        return value

    return Input(model=seeded(Network), data=lambda: (noise(64, 6), _labels()), loss=loss)


class Noisy(nn.Module):
    """A layer by hand: a mean, the logarithm of a sigma, and noise in each pass."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.randn(rows, columns) / columns**0.5)
        self.log_sigma = nn.Parameter(torch.full((rows, columns), -4.0))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.center + self.log_sigma.exp() * torch.randn_like(self.center))


@case("layers that nobody knows", push=True)
def layers_by_hand() -> Input:
    return Input(
        model=seeded(lambda: nn.Sequential(Noisy(6, 32), nn.ReLU(), Noisy(32, 3))),
        data=lambda: (noise(64, 6), _labels()),
    )


@case(
    "layers that nobody knows",
    verdicts={
        "layers.replaced": "fail or not_applicable",
        "noise.source": "fail",
        "kl.present": "fail or not_applicable",
    },
)
def dropout_that_stays_on() -> Input:
    class AlwaysDropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.dropout(x, 0.2, training=True)

    return Input(
        model=seeded(lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), AlwaysDropped(), nn.Linear(32, 3))).eval(),
        data=lambda: (noise(64, 6), _labels()),
    )
