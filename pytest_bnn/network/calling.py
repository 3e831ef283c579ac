"""Calling a model that is not ours: what it returned, as one tensor, or what it raised, and where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.network.isolation import raised_in


class ForwardError(Exception):
    """A model's own forward raised; the cause is chained."""

    def __init__(self, error: BaseException, place: str = "") -> None:
        first = next(iter(str(error).strip().splitlines()), "")
        super().__init__(f"{type(error).__name__}: {first}" + (f", in {place}" if place else ""))


def output_tensor(output: Any) -> Tensor:
    """Take the logits from what a model returned: a tensor, ``(out, kl)``, or an object or dict with logits."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and "logits" in output:
        return output_tensor(output["logits"])
    if isinstance(output, tuple | list) and output:
        return output_tensor(output[0])
    if hasattr(output, "logits"):
        return output_tensor(output.logits)
    raise TypeError(f"the model returned {type(output).__name__}, not a tensor or (tensor, kl)")


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model once on a batch, without gradients.

    Raises:
        ForwardError: The model raised, or returned something that is no tensor of rows of numbers.
    """
    try:
        with torch.no_grad():
            output = output_tensor(model(images))
        rows = output.ndim > 1 or output.shape == images.shape[:1]
        if not rows or not output.numel() or output.is_complex():
            kind = "complex tensor" if output.is_complex() else "tensor"
            raise TypeError(
                f"the model returned a {kind} of shape {list(output.shape)} for {len(images)} inputs, and not a row of "
                "real numbers for each"
            )
        return output
    except Exception as error:
        raise ForwardError(error, raised_in(model, error)) from error
