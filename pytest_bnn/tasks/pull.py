"""How a loss pulls on the outputs of one call: the record that `pytest_bnn.tasks.likelihood` fills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

#: What a loss's pull on the outputs is like, as far as it is one that is known.
Form: TypeAlias = Literal[
    "cross-entropy",
    "binary cross-entropy",
    "smoothed labels",
    "cross-entropy of shares",
    "distillation",
    "distillation without T^2",
    "likelihood of shares",
    "scores for log-probabilities",
    "distance",
    "distance to the mean label",
    "unknown",
]

#: Allowed distance of a row's pull from a form, relative to the pull, in full and in half precision.
FULL, HALF = 1e-3, 5e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """How a loss pulls on the outputs of one call.

    Attributes:
        form: What it is like.
        sign: 1 where it pulls toward the labels, -1 where it pushes away from them, 0 where that is not known.
        scale: The factor c of each row, NaN where a row has none; None where the form has none.
        implied: What each row is pulled toward, a class (-1 where that is not known) or numbers; None where the form
            does not say.
        temperature: Of a distillation.
        rows: How many rows count in the loss: all but those whose label is left out.
    """

    form: Form = "unknown"
    sign: int = 0
    scale: Tensor | None = None
    implied: Tensor | None = None
    temperature: float = 1.0
    rows: int = 0
