"""Whether layers lie inside of a network: what they give reaches other layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.history import Trace
from pytest_bnn.libraries.posterior import zero_sigma
from pytest_bnn.network.calling import ForwardError, forward
from pytest_bnn.network.comparing import TRACED_IMAGES, traced
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.tree import mapped
from pytest_bnn.network.wrappers import eager
from pytest_bnn.subject import Subject


def inner(subject: Subject, found: Sequence[Trace], others: Collection[str]) -> tuple[Trace, ...]:
    """Return the tensors whose layer feeds one of the others, shown by shifting its output at the posterior mean.

    None without images, and none where the layers cannot be watched.

    Args:
        subject: The model, and images where there are some.
        found: Tensors of the layers that are asked about.
        others: Paths of the layers that may be fed.
    """
    if subject.missing("images") or not others:
        return ()
    try:
        plain = _outputs(subject, None)
        return tuple(trace for trace in found if _changes(plain, _outputs(subject, trace.tensor.module), others))
    except ForwardError:
        return ()


def _changes(plain: dict[str, list[Tensor]], shifted: dict[str, list[Tensor]], others: Collection[str]) -> bool:
    for path in others:
        for one, other in zip(plain.get(path, ()), shifted.get(path, ()), strict=False):
            if one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num()):
                return True
    return False


def _outputs(subject: Subject, shifted: nn.Module | None) -> dict[str, list[Tensor]]:
    """Return each module's outputs on a few images at the posterior mean, with one module's output shifted."""
    few = subject.require_images()[:TRACED_IMAGES]
    found: dict[str, list[Tensor]] = {}
    with torch.no_grad(), eager(), undisturbed(subject.model, seed=subject.seed), zero_sigma(subject.model):
        if shifted is not None:
            shifted.register_forward_hook(_shift)  # removed with what `undisturbed` finds added
        with traced(subject.model) as calls:
            forward(subject.model, few)
    for call in calls:
        found.setdefault(call.path, []).append(call.output)
    return found


def _shift(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    return mapped(output, lambda leaf: leaf + 1 + leaf.abs() if _is_numbers(leaf) else leaf)


def _is_numbers(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
