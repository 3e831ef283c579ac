"""What a check found, as frozen records of plain values, which hold no tensors."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pytest_bnn.records.charts import Chart
from pytest_bnn.records.codec import Scalar, one_line, show
from pytest_bnn.records.policy import Inconclusive as Inconclusive
from pytest_bnn.records.policy import inconclusive_policy, is_known
from pytest_bnn.records.raising import raising

Stage: TypeAlias = Literal["converted", "finetuned", "unrelated", "unknown"]


class Verdict(enum.StrEnum):
    """The outcome of a check. ``warn`` is for what the user should know and no claim forbids."""

    PASS = "pass"  # noqa: S105  no password
    WARN = "warn"
    FAIL = "fail"
    ERROR = "error"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not_applicable"


#: From worst to best: the verdict of a run is the first of these that one of its checks has.
SEVERITY = (
    Verdict.ERROR,
    Verdict.FAIL,
    Verdict.INCONCLUSIVE,
    Verdict.WARN,
    Verdict.PASS,
    Verdict.NOT_APPLICABLE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One number or word that a check found, with its unit."""

    name: str
    value: Scalar
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """What decided the verdict: ``observed`` had to stand in ``relation`` to ``allowed``.

    Where it had to lie in a band, ``other_end`` is the end that ``allowed`` is not.
    """

    quantity: str
    observed: Scalar
    relation: Literal["==", "<=", ">=", "<", ">"]
    allowed: Scalar
    unit: str = ""
    other_end: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """The basis of a verdict by sampling: its share of the run's budget, and the statistic with its interval.

    The check fails a sound model with a chance of at most ``alpha``, and passes an unsound one with at most ``beta``.
    ``low`` and ``high`` are the bounds that were compared with the threshold, each None where there is none.
    """

    alpha: float
    beta: float
    statistic: str
    low: float | None = None
    high: float | None = None

    def explain(self) -> str:
        """Return the layer's finding as one line of text."""
        bounds = {
            (True, True): "",
            (False, True): f" at least {show(self.low)}",
            (True, False): f" at most {show(self.high)}",
            (False, False): f" in [{show(self.low)}, {show(self.high)}]",
        }[self.low is None, self.high is None]
        return f"{self.statistic}{bounds}; false alarm at most {self.alpha:.3g}, wrong pass at most {self.beta:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFinding:
    """A check's finding about one layer, by its path in the model; ``ok`` is False where the layer is at fault."""

    path: str
    kind: str
    ok: bool
    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """A part of the model that a claim leaves out on purpose, by its path, with the reason that was given for it."""

    path: str
    reason: str
    weights: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One check's verdict on one subject, with what it rests on; ``sampler`` says what computed its passes, and why.

    ``charts`` are curves that the report shows beside it.
    ``accepted`` is what the claim leaves out on purpose.
    ``missing`` names what was not given and would let a claim be judged that is ``not_applicable`` without it, such as
    ``"loss"``; it is empty where the claim is about something that this model does not have.
    ``explained_by`` is the id of another failed check of the same subject, whose fault this failure follows from.
    ``test`` is the node id of the test that recorded it, and ``expected`` says that the test expected its failure.
    ``key`` tells subjects of one name apart; it is empty where the name is enough.
    """

    id: str
    subject: str
    stage: Stage
    verdict: Verdict
    claim: str
    headline: str
    measurements: tuple[Measurement, ...] = ()
    threshold: Threshold | None = None
    layers: tuple[LayerFinding, ...] = ()
    remedy: str = ""
    notes: tuple[str, ...] = ()
    seed: int = 0
    samples: int = 0
    seconds: float = 0.0
    sampler: str = ""
    certainty: Certainty | None = None
    charts: tuple[Chart, ...] = ()
    accepted: tuple[Acceptance, ...] = ()
    missing: tuple[str, ...] = ()
    explained_by: str = ""
    test: str = ""
    expected: bool = False
    key: str = ""

    def __getitem__(self, name: str) -> Scalar:
        """Return the value of the measurement called ``name``; KeyError lists the names there are."""
        for measurement in self.measurements:
            if measurement.name == name:
                return measurement.value
        raise KeyError(f"no measurement {name!r}; there are {[m.name for m in self.measurements]}")

    @property
    def unjudged(self) -> bool:
        """Whether it lacks what was not given, and can be judged with it.

        Any other claim that is ``not_applicable`` is about something that the model does not have.
        """
        return self.verdict is Verdict.NOT_APPLICABLE and bool(self.missing)

    def explain(self, offenders: int = 5) -> str:
        """Return the whole story as text: headline, observed against allowed, worst layers, remedy."""
        lines = [f"{self.id} {self.verdict.replace('_', ' ')} for {self.subject!r}: {self.headline}"]
        lines.append(f"  claim:    {self.claim}")
        if self.threshold is not None:
            unit = f" {self.threshold.unit}" if self.threshold.unit else ""
            lines.append(
                f"  observed: {self.threshold.quantity} {show(self.threshold.observed)}{unit}, "
                f"allowed {self.threshold.relation} {show(self.threshold.allowed)}{unit}"
            )
        if self.certainty is not None:
            lines.append(f"  certain:  {self.certainty.explain()}")
        bad = [layer for layer in self.layers if not layer.ok]
        for index, layer in enumerate(bad[:offenders]):
            label = "worst:   " if index == 0 else "         "
            lines.append(f"  {label} {layer.path or '(the model itself)'} ({layer.kind}): {layer.finding}")
        if len(bad) > offenders:
            lines.append(f"            and {len(bad) - offenders} more")
        if self.explained_by:
            lines.append(f"  cause:    {self.explained_by} fails too, and explains this")
        lines.extend(f"  note:     {note}" for note in self.notes)
        if self.remedy:
            lines.append(f"  fix:      {self.remedy}")
        return "\n".join(map(one_line, lines))

    def fails(self, *, inconclusive: Inconclusive | None = None) -> bool:
        """Return whether the claim fails a test: by its verdict, unless a baseline in force knows the failure.

        Args:
            inconclusive: Whether an undecided claim counts as a failure. None asks the policy in force
                (pytest's ``--bnn-inconclusive``), and is ``"fail"`` where there is none.
        """
        return is_failure(self.verdict, inconclusive=inconclusive or inconclusive_policy()) and not is_known(self)

    def raise_if_failed(self, *, inconclusive: Inconclusive | None = None) -> Evidence:
        """Raise AssertionError with `explain` when the claim `fails`; return self otherwise."""
        __tracebackhide__ = True
        if self.fails(inconclusive=inconclusive):
            raise raising(self.explain(), (self,))
        return self


def is_failure(verdict: Verdict, *, inconclusive: Inconclusive = "fail") -> bool:
    """Return whether a verdict fails a test or a run."""
    return verdict in (Verdict.FAIL, Verdict.ERROR) or (verdict is Verdict.INCONCLUSIVE and inconclusive == "fail")
