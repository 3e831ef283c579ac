"""``uncertainty.errors``: are the uncertain predictions the wrong ones?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks._labelled import Labelled, calibrated
from pytest_bnn.checks._predictions import PASSES, in_two_looks
from pytest_bnn.checks._streamed import on_few
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding
from pytest_bnn.checks.values import FewPasses, Positive
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import clopper_pearson_upper, hoeffding_radius, pairs_bounds
from pytest_bnn.stats.order import auroc, ranks
from pytest_bnn.stats.selective import risk_coverage
from pytest_bnn.subject import Subject

#: Of the area under the generalised risk coverage curve, which lies in [0, 1].
MARGIN = 0.02

#: Half is chance.
_CHANCE = 0.5

#: Shares of the examples, the most confident ones, of which the errors are counted.
_COVERAGES = (0.8, 0.9, 0.95)


@check(
    claim="The predictions that the model is unsure of are the wrong ones, no less than with its teacher.",
    needs=("images",),
    sampled=True,
    after="scores.against_teacher",
    of_data=True,
)
def errors(subject: Subject, *, margin: Positive = MARGIN, max_passes: FewPasses = PASSES, budget: Budget) -> Finding:
    """Measure whether the predictions that the model is unsure of are the wrong ones.

    Examples are ordered by the leading probability of the mean prediction. Two claims are judged: that an error comes
    before a right answer more often than by chance (AUROC above one half, on all pairs), and, where there is a
    teacher, that the area under the generalised risk coverage curve (AUGRC: the chance that an example is wrong and
    more confident than another one) is larger than the teacher's by at most ``margin``. The places in both orders are
    fixed before the labels are seen, so that bounds of the difference hold exactly on these examples, over the labels
    that they may have. Where the teacher's own order certainly is below chance, too, it is inherited, which is a
    warning.

    Args:
        subject: images with labels, at least; see `Subject`.
        margin: How much larger than the teacher's the area may be.
        max_passes: The passes that the prediction is the mean of.
        budget: Error rates; those in force when None.

    Source: Traub et al. 2024, "Overcoming common flaws in the evaluation of selective classification systems", for
    AUGRC; Hoeffding 1963, theorem 2 and section 5b, for the bounds.
    """
    found = in_two_looks(lambda passes: _judge(calibrated(subject, passes), margin, budget), max_passes)
    return on_few(subject, found)


measure_uncertainty_errors, assert_uncertainty_errors = errors.measure, errors.assert_


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """How one network orders its answers ``[N]``: which are wrong, how unsure it is of each, and each one's place.

    The place is the share of all examples that it is less sure of.
    """

    wrong: Tensor
    unsure: Tensor
    places: Tensor
    answers: Tensor

    @classmethod
    def of(cls, log_shares: Tensor, labels: Tensor) -> _Order:
        leading, answers = log_shares.max(1)
        leading = leading.double()
        return cls(wrong=answers != labels, unsure=-torch.expm1(leading), places=ranks(leading), answers=answers)

    @property
    def augrc(self) -> float:
        return risk_coverage(-self.unsure, ~self.wrong).augrc

    @property
    def auroc(self) -> float:
        """The chance that an error is less confident than a right answer; NaN where there is only one of both."""
        if bool(self.wrong.all()) or not bool(self.wrong.any()):
            return math.nan
        return auroc(self.unsure[~self.wrong], self.unsure[self.wrong])

    @property
    def pairs(self) -> int:
        """How many pairs of an error and a right answer are independent."""
        return min(int(self.wrong.sum()), int((~self.wrong).sum()))

    def bounds(self, error_rate: float) -> tuple[float, float]:
        """Return bounds of the chance behind `auroc`."""
        return pairs_bounds(self.auroc, self.pairs, error_rate) if self.pairs else (0.0, 1.0)


def ranges(one: _Order, other: _Order) -> Tensor:
    """Return how far the difference of wrong answers, each times its place, can go by the label alone, ``[N]``.

    An answer that both give is right or wrong for both. Of two different answers one at most is right.
    """
    apart = (one.places - other.places).abs()
    return torch.where(one.answers == other.answers, apart, one.places + other.places)


def _judge(found: Labelled, margin: float, budget: Budget) -> Finding:
    own = _Order.of(found.mixture.log_shares, found.labels)
    its = None if found.predicted.teacher is None else _Order.of(found.predicted.teacher, found.labels)
    each = budget.split(2)
    surely_below, likely_above = own.bounds(each.alpha)[1], own.bounds(each.beta)[0]
    reversed_, ordered = surely_below < _CHANCE, likely_above >= _CHANCE
    gap = low = high = 0.0
    if its is not None:
        gap = own.augrc - its.augrc
        low, high = (gap - hoeffding_radius(ranges(own, its), each.alpha),
                     gap + hoeffding_radius(ranges(own, its), each.beta))  # fmt: skip
    worse, as_good = low > margin, high <= margin
    inherited = reversed_ and not worse and its is not None and its.bounds(each.alpha)[1] < _CHANCE
    verdict = Verdict.FAIL if worse or reversed_ else Verdict.PASS if ordered and as_good else Verdict.INCONCLUSIVE
    n, wrong = len(found), int(own.wrong.sum())
    by_chance = reversed_ or (verdict is Verdict.INCONCLUSIVE and not ordered) or its is None
    return Finding(
        verdict=Verdict.WARN if inherited else verdict,
        headline=_headline(own, its, verdict, surely_below, likely_above, low, high, margin, inherited=inherited),
        measurements=(
            Measurement(name="AUROC of the errors", value=own.auroc, note="one half is chance"),
            *([] if its is None else [Measurement(name="AUROC of the teacher's errors", value=its.auroc)]),
            Measurement(name="AUGRC", value=own.augrc, note="wrong and more confident than another example"),
            *([] if its is None else [Measurement(name="AUGRC of the teacher", value=its.augrc)]),
            *_risks(own, budget.alpha),
            Measurement(name="AUROC of the errors by entropy", value=_by(found.mixture.entropy, own)),
            Measurement(
                name="AUROC of the errors by mutual information", value=_by(found.mixture.mutual_information, own)
            ),
            Measurement(name="errors", value=wrong),
            Measurement(name="labels", value=n),
        ),
        threshold=Threshold(
            quantity="AUROC of the errors", observed=own.auroc, relation=">=", allowed=_CHANCE
        ) if by_chance else Threshold(
            quantity="difference of AUGRC to the teacher's", observed=gap, relation="<=", allowed=margin
        ),
        remedy=_remedy(verdict, own, ordered=ordered, reversed_=reversed_),
        samples=found.mixture.passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic=f"chance that an error is less confident than a right answer ({own.pairs} independent pairs)",
            low=None if reversed_ else likely_above,
            high=surely_below if reversed_ else None,
        ) if by_chance else Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic="difference of AUGRC to the teacher's on these examples, over the labels that they may have",
            low=low if worse else None,
            high=None if worse else high,
        ),
    )  # fmt: skip


def _by(uncertainty: Tensor, own: _Order) -> float:
    if not own.pairs:
        return math.nan
    return auroc(uncertainty[~own.wrong], uncertainty[own.wrong])


def _risks(own: _Order, error_rate: float) -> list[Measurement]:
    """Return the share of errors among the most confident examples, with exact upper bounds."""
    wrong = own.wrong[own.unsure.argsort(stable=True)]
    rows = []
    for coverage in _COVERAGES:
        kept = max(1, math.ceil(coverage * len(wrong)))
        errors = int(wrong[:kept].sum())
        rows.append(
            Measurement(
                name=f"errors at coverage {coverage:g}", value=errors / kept,
                note=f"{errors} of {kept}; at most {clopper_pearson_upper(errors, kept, error_rate):.3g} (exact)",
            )
        )  # fmt: skip
    return rows


def _headline(
    own: _Order, its: _Order | None, verdict: Verdict, surely_below: float, likely_above: float, low: float,
    high: float, margin: float, *, inherited: bool,
) -> str:  # fmt: skip
    wrong, n = int(own.wrong.sum()), len(own.wrong)
    said = f"the AUROC of the confidence is {own.auroc:.3g} ({wrong} errors among {n} answers)"
    errors = "1 error is" if wrong == 1 else f"{wrong} errors are"
    if verdict is Verdict.FAIL and surely_below < _CHANCE:
        whose = "; so it is with the teacher, and the model has inherited it" if inherited else ""
        return f"the wrong answers are the confident ones: {said}, certainly at most {surely_below:.3g}{whose}"
    if verdict is Verdict.FAIL and its is not None and own.auroc >= its.auroc:
        return (
            f"the model makes more errors than its teacher, {wrong} against {int(its.wrong.sum())} among {n}, and "
            f"knows them as well: its AUGRC is {own.augrc:.3g} and the teacher's {its.augrc:.3g}, certainly worse by "
            f"at least {low:.2g}"
        )
    if verdict is Verdict.FAIL and its is not None:
        return (
            f"the model knows its errors less well than its teacher: its AUGRC is {own.augrc:.3g} and the teacher's "
            f"{its.augrc:.3g}, certainly worse by at least {low:.2g}"
        )
    if verdict is Verdict.PASS:
        beside = "" if its is None else (
            f"; its AUGRC is {own.augrc:.3g} and the teacher's {its.augrc:.3g}, worse by at most {max(high, 0):.2g}"
        )  # fmt: skip
        return f"wrong answers are less sure than right ones: {said}, certainly at least {likely_above:.3g}{beside}"
    if not own.pairs:
        return (
            f"{wrong} of {n} answers are wrong, which shows nothing of the order of confident and less confident ones"
        )
    if likely_above < _CHANCE:
        return (
            f"{errors} too few to decide whether wrong answers are less sure than right ones: {said}, certainly at "
            f"least {likely_above:.3g}, where one half is chance"
        )
    return (
        f"{n} labels are too few to decide whether the model knows its errors as well as its teacher: the difference "
        f"of AUGRC to the teacher's is at most {high:.2g}, where {margin:g} is allowed"
    )


def _remedy(verdict: Verdict, own: _Order, *, ordered: bool, reversed_: bool) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL and reversed_:
        return (
            "look for what turns the order around: a confidence that is used for an uncertainty, a temperature below 0 "
            "or of each example's own; and whether the labels are those of the data (data.sane)"
        )
    if verdict is Verdict.FAIL:
        return (
            "see scores.against_teacher and teacher.agreement, then noise.spread and calibration.temperature: a "
            "smaller spread, or more fine-tuning toward the teacher"
        )
    if ordered:
        return "give more labels, or allow more: --set uncertainty.errors.margin=..."
    more = "of which the model gets some wrong " if own.pairs < 20 else ""
    return f"give more labelled examples {more}than these, with --evaluation MODULE:FACTORY"
