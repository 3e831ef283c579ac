"""What an audit found, as frozen records of plain values.

Records hold no tensors. They become plain values (`pytest_bnn.records.codec`) before they cross a process boundary or
are written as JSON, and `AuditRun.from_json` reads them back with validation.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pytest_bnn.errors import InputError
from pytest_bnn.records.codec import Scalar, from_plain, schema_definitions, show, to_plain

SCHEMA_VERSION = "1.2"

Stage: TypeAlias = Literal["converted", "finetuned", "unrelated", "unknown"]
Inconclusive: TypeAlias = Literal["fail", "warn"]


class Verdict(enum.StrEnum):
    """How a claim fared. ``warn`` is for what the user should know and no claim forbids."""

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
    """What decided the verdict: ``observed`` had to stand in ``relation`` to ``allowed``."""

    quantity: str
    observed: Scalar
    relation: Literal["==", "<=", ">=", "<", ">"]
    allowed: Scalar
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """What a verdict by sampling stands on: its share of the run's budget, and the statistic with its interval.

    The check fails a sound model with a chance of at most ``alpha``, and passes an unsound one with at most ``beta``.
    ``low`` and ``high`` are the bounds that were compared with the threshold, each None where there is none.
    """

    alpha: float
    beta: float
    statistic: str
    low: float | None = None
    high: float | None = None

    def explain(self) -> str:
        """Give it as one line of text."""
        bounds = {
            (True, True): "",
            (False, True): f" at least {show(self.low)}",
            (True, False): f" at most {show(self.high)}",
            (False, False): f" in [{show(self.low)}, {show(self.high)}]",
        }[self.low is None, self.high is None]
        return f"{self.statistic}{bounds}; false alarm at most {self.alpha:.3g}, wrong pass at most {self.beta:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFinding:
    """What a check has to say about one layer, by its path in the model. ``ok`` is False for offenders."""

    path: str
    kind: str
    ok: bool
    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One check's verdict on one subject, to believe or repeat; ``sampler`` says what computed its passes, and why."""

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

    def __getitem__(self, name: str) -> Scalar:
        """Give the value of the measurement called ``name``; KeyError lists the names there are."""
        for measurement in self.measurements:
            if measurement.name == name:
                return measurement.value
        raise KeyError(f"no measurement {name!r}; there are {[m.name for m in self.measurements]}")

    def explain(self, offenders: int = 5) -> str:
        """Give the whole story as text: headline, observed against allowed, worst layers, remedy."""
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
        lines.extend(f"  note:     {note}" for note in self.notes)
        if self.remedy:
            lines.append(f"  fix:      {self.remedy}")
        return str(to_plain("\n".join(lines)))

    def raise_if_failed(self, *, inconclusive: Inconclusive = "fail") -> Evidence:
        """Raise AssertionError with `explain` when the claim failed; return self otherwise."""
        if is_failure(self.verdict, inconclusive=inconclusive):
            raise AssertionError(self.explain())
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """A line of a subject's layer table. ``sigma_over_mu`` is the median of sigma / abs(mu) over all weights."""

    path: str
    kind: str
    shape: str
    weights: int
    bayesian: bool
    sigma_over_mu: float | None = None
    kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """One class in a prediction: teacher's probability, BNN's mean with its 5 % and 95 % quantile over passes."""

    name: str
    teacher: float | None
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One image with its predictive distribution: the leading classes of teacher and BNN, at most five.

    ``index`` is the image's place in the data, from 0.
    ``image`` is a PNG as a data URI. ``entropy`` (of the mean) and ``mutual_information`` are in nats.
    """

    index: int
    image: str
    label: str | None
    passes: int
    entropy: float
    mutual_information: float
    classes: tuple[ClassShare, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """One step of fine-tuning. ``kl`` is unweighted; ``percent`` is the top-1 class's share of one pass.

    ``trainer`` says what computed it, and why.
    """

    step: int
    loss: float
    data_term: float
    kl: float
    gradient_norm: float
    learning_rate: float
    top1: str
    percent: float
    trainer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectRecord:
    """What was audited: a model, described so that the report can show it. ``sampler`` is that of its passes."""

    name: str
    stage: Stage
    model: str
    teacher: str | None
    images: int
    sha256: str = ""
    layers: tuple[LayerRow, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    training: tuple[TrainingStep, ...] = ()
    sampler: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRun:
    """Everything an audit, or a whole test session, found. The report is a pure function of its JSON."""

    checks: tuple[Evidence, ...] = ()
    subjects: tuple[SubjectRecord, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    title: str = "Bayesian conversion audit"

    @classmethod
    def merged(cls, runs: Iterable[AuditRun], *, provenance: Mapping[str, str], title: str = "") -> AuditRun:
        """Give one run with the checks and subjects of several, in their order."""
        runs = list(runs)
        return cls(
            checks=tuple(check for run in runs for check in run.checks),
            subjects=tuple(subject for run in runs for subject in run.subjects),
            provenance=dict(provenance),
            title=title or cls().title,
        )

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of its checks; not_applicable when there is none."""
        found = {check.verdict for check in self.checks}
        return next((verdict for verdict in SEVERITY if verdict in found), Verdict.NOT_APPLICABLE)

    def __getitem__(self, id: str) -> Evidence:
        """Give the evidence of the check ``id``; the first one where several subjects were audited."""
        for check in self.checks:
            if check.id == id:
                return check
        raise KeyError(f"no check {id!r} ran; there are {sorted({check.id for check in self.checks})}")

    def raise_for_failures(self, *, inconclusive: Inconclusive | None = None) -> AuditRun:
        """Raise AssertionError that explains every failed check; return self when there is none.

        Args:
            inconclusive: Whether an undecided claim counts as a failure. None asks the recorder in force
                (pytest's ``--bnn-inconclusive``), and ``"fail"`` where there is none.
        """
        from pytest_bnn.records.recorder import inconclusive_policy

        policy = inconclusive_policy() if inconclusive is None else inconclusive
        bad = [check for check in self.checks if is_failure(check.verdict, inconclusive=policy)]
        if bad:
            raise AssertionError("\n\n".join(check.explain() for check in bad))
        return self

    def to_json(self) -> str:
        """Give the run as JSON text, ending in a newline."""
        plain = to_plain(self)
        assert isinstance(plain, dict)
        document = {"schema_version": SCHEMA_VERSION, "verdict": self.verdict.value, **plain}
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> AuditRun:
        """Read what `to_json` wrote.

        Raises:
            InputError: The text is not JSON, not an audit, or of another schema version.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the audit is not JSON ({error})", fix="give the audit.json of a run") from error
        if not isinstance(document, dict) or "schema_version" not in document:
            raise InputError("the JSON is not an audit: it has no schema_version", fix="give the audit.json of a run")
        if str(document["schema_version"]).split(".")[0] != SCHEMA_VERSION.split(".")[0]:
            raise InputError(
                f"the audit has schema version {document['schema_version']}, this pytest-bnn reads {SCHEMA_VERSION}",
                fix="render it with the pytest-bnn that wrote it",
            )
        body = {name: value for name, value in document.items() if name not in ("schema_version", "verdict")}
        run = from_plain(body, cls)
        assert isinstance(run, cls)
        return run


def is_failure(verdict: Verdict, *, inconclusive: Inconclusive = "fail") -> bool:
    """Say whether a verdict fails a test or a run."""
    return verdict in (Verdict.FAIL, Verdict.ERROR) or (verdict is Verdict.INCONCLUSIVE and inconclusive == "fail")


def json_schema() -> dict[str, Any]:
    """Give the JSON Schema of an audit, made from the records themselves."""
    definitions = schema_definitions(AuditRun)
    run = definitions["AuditRun"]
    run["properties"] = {
        "schema_version": {"type": "string", "pattern": rf"^{SCHEMA_VERSION.split('.')[0]}\."},
        "verdict": {"$ref": "#/$defs/Verdict"},
        **run["properties"],
    }
    run["required"] = ["schema_version", "verdict", "checks", "subjects", "provenance"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"pytest-bnn audit, version {SCHEMA_VERSION}",
        "$ref": "#/$defs/AuditRun",
        "$defs": definitions,
    }
