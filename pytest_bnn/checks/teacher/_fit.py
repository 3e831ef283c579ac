"""How well running statistics fit the activations that they normalise."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.data.batch import Inputs
from pytest_bnn.libraries.silence import zero_sigma
from pytest_bnn.network.calling import forward
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.wrappers import eager


def misfits(network: nn.Module, images: Inputs, paths: list[str], *, seed: int, mean: bool) -> dict[str, float]:
    """Return, for batch norms by path, how far the statistics of their input are from the running ones.

    The divergence KL(N(m, v) || N(running mean, running variance)) of a channel, in nats; the median over the channels.
    Channels that do not vary, and norms that are not called, are left out.

    Args:
        network: What runs.
        images: Its inputs.
        paths: Where its norms are.
        seed: The seed of the noise.
        mean: Whether it runs at its posterior mean.
    """
    found: dict[str, float] = {}

    def look(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim > 1:
                value = _divergence(module, inputs[0])
                if value is not None:
                    found[path] = value

        return hook

    silence: AbstractContextManager[None] = zero_sigma(network) if mean else nullcontext()
    with ExitStack() as stack:
        for context in (eager(), undisturbed(network, seed=seed), silence, torch.no_grad()):
            stack.enter_context(context)
        for path in paths:
            network.get_submodule(path).register_forward_pre_hook(look(path))
        forward(network, images)
    return found


def _divergence(module: nn.Module, inputs: Tensor) -> float | None:
    channels = inputs.transpose(0, 1).flatten(1).double()
    mean, variance = module.running_mean, module.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or channels.shape[1] < 2:
        return None
    theirs = variance.double() + float(getattr(module, "eps", 0.0))
    own = channels.var(1) + float(getattr(module, "eps", 0.0))
    usable = channels.var(1) > 0
    if not bool(usable.any()):
        return None
    apart = (own + (channels.mean(1) - mean.double()) ** 2) / theirs - 1 - (own / theirs).log()
    return float(apart[usable].median()) / 2
