"""A task: what a row of outputs says, and how it is turned into shares of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

TaskOption: TypeAlias = Literal["auto", "classification", "binary", "regression", "dense"]
Kind: TypeAlias = Literal["classification", "binary", "regression", "dense", "unknown"]

#: By how much the shares of a row may miss 1, whatever their dtype is now: what bfloat16 makes of a softmax.
_SUM = 3e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the outputs of a network mean.

    Attributes:
        kind: What a row says: the scores of classes ``[classes]``, one number whose side of a threshold counts (a
            logit or a probability), numbers, or the scores of classes for each place, ``[classes, ...]`` or
            ``[..., classes]``.
        field: The name of the output that it is about; empty where there is one.
        why: By what it is known, or what would decide it, in words.
        proven: Whether labels, the loss or the user say so; else it is a presumption, on which no model may fail.
        shares: Whether the outputs are probabilities already.
        classes_last: For ``dense``: whether the classes are the last dimension, and not the first of a row.
    """

    kind: Kind
    field: str = ""
    why: str = ""
    proven: bool = True
    shares: bool = False
    classes_last: bool = False

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Turn outputs ``[..., N, *row]`` into shares of classes ``[..., items, classes]``, for one decision an item.

        Items are the examples, or for ``dense`` all places of all examples, example by example.

        Raises:
            ValueError: The task has no classes.
        """
        values = outputs if outputs.dtype not in (torch.float16, torch.bfloat16) else outputs.float()
        if self.kind == "classification":
            return values if self.shares else torch.softmax(values, -1)
        if self.kind == "binary":
            share = values if self.shares else torch.sigmoid(values)
            share = share.squeeze(-1) if share.ndim and share.shape[-1] == 1 else share
            return torch.stack([1 - share, share], -1)
        if self.kind == "dense":
            raise ValueError("dense outputs have places: use `at_places`")
        raise ValueError(f"a {self.kind} task has no classes")

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Return the logs of `probabilities`, exact where these are too small for a float.

        Of outputs that are probabilities already, those that are 0, exactly or by rounding, have minus infinity.

        Raises:
            ValueError: The task has no classes, or places.
        """
        if self.shares or self.kind not in ("classification", "binary"):
            return self.probabilities(outputs).log()
        values = outputs if outputs.dtype not in (torch.float16, torch.bfloat16) else outputs.float()
        if self.kind == "classification":
            return torch.log_softmax(values, -1)
        values = values.squeeze(-1) if values.ndim and values.shape[-1] == 1 else values
        return torch.nn.functional.logsigmoid(torch.stack([-values, values], -1))

    def places(self, outputs: Tensor, passes: int) -> Tensor:
        """Turn dense outputs into ``[..., items, classes]`` scores; ``passes`` is the number of leading dimensions."""
        values = outputs if self.classes_last else outputs.movedim(passes + 1, -1)
        return values.flatten(passes, -2)

    def at_places(self, outputs: Tensor, passes: int) -> Tensor:
        """Turn dense outputs into shares of classes, ``[..., items, classes]``; one channel has two sides."""
        scores = self.places(outputs, passes)
        kind: Kind = "binary" if scores.shape[-1] == 1 else "classification"
        return Task(kind=kind, shares=self.shares).probabilities(scores)


def are_shares(outputs: Tensor, *, dim: int = -1) -> bool:
    """Return whether every row of outputs is a distribution over classes: not negative, and with the sum 1."""
    sums = outputs.sum(dim, dtype=torch.float64)
    return bool((outputs >= 0).all()) and bool((sums - 1).abs().le(_SUM).all())
