"""A network with something of a test's own around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Around(nn.Module):
    """Calls ``forward(network, x)``."""

    def __init__(self, network: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self._forward = network, forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self.network, x)


def plain(text: str) -> str:
    """A message without its capitals and the marks of code: what is said, however it is set."""
    return text.replace("`", "").lower()
