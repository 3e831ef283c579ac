"""The spread of outputs, from passes taken two by two: differences are independent of the mean and of each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pytest_bnn.libraries.posterior import zero_sigma
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.sampling.bank import forward
from pytest_bnn.subject import Subject


def scale_of(outputs: Tensor) -> float:
    """Give the standard deviation over images and outputs; the root mean square where there is only one number."""
    spread = float(outputs.std()) if outputs.numel() > 1 else 0.0
    found = spread or float(outputs.square().mean().sqrt()) or 1.0
    return found if math.isfinite(found) else 1.0


def scale_without_noise(subject: Subject) -> float:
    """Give the scale of what the network says with every sigma at 0: the signal that its noise is measured by."""
    with undisturbed(subject.model, seed=subject.seed), zero_sigma(subject.model):
        return scale_of(forward(subject.model, subject.require_images()).double())


def spreads(outputs: Tensor, scale: float) -> Tensor:
    """Give the spread of each image in each pair of passes, ``[pairs, images]``, relative to ``scale``.

    It is the root mean square, over the outputs, of the difference of two passes by the square root of 2, which
    estimates their standard deviation. A last pass without a partner is left out. The spreads lie
    on the CPU, wherever the outputs do.
    """
    pairs = len(outputs) // 2
    used = outputs[: 2 * pairs].double().reshape(2 * pairs, outputs.shape[1], -1)
    gaps = used[0::2] - used[1::2]
    return (gaps.square().mean(2).div(2).sqrt() / scale).cpu()


def not_finite_in(outputs: Tensor) -> int:
    """Say how many passes hold NaN or infinity."""
    return int((~torch.isfinite(outputs).flatten(1).all(1)).sum())
