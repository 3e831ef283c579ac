"""Is a mean score as good as the teacher's, example by example? Bounds by how far each difference can go."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import chance_at_any_time, hoeffding_radius_of, radius_at_any_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The scores of a model and of its teacher on the same examples, of which more is worse.

    Attributes:
        count: Of the examples.
        own: The mean of the model's.
        its: The mean of the teacher's.
        gap: The mean difference; above 0 the model is worse.
        squares: Sum over the examples of the square of how far their difference can go by the label alone.
        at_any_time: Whether the number of examples may depend on what the labels of the first ones were.

    Source: Hoeffding 1963, theorem 2; `pytest_bnn.stats.intervals.radius_at_any_time`.
    """

    count: int
    own: float
    its: float
    gap: float
    squares: float
    at_any_time: bool = False

    @classmethod
    def of(cls, own: Tensor, its: Tensor, ranges: Tensor) -> Scores:
        """Take scores example by example, ``[N]``.

        Args:
            own: The model's.
            its: The teacher's.
            ranges: How far each difference can go by the label alone; fixed before it is seen.
        """
        return cls(
            count=len(own),
            own=float(own.mean()),
            its=float(its.mean()),
            gap=float((own - its).mean()),
            squares=float(ranges.double().square().sum()),
        )

    def radius(self, error_rate: float) -> float:
        """Return by how much the mean difference exceeds what it is in the mean over labels, but for an error rate."""
        if self.at_any_time:
            return radius_at_any_time(self.squares, self.count, error_rate)
        return hoeffding_radius_of(self.squares, self.count, error_rate)

    def chance(self, margin: float) -> float:
        """Return the chance of scores like these, or worse, where the model is worse by a margin at most."""
        beyond = (self.gap - margin) * self.count
        if beyond <= 0:
            return 1.0
        if self.at_any_time:
            return chance_at_any_time(beyond, self.squares)
        return math.exp(-2 * beyond**2 / self.squares) if self.squares else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Whether the scores of a model are as good as its teacher's.

    Attributes:
        name: Of the score, in the singular.
        scores: Of both.
        margin: How much worse the mean may be.
        budget: Error rates.
        unit: Of the scores, in words; empty for none.
    """

    name: str
    scores: Scores
    margin: float
    budget: Budget
    unit: str = ""

    @property
    def gap(self) -> float:
        """The mean difference; above 0 the model is worse."""
        return self.scores.gap

    @property
    def low(self) -> float:
        """What the difference is at least, at alpha."""
        return self.gap - self.scores.radius(self.budget.alpha)

    @property
    def high(self) -> float:
        """What the difference is at most, at beta."""
        return self.gap + self.scores.radius(self.budget.beta)

    @property
    def verdict(self) -> Verdict:
        if self.low > self.margin:
            return Verdict.FAIL
        return Verdict.PASS if self.high <= self.margin else Verdict.INCONCLUSIVE

    @property
    def headline(self) -> str:
        count, own, its = self.scores.count, self.scores.own, self.scores.its
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
        return math.ceil(self.scores.count * (self.scores.radius(error_rate) / apart) ** 2) if apart else None

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
