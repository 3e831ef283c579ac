"""Small networks that know the digits, for what breaks them on purpose: `benchmarks.mutation` and ``tests/faults``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.example.images import digits

NETWORKS = ("residual", "plain")


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


def small_digits(part: Any) -> tuple[Tensor, Tensor]:
    images, labels = digits(part)
    return functional.avg_pool2d(images, 4), labels


def train() -> Mapping[str, nn.Module]:
    """Train both networks briefly, so that their predictions are confident; takes seconds."""
    images, labels = small_digits("train")
    networks: dict[str, nn.Module] = {}
    for name in NETWORKS:
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


def sure_of(networks: Mapping[str, nn.Module], count: int = 12) -> tuple[Tensor, Tensor]:
    """Return held-out images, with labels, of which all networks are sure: agreement can be decided on every one."""
    images, labels = small_digits("held_out")
    with torch.no_grad():
        sure = torch.stack([network(images).softmax(1).max(1).values > 0.99 for network in networks.values()]).all(0)
    return images[sure][:count], labels[sure][:count]
