"""Which adapter knows the layers of a model, and what that adapter cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def lacking(model: nn.Module, capability: str) -> str:
    """Say what keeps a model from having a capability, and how to give it; empty where it has it."""
    del model, capability
    return ""
