"""What the weights that an evaluation of a loss used show of it, once the weights themselves are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.libraries.cut import Key, key_of
from pytest_bnn.libraries.gaussian import in_parts


@dataclass(frozen=True, slots=True)
class Used:
    """What the calls of Bayesian layers showed.

    Attributes:
        shown: Paths of the layers of which a call reveals what it drew.
        noisy: The tensors that were drawn with noise that is not all 0.
        arrived: Paths of the layers to whose drawn weights a gradient came.
        pulled: Paths of those to which one came that is not all 0.
    """

    shown: frozenset[str] = frozenset()
    noisy: frozenset[Key] = frozenset()
    arrived: frozenset[str] = frozenset()
    pulled: frozenset[str] = frozenset()

    @classmethod
    def of(cls, calls: Sequence[LayerCall]) -> Used:
        """Look at the weights of some calls, and at the gradients that came to them."""
        gradients = [(call.layer.path, used.grad) for call in calls for used in call.operands if used.grad is not None]
        return cls(
            shown=frozenset(call.layer.path for call in calls if call.revealed()),
            noisy=frozenset(key_of(tensor) for call in calls for tensor in call.noisy()),
            arrived=frozenset(path for path, _ in gradients),
            pulled=frozenset(path for path, gradient in gradients if _any(gradient)),
        )


def _any(values: Tensor) -> bool:
    return any(bool(part.any()) for (part,) in in_parts(values))
