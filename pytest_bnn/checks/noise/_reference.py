"""Outputs under weights that are drawn here from the posterior, without any noise of the layers themselves.

It tells an image whose output cannot vary (saturated probabilities, a blank image without bias, masked classes) from
one whose noise is missing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.checks.noise._pairs import Scale, scale_of, spreads
from pytest_bnn.libraries.posterior import bayesian_layers, zero_sigma
from pytest_bnn.network.calling import forward, output_fields
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.sampling.bank import pass_seed
from pytest_bnn.subject import Subject

#: What is said where no output can vary.
SATURATED = (
    "the outputs cannot vary: weights drawn from the posterior by the check itself do not move them either, as with "
    "saturated probabilities, clamped or masked outputs; let the network return what it computes before, such as "
    "logits, or name that output with --output"
)

#: Passes that the reference draws.
PASSES = 16


def posterior_passes(subject: Subject, *, passes: int = PASSES, relative: float | None = None) -> Tensor:
    """Give outputs ``[passes, N, ...]`` under weights ``mu + sigma * eps``, drawn here and put in place of mu.

    Every layer then computes with sigma 0, so that its own noise has no part in it. ``relative`` takes so many times
    the size of mu (of its tensor, root mean square) in place of sigma.
    """
    tensors = [tensor for layer in bayesian_layers(subject.model) for tensor in layer.tensors]
    found = []
    with undisturbed(subject.model, seed=subject.seed), torch.no_grad():
        means = [tensor.mu_parameter.detach().clone() for tensor in tensors]
        sigmas = [t.sigma if relative is None else relative * t.mu.detach().square().mean().sqrt() for t in tensors]
        with zero_sigma(subject.model):
            for index in range(passes):
                generator = torch.Generator().manual_seed(pass_seed(subject.seed, index))
                for tensor, mean, sigma in zip(tensors, means, sigmas, strict=True):
                    eps = torch.randn(mean.shape, generator=generator).to(mean)
                    tensor.mu_parameter.copy_(mean + sigma * eps)
                found.append(forward(subject.model, subject.require_images()))
    return torch.stack(found)


#: A spread this many times the floor is told from one below it by the reference's few passes.
_MARGIN = 4.0

#: Noise, relative to mu, under which every output that is not saturated, clamped or masked varies.
_WIDE = 0.1


def cannot_vary(subject: Subject, scale: Scale, floor: float) -> Tensor:
    """Say for each image whether its outputs cannot vary by more than ``floor``, whatever the layers' noise is.

    That is so where weights drawn from the posterior here do not move them either, and either a Bayesian layer's own
    output does vary for the image (what comes behind it saturates, clamps or masks), or weights that vary by a tenth do
    not move them (a blank image without bias).
    """
    able = spreads(posterior_passes(subject), scale).median(0).values > _MARGIN * floor
    if bool(able.all()):
        return ~able.cpu()
    wide = spreads(posterior_passes(subject, relative=_WIDE), scale).median(0).values > floor
    return (~able & (_varies_inside(subject, floor).to(able.device) | ~wide)).cpu()


def _varies_inside(subject: Subject, floor: float) -> Tensor:
    """Say for each image whether some Bayesian layer's output varies by more than ``floor`` of that layer's scale."""
    images = subject.require_images()
    found = torch.zeros(len(images), dtype=torch.bool)
    outputs: dict[str, list[Tensor]] = {}
    with undisturbed(subject.model, seed=subject.seed):
        for layer in bayesian_layers(subject.model):

            def keep(_module: nn.Module, _inputs: Any, output: Any, path: str = layer.path) -> None:
                fields = output_fields(output, len(images))
                if fields:
                    outputs.setdefault(path, []).append(next(iter(fields.values())).detach().cpu())

            layer.module.register_forward_hook(keep)
        for _ in range(PASSES):
            forward(subject.model, images)
    for calls in outputs.values():
        if len(calls) == PASSES:
            stacked = torch.stack(calls)
            found |= spreads(stacked, scale_of(stacked[0].double())).median(0).values > floor
    return found
