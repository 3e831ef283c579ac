"""What outputs are measured by: the scale of what a network says without noise, and what it then says."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from pytest_bnn.libraries.posterior import zero_sigma
from pytest_bnn.network.calling import Field
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.sampling.bank import forward_in_chunks
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


def without_noise(subject: Subject, *, again: bool = False) -> Tensor:
    """Return what the network says with every sigma at 0, in float64: the signal that its noise is measured by.

    Args:
        subject: What is judged.
        again: Take another seed, which changes nothing where the network at its mean is a function.
    """
    with undisturbed(subject.model, seed=subject.seed + again), zero_sigma(subject.model):
        return forward_in_chunks(subject.model, subject.require_images()).double()


def scale_without_noise(subject: Subject, live: Tensor | None = None) -> Scale:
    """Return the scale of what the network says with every sigma at 0."""
    return scales_of(without_noise(subject), subject.fields, live)


def typical(scale: Scale) -> float:
    """Return one number for a scale, to show."""
    return float(scale.mean()) if isinstance(scale, Tensor) else scale
