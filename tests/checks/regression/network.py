"""A small regression network that knows how unsure to be, and data whose noise depends on the input."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import pytest_bnn
from pytest_bnn.records.evidence import Evidence

Form = Literal["named", "pair", "columns"]


class Heteroscedastic(nn.Module):
    """Gives the mean and the log variance of its prediction: by name, as a pair, or as two columns.

    ``shift`` moves the mean, ``wider`` multiplies the standard deviation.
    """

    def __init__(self, form: Form = "named") -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.mean, self.spread = nn.Linear(16, 1), nn.Linear(16, 1)
        self.form = form
        self.shift, self.wider = 0.0, 1.0

    def forward(self, x: Tensor) -> Any:
        found = self.body(x)
        mean = self.mean(found) + self.shift
        log_variance = self.spread(found) + 2 * torch.tensor(self.wider).log()
        if self.form == "named":
            return {"mean": mean, "log_variance": log_variance}
        return (mean, log_variance) if self.form == "pair" else torch.cat([mean, log_variance], 1)


def examples(count: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Inputs ``[N, 2]`` and numbers ``[N, 1]`` whose standard deviation is .1 to .6."""
    random = torch.Generator().manual_seed(seed)
    inputs = 4 * torch.rand(count, 2, generator=random) - 2
    deviation = 0.1 + 0.25 * inputs[:, 1].abs()
    labels = torch.sin(2 * inputs[:, 0]) + 0.5 * inputs[:, 1] + deviation * torch.randn(count, generator=random)
    return inputs, labels[:, None]


def likelihood(model: nn.Module, batch: Any) -> Tensor:
    """The loss by which it was trained."""
    inputs, labels = batch
    output = model(inputs)
    if isinstance(output, Tensor):
        mean, log_variance = output.chunk(2, 1)
    else:
        mean, log_variance = output.values() if isinstance(output, dict) else output
    return functional.gaussian_nll_loss(mean, labels, log_variance.exp())


@cache
def weights() -> dict[str, Tensor]:
    """Those of a network that was trained on 1,000 examples; its residuals are as wide as it says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Heteroscedastic()
        data = examples(1000, 1)
        optimizer = torch.optim.Adam(network.parameters(), 2e-2)
        for _ in range(250):
            loss = likelihood(network, data)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.state_dict()


def teacher(form: Form = "named", *, shift: float = 0.0, wider: float = 1.0) -> Heteroscedastic:
    """The trained network, or one that is wrong in what it says."""
    network = Heteroscedastic(form)
    network.load_state_dict(weights())
    network.shift, network.wider = shift, wider
    return network.eval()


def converted(form: Form = "named", *, delta: float = 0.02, shift: float = 0.0, wider: float = 1.0) -> nn.Module:
    """Its conversion, healthy or wrong."""
    return pytest_bnn.convert(teacher(form, shift=shift, wider=wider), moped_delta=delta).eval()


def figure(evidence: Evidence, name: str) -> float:
    """A measurement that is a number."""
    value = evidence[name]
    assert isinstance(value, int | float)
    return float(value)
