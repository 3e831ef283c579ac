"""Selective prediction: how often accepted answers are wrong, where the least confident ones are refused."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RiskCoverage:
    """What is accepted at each threshold of the confidence, from none of the examples to all of them.

    Attributes:
        coverage: The share of examples that are accepted, ``[K]``, from 0 to 1.
        errors: The share of examples that are accepted and wrong, ``[K]``: the generalized risk.
    """

    coverage: Tensor
    errors: Tensor

    @property
    def risk(self) -> Tensor:
        """The share of wrong answers among the accepted ones, ``[K]``; NaN where none is accepted."""
        return self.errors / self.coverage

    @property
    def augrc(self) -> float:
        """The area under the generalized risk over the coverage, in [0, 1/2]: 0 where no answer is wrong.

        Source: Traub et al. 2024, "Overcoming common flaws in the evaluation of selective classification systems".
        """
        return float(torch.trapezoid(self.errors, self.coverage))


def risk_coverage(confidence: Tensor, right: Tensor) -> RiskCoverage:
    """Accept examples from the most confident on; those of equal confidence are accepted together.

    Args:
        confidence: Any number that is larger for what is more certain, ``[N]``, at least one.
        right: Whether the answer was right, ``[N]``.
    """
    _, group, counts = torch.unique(-confidence.double(), return_inverse=True, return_counts=True)
    wrong = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, group, (~right.bool()).double())
    none = torch.zeros(1, dtype=torch.float64)
    return RiskCoverage(
        coverage=torch.cat([none, counts.cumsum(0).double()]) / len(confidence),
        errors=torch.cat([none, wrong.cumsum(0)]) / len(confidence),
    )
