"""Networks whose scores are known, and labels that follow them: what claims about predictions are tested on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Says(nn.Module):
    """Its input as scores, after a change, and with noise that differs from pass to pass."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda scores: scores, noise: float = 0.0) -> None:
        super().__init__()
        self.change, self.noise = change, noise

    def forward(self, scores: Tensor) -> Tensor:
        return self.change(scores + self.noise * torch.randn_like(scores))


def scores(count: int, classes: int = 5, size: float = 2.0, seed: int = 0) -> Tensor:
    return size * torch.randn(count, classes, generator=generator(seed))


def following(logits: Tensor, seed: int = 1) -> Tensor:
    """Labels that are drawn from the softmax of scores."""
    return torch.multinomial(logits.softmax(1), 1, generator=generator(seed))[:, 0]
