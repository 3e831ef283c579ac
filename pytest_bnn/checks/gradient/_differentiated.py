"""Whether a loss takes gradients itself and computes with them, as a gradient penalty does."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_bnn.checks._objective import evaluate
from pytest_bnn.checks.finding import LossError
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import BayesianLayer
from pytest_bnn.subject import Subject

_GRADIENTS = (torch.autograd.grad, Tensor.backward)


def computes_with_gradients(subject: Subject, layers: Sequence[BayesianLayer]) -> bool:
    """Return whether the loss takes gradients with ``create_graph``, so that its value depends on them."""
    watching = _Watching()
    with watching:
        try:
            evaluate(subject, layers, backward=False)
        except (InputError, LossError):
            return False
    return watching.seen


class _Watching(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _GRADIENTS:
            given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
            self.seen = self.seen or bool(given.get("create_graph"))
        return func(*args, **(kwargs or {}))
