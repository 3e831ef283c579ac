"""The spread of outputs, from passes taken two by two: differences are independent of the mean and of each other."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from pytest_bnn.libraries.posterior import zero_sigma
from pytest_bnn.network.calling import Field, forward
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.subject import Subject

#: What spreads are relative to: one number, or one for each number of outputs that are side by side.
Scale: TypeAlias = float | Tensor


def scale_of(outputs: Tensor) -> float:
    """Return the standard deviation over images and outputs; the root mean square where there is only one number."""
    spread = float(outputs.std()) if outputs.numel() > 1 else 0.0
    found = spread or (float(outputs.square().mean().sqrt()) if outputs.numel() else 0.0) or 1.0
    return found if math.isfinite(found) else 1.0


def scales_of(outputs: Tensor, fields: tuple[Field, ...] = (), live: Tensor | None = None) -> Scale:
    """Return the scale of outputs ``[N, ...]``, each tensor's own where several are side by side.

    Args:
        outputs: What the network says without noise.
        fields: The tensors that are side by side, as in `pytest_bnn.network.calling.layout`.
        live: Which numbers vary with the noise, as outputs; all count where none does. What no noise moves, such as
            the scores of masked classes, sets no scale.
    """
    if live is None or not bool(live.any()):
        live = torch.isfinite(outputs)
    if len(fields) < 2:
        return scale_of(outputs[live])
    parts, start = [], 0
    for field in fields:
        columns = slice(start, start + field.size)
        part = live[:, columns] if bool(live[:, columns].any()) else torch.isfinite(outputs[:, columns])
        parts.append(torch.full((field.size,), scale_of(outputs[:, columns][part]), dtype=torch.float64))
        start += field.size
    return torch.cat(parts).to(outputs.device)


def live_in(passes: Tensor) -> Tensor:
    """Say which numbers of outputs ``[passes, N, ...]`` differ in any pass.

    An image of which nothing differs has those that differ for some other image: its silence must not set the scale.
    """
    live = (passes != passes[0]).any(0)
    silent = ~live.flatten(1).any(1) if live.ndim > 1 else ~live
    live[silent] = live.any(0)
    return live


def without_noise(subject: Subject, *, again: bool = False) -> Tensor:
    """Return the network's outputs with every sigma at 0, in float64: the signal that noise is measured against.

    Args:
        subject: What is judged.
        again: Take another seed, which changes nothing where the network at its mean is a function.
    """
    with undisturbed(subject.model, seed=subject.seed + again), zero_sigma(subject.model):
        return forward(subject.model, subject.require_images()).double()


def scale_without_noise(subject: Subject, live: Tensor | None = None) -> Scale:
    """Return the scale of the network's outputs with every sigma at 0."""
    return scales_of(without_noise(subject), subject.fields, live)


def typical(scale: Scale) -> float:
    """Return one number that stands for a scale in a report."""
    return float(scale.mean()) if isinstance(scale, Tensor) else scale


def spreads(outputs: Tensor, scale: Scale) -> Tensor:
    """Return the spread of each image in each pair of passes, ``[pairs, images]``, relative to ``scale``.

    It is the root mean square, over the outputs, of the difference of two passes by the square root of 2, which
    estimates their standard deviation. A last pass without a partner is left out. The spreads lie
    on the CPU, wherever the outputs do.
    """
    pairs = len(outputs) // 2
    used = outputs[: 2 * pairs].double().reshape(2 * pairs, outputs.shape[1], -1)
    ones, others = used[0::2], used[1::2]
    # Infinite in both is a mask: it does not vary.
    gaps = torch.where(ones == others, 0.0, ones - others) / scale
    return gaps.square().mean(2).div(2).sqrt().cpu()


def not_finite_in(outputs: Tensor) -> int:
    """Say how many passes hold NaN or infinity, masks aside: minus infinity beside finite numbers of the same row.

    Such a mask is that of every pass, and of no whole row.
    """
    sick = ~torch.isfinite(outputs)
    if not bool(sick.any()):
        return 0
    masked = torch.isneginf(outputs).all(0)
    if masked.ndim > 1:
        masked &= torch.isfinite(outputs).flatten(2).any(2).all(0).reshape(-1, *[1] * (masked.ndim - 1))
        sick &= ~masked
    return int(sick.flatten(1).any(1).sum())
