"""Is a mean score as good as the teacher's, example by example? Bounds by how far each difference can go."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import hoeffding_radius


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Paired:
    """Scores of a model beside its teacher's, of which more is worse.

    Attributes:
        name: Of the score, in the singular.
        own: The model's, ``[N]``.
        its: The teacher's, ``[N]``.
        ranges: How far each difference can go by the label alone, ``[N]``; fixed before it is seen.
        margin: How much worse the mean may be.
        budget: Error rates.
        unit: Of the scores, in words; empty for none.

    Source: Hoeffding 1963, theorem 2.
    """

    name: str
    own: Tensor
    its: Tensor
    ranges: Tensor
    margin: float
    budget: Budget
    unit: str = ""

    @property
    def gap(self) -> float:
        """The mean difference; above 0 the model is worse."""
        return float((self.own - self.its).mean())

    @property
    def low(self) -> float:
        """What the difference is at least, at alpha."""
        return self.gap - hoeffding_radius(self.ranges, self.budget.alpha)

    @property
    def high(self) -> float:
        """What the difference is at most, at beta."""
        return self.gap + hoeffding_radius(self.ranges, self.budget.beta)

    @property
    def verdict(self) -> Verdict:
        if self.low > self.margin:
            return Verdict.FAIL
        return Verdict.PASS if self.high <= self.margin else Verdict.INCONCLUSIVE

    @property
    def headline(self) -> str:
        count = len(self.own)
        own, its = float(self.own.mean()), float(self.its.mean())
        unit = f" {self.unit}" if self.unit else ""
        said = f"its {self.name} is {own:.3g}{unit} and the teacher's {its:.3g} ({count} labels)"
        if self.verdict is Verdict.PASS:
            high = self.high
            bound = f"better by at least {-high:.2g}" if high < 0 else f"worse by at most {high:.2g}"
            return f"the model is as good as its teacher: {said}, certainly {bound}"
        if self.verdict is Verdict.FAIL:
            return f"the model is worse than its teacher: {said}, certainly worse by at least {self.low:.2g}"
        return f"{count} labels are too few to decide whether the model is as good as its teacher: {said}"

    def needed(self, error_rate: float) -> int | None:
        """Return about how many labels like these would decide it at an error rate; None for no number."""
        apart = self.margin - self.gap
        return math.ceil(len(self.own) * (hoeffding_radius(self.ranges, error_rate) / apart) ** 2) if apart else None

    @property
    def difference(self) -> Measurement:
        return Measurement(name="difference", value=self.gap, unit=self.unit, note="above 0 the model is worse")

    def threshold(self, quantity: str) -> Threshold:
        return Threshold(quantity=quantity, observed=self.gap, relation="<=", allowed=self.margin, unit=self.unit)

    def certainty(self, statistic: str) -> Certainty:
        failed = self.verdict is Verdict.FAIL
        return Certainty(
            alpha=self.budget.alpha,
            beta=self.budget.beta,
            statistic=statistic,
            low=self.low if failed else None,
            high=None if failed else self.high,
        )
