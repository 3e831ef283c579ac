"""Which of some tensors training writes: those that a gradient reaches, and those that a pass in train mode changes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.data.batch import call
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.tree import tensors
from pytest_bnn.network.wrappers import eager
from pytest_bnn.subject import Subject, fitted

#: Rows of the pass: more than one, which batch normalisation asks for in train mode.
_ROWS = 4

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def reached(subject: Subject, names: Collection[str]) -> set[str]:
    """Return the names of the parameters that are trained: a gradient of the outputs reaches them.

    Without images, or where the pass raises, those that require a gradient.
    """
    wanted = {n: p for n, p in subject.model.named_parameters() if n in names and p.requires_grad}
    if subject.images is None or not wanted:
        return set(wanted)
    images: Any = fitted(subject.images, subject.model)[:_ROWS]
    try:
        with eager(), undisturbed(subject.model, seed=subject.seed), torch.enable_grad():
            outputs = [t for t in tensors(call(subject.model, images)) if t.requires_grad]
            if not outputs:
                return set()
            total = torch.stack([t.sum().abs() for t in outputs]).sum()
            gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    except Exception:  # its outputs are of a kind that this does not know
        return set(wanted)
    return {name for name, gradient in zip(wanted, gradients, strict=True) if gradient is not None}


def changed_in_training(subject: Subject, names: Collection[str]) -> set[str]:
    """Return the names of those buffers that a pass changes after ``model.train()``.

    Without images, or where the pass raises, the running statistics of normalisation layers.
    """
    try:
        return _changed(subject, names)
    except Exception:  # it does not run in train mode, or not on so few rows
        return {name for name in names if name.rpartition(".")[2] in _STATISTICS}


def _changed(subject: Subject, names: Collection[str]) -> set[str]:
    model = subject.model
    images: Any = fitted(subject.require_images(), model)[:_ROWS]
    with eager(), undisturbed(model, seed=subject.seed), torch.no_grad():
        before = {name: buffer.clone() for name, buffer in model.named_buffers() if name in names}
        model.train()
        call(model, images)
        now = dict(model.named_buffers())
        return {name for name, buffer in before.items() if not _equal(buffer, now.get(name))}


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(one.nan_to_num(), other.nan_to_num())


def is_frozen(model: nn.Module, path: str, trained: Collection[str]) -> bool:
    """Return whether a module is part of something with parameters of which none is trained."""
    parts = path.split(".") if path else []
    for depth in range(len(parts), 0, -1):
        root = ".".join(parts[:depth])
        own = [name for name, _ in model.get_submodule(root).named_parameters(prefix=root)]
        if own:
            return not set(own) & set(trained)
    return False
