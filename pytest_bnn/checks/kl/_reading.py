"""What was declared of a loss's KL term, and what was read off the loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_bnn.checks._objective import Evaluation
from pytest_bnn.checks.kl._fits import Fit, Weight
from pytest_bnn.checks.kl._mean import MeanFit


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What was said of the weight that the KL term should have."""

    kl_weight: float | None = None
    num_batches: int | None = None
    num_data: int | None = None

    @property
    def weight(self) -> float | None:
        """The weight itself, where that is what was said or what follows from the number of batches."""
        return 1 / self.num_batches if self.num_batches is not None else self.kl_weight


@dataclass(slots=True, eq=False)
class Reading:
    """What was read off a loss in one mode.

    Attributes:
        first: The evaluation of which all of this is said.
        fits: The weight of the KL's gradient to rho, tensor by tensor; of some tensors to mu alone.
        seen_by_prior: Whether the loss notices that the layers' priors move.
        of: Whether the KL is a closed form to the layers' priors, one to a prior of the loss's own, or an estimate from
            the drawn weights.
        found: The weight, in the convention that fits the most tensors.
        weights: The weight of each fit in that convention, by ``id``.
        target: What each weight should be.
        uneven: The fits that have another weight than most.
        absent: The fits without one.
        strangers: The fits of gradients that are not the KL's alone.
        means: How the KL holds the means; empty where that cannot be seen.
    """

    first: Evaluation
    fits: list[Fit]
    seen_by_prior: bool
    of: str = "closed form"
    found: Weight = field(default_factory=lambda: Weight("sum", 0.0, 0.0))
    weights: dict[int, float] = field(default_factory=dict)
    target: float = 0.0
    uneven: list[Fit] = field(default_factory=list)
    absent: list[Fit] = field(default_factory=list)
    strangers: list[Fit] = field(default_factory=list)
    means: list[MeanFit] = field(default_factory=list)

    @property
    def missing(self) -> bool:
        """Whether no tensor has the term."""
        return len(self.absent) == len(self.fits)
