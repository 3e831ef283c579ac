"""A network with all that samplers treat in ways of their own, and images for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert

IMAGES = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(1))
ROWS = torch.arange(7)


class Convolutions(nn.Module):
    """BatchNorms behind layers; padded, grouped, transposed, one called twice, and a kernel wider than its map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.padded = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.after = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.small = nn.Conv2d(4, 4, 5, padding=2)
        self.head = nn.Linear(4 * 144 + 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = self.twice(functional.relu(self.twice(x)))
        x = self.up(functional.relu(self.after(self.padded(x)) + x))
        small = self.small(functional.adaptive_avg_pool2d(x, 1))
        out: Tensor = self.head(torch.cat([x.flatten(1), small.flatten(1)], 1))
        return out


def converted(kind: type[nn.Module], estimator: Any = "Reparameterization") -> nn.Module:
    """A conversion of a network whose BatchNorms do something; the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind().eval()
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        return convert(model, type=estimator, moped_delta=0.3)
