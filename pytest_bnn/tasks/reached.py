"""Which outputs a loss uses, and in which direction it moves them, by its gradient at the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.data.loss import Loss
from pytest_bnn.network.foreign import foreign_left_alone
from pytest_bnn.network.isolation import seed_everything, undisturbed
from pytest_bnn.network.tree import leaves, mapped


def gradients_at_outputs(model: nn.Module, loss: Loss | None, batch: Callable[[], Any], seed: int) -> dict[str, Tensor]:
    """Return the gradient of a loss at each output of the model that it uses, in its first call; empty without a loss.

    The outputs are cut from the network, so that an output has no gradient where the loss uses only another one that is
    computed from it. Empty, too, for a loss that cannot be evaluated in this way.
    """
    return {
        name: leaf.grad
        for name, leaf in outputs_of_loss(model, loss, batch, seed).items()
        if leaf.grad is not None and bool(leaf.grad.any())
    }


def outputs_of_loss(model: nn.Module, loss: Loss | None, batch: Callable[[], Any], seed: int) -> dict[str, Tensor]:
    """Return the outputs of a loss's first call of the model, each with the loss's gradient as its ``grad``.

    Empty without a loss, and for one that cannot be evaluated with its outputs cut from the network.
    """
    if loss is None:
        return {}
    cut: dict[str, Tensor] = {}

    def detach(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        fresh = mapped(output, lambda leaf: leaf.detach().requires_grad_() if _can_be_cut(leaf) else leaf)
        if not cut:
            cut.update({name: leaf for name, leaf in leaves(fresh) if _can_be_cut(leaf)})
        return fresh

    try:
        with undisturbed(model, seed=seed), torch.enable_grad(), foreign_left_alone(model):
            seed_everything(seed)
            handle = model.register_forward_hook(detach)
            try:
                value = loss(model, batch())
                if isinstance(value, Tensor) and value.requires_grad:
                    value.sum().backward()
            finally:
                handle.remove()
    except (Exception, SystemExit):
        return {}
    return cut


def _can_be_cut(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
