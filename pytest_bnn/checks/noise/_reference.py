"""Outputs under weights that are drawn here from the posterior, without any noise of the layers themselves.

It tells an image whose output cannot vary (saturated probabilities, a blank image without bias, masked classes) from
one whose noise is missing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.checks.noise._pairs import Pairs, parts_of
from pytest_bnn.checks.noise._scale import Scale, scale_of, scales_of, without_noise
from pytest_bnn.libraries.posterior import bayesian_layers, zero_sigma
from pytest_bnn.network.calling import forward, output_fields
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.sampling.bank import forward_in_chunks, pass_seed
from pytest_bnn.subject import Subject

#: What is said where no output can vary.
SATURATED = (
    "the outputs cannot vary: weights drawn from the posterior by the check itself do not move them either, as with "
    "saturated probabilities, clamped or masked outputs; let the network return what it computes before, such as "
    "logits, or name that output with --output"
)

#: Passes that the reference draws.
PASSES = 16


def posterior_pairs(subject: Subject, *, passes: int = PASSES, relative: float | None = None) -> Pairs:
    """Return what passes under weights ``mu + sigma * eps`` say two by two: drawn here, and put in place of mu.

    Every layer then computes with sigma 0, so that its own noise has no part in it. ``relative`` takes so many times
    the size of mu (of its tensor, root mean square) in place of sigma.
    """
    tensors = [tensor for layer in bayesian_layers(subject.model) for tensor in layer.tensors]
    found = Pairs(parts_of(subject))
    with undisturbed(subject.model, seed=subject.seed), torch.no_grad():
        means = [tensor.mu_parameter.detach().clone() for tensor in tensors]
        sigmas = [t.sigma if relative is None else relative * t.mu.detach().square().mean().sqrt() for t in tensors]
        with zero_sigma(subject.model):
            for index in range(passes):
                generator = torch.Generator().manual_seed(pass_seed(subject.seed, index))
                for tensor, mean, sigma in zip(tensors, means, sigmas, strict=True):
                    eps = torch.randn(mean.shape, generator=generator).to(mean)
                    # Through .data: a backward pass that waits outside must not take it for changed.
                    tensor.mu_parameter.data.copy_(mean + sigma * eps)
                found.take(forward_in_chunks(subject.model, subject.require_images())[None])
    return found


#: A spread this many times the floor is told from one below it by the reference's few passes.
_MARGIN = 4.0

#: Noise, relative to mu, under which every output that is not saturated, clamped or masked varies.
_WIDE = 0.1


def cannot_vary(subject: Subject, floor: float) -> Tensor:
    """Return for each image whether its outputs cannot vary by more than ``floor``, whatever the layers' noise is.

    That is so where weights drawn from the posterior here do not move them either, at least not in nearly every pair of
    passes, and either

    * a Bayesian layer's own output does vary for the image (what comes behind it saturates, clamps or masks), or
    * weights that vary by a tenth do not move them, though they do move other images, or no Bayesian layer gets
      anything but zeros for it (a blank image without bias). Weights that move nothing at all show nothing: the layers
      may compute with others.
    """
    calm, drawn = without_noise(subject), posterior_pairs(subject)
    able = _nearly_always(drawn, scales_of(calm, subject.fields, drawn.live)) > _MARGIN * floor
    if bool(able.all()):
        return ~able
    far = posterior_pairs(subject, relative=_WIDE)
    scale = scales_of(calm, subject.fields, far.live)
    able = _nearly_always(drawn, scale) > _MARGIN * floor  # by what varies under wide noise, all of it
    moved = far.spreads(scale).median(0).values > floor
    untouched = ~moved if bool(moved.any()) else _blank(subject)
    return ~able & (_varies_inside(subject, floor) | untouched)


def _nearly_always(pairs: Pairs, scale: Scale) -> Tensor:
    """Return what the spreads of each image exceed in all pairs of passes but an eighth."""
    found = pairs.spreads(scale).sort(0).values
    return found[len(found) // 8]


def _blank(subject: Subject) -> Tensor:
    """Return for each image whether no Bayesian layer gets anything but zeros for it."""
    images = subject.require_images()
    found = torch.ones(len(images), dtype=torch.bool)
    called = False
    with undisturbed(subject.model, seed=subject.seed):
        for layer in bayesian_layers(subject.model):

            def look(_module: nn.Module, inputs: Any, _output: Any) -> None:
                nonlocal called
                called = True
                given = output_fields(inputs, len(images))
                # Whole numbers are places, such as of tokens: zero is one of them.
                rows = [value.reshape(len(images), -1) for value in given.values() if value.is_floating_point()]
                found.logical_and_(torch.cat([(row == 0).cpu() for row in rows], 1).all(1) if rows else ~found)

            layer.module.register_forward_hook(look)
        forward(subject.model, images)
    return found & called


def _varies_inside(subject: Subject, floor: float) -> Tensor:
    """Return for each image whether a Bayesian layer's output varies by more than ``floor`` of that layer's scale."""
    images = subject.require_images()
    found = torch.zeros(len(images), dtype=torch.bool)
    seen: dict[str, Pairs | None] = {}
    with undisturbed(subject.model, seed=subject.seed):
        for layer in bayesian_layers(subject.model):

            def keep(_module: nn.Module, _inputs: Any, output: Any, path: str = layer.path) -> None:
                fields = output_fields(output, len(images))
                if not fields:
                    return
                output = next(iter(fields.values())).detach().cpu()
                pairs = seen.setdefault(path, Pairs())
                # A layer that is called more than once in a pass, perhaps with other shapes, shows nothing.
                if pairs is not None and pairs.passes < PASSES and pairs.takes(output):
                    pairs.take(output[None])
                else:
                    seen[path] = None

            layer.module.register_forward_hook(keep)
        for _ in range(PASSES):
            forward(subject.model, images)
    for pairs in seen.values():
        if pairs is not None and pairs.passes == PASSES:
            found |= pairs.spreads(scale_of(pairs.first.double())).median(0).values > floor
    return found
