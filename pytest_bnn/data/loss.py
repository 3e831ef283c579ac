"""The training loss, as users hand it over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

#: ``loss(model, batch) -> scalar tensor``; the batch has the structure of the data, ``(images, labels)`` for tensors.
Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]

#: The most examples that a loss gets, where no loader made batches.
BATCH = 32
