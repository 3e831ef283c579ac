"""What an audit found, as frozen records of plain values: the evidence of its checks, and what was audited.

Records hold no tensors. They become plain values (`pytest_bnn.records.codec`) before they cross a process boundary or
are written as JSON, and `AuditRun.from_json` reads them back with validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_bnn.errors import InputError
from pytest_bnn.records.charts import PredictionSummary
from pytest_bnn.records.codec import from_plain, schema_definitions, to_plain
from pytest_bnn.records.evidence import SEVERITY, Evidence, Inconclusive, Stage, Verdict
from pytest_bnn.records.raising import raising

SCHEMA_VERSION = "1.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """A line of a subject's layer table. ``sigma_over_mu`` is the median of sigma / abs(mu) over all weights.

    ``accepted`` is the reason for which the layer is deterministic on purpose, empty where it was not accepted.
    ``noise`` is the layer's share of the sum of the variances of the outputs under the noise of each layer alone; None
    where it was not measured.
    """

    path: str
    kind: str
    shape: str
    weights: int
    bayesian: bool
    sigma_over_mu: float | None = None
    kl: float | None = None
    accepted: str = ""
    noise: float | None = None


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
    ``why`` says what this image was chosen for.
    """

    index: int
    image: str
    label: str | None
    passes: int
    entropy: float
    mutual_information: float
    classes: tuple[ClassShare, ...]
    why: str = ""


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
class FileDigest:
    """A file that was read for a subject, such as a checkpoint; ``sha256`` is that of its bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectRecord:
    """What was audited: a model, described so that the report can show it. ``sampler`` is that of its passes.

    ``sha256`` is that of the model's state, ``data_sha256`` that of the examples, in the order in which they were used.
    ``sources`` are where the parts came from, ``files`` the files that were read for them.
    ``key`` tells subjects of one name apart; it is empty where the name is enough.
    ``prediction_summary`` is None where no check looked at the predictions.
    """

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
    prediction_summary: PredictionSummary | None = None
    key: str = ""
    data_sha256: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    files: tuple[FileDigest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting, or an option of a check, that was not at its default, and where it was set.

    ``tests`` are the node ids of the tests in which alone it was so; it is empty where it was so everywhere.
    """

    name: str
    value: str
    default: str
    source: str
    tests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TestOutcome:
    """How one test of a session ended. ``reason`` is the first line of what it failed, or was skipped, with."""

    __test__ = False

    test: str
    outcome: Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed", "never run"]
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A pytest session around an audit. ``deselected`` is how many tests were left out, by ``-k`` for example.

    ``tests`` are those that ran a check, and all that did not pass.
    ``total`` counts all that were collected and not deselected.
    """

    exit_status: int
    total: int
    deselected: int = 0
    tests: tuple[TestOutcome, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRun:
    """Everything an audit, or a whole test session, found. The report is a pure function of its JSON.

    ``changed`` is what was not at its default.
    ``cut`` says in words what was left out of the audit by an option, such as ``--checks``.
    """

    checks: tuple[Evidence, ...] = ()
    subjects: tuple[SubjectRecord, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    title: str = "Bayesian conversion audit"
    changed: tuple[Change, ...] = ()
    cut: tuple[str, ...] = ()
    session: SessionRecord | None = None

    @classmethod
    def merged(cls, runs: Iterable[AuditRun], *, provenance: Mapping[str, str], title: str = "") -> AuditRun:
        """Return one run with the checks and subjects of several, in their order."""
        runs = list(runs)
        return cls(
            checks=tuple(check for run in runs for check in run.checks),
            subjects=tuple(subject for run in runs for subject in run.subjects),
            provenance=dict(provenance),
            title=title or cls().title,
            changed=tuple(dict.fromkeys(change for run in runs for change in run.changed)),
            cut=tuple(dict.fromkeys(said for run in runs for said in run.cut)),
            session=next((run.session for run in runs if run.session is not None), None),
        )

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of its checks, but for failures that tests expected; not_applicable when there is none."""
        found = {check.verdict for check in self.checks if not check.expected}
        return next((verdict for verdict in SEVERITY if verdict in found), Verdict.NOT_APPLICABLE)

    def __getitem__(self, id: str) -> Evidence:
        """Return the evidence of the check ``id``; the first one where several subjects were audited."""
        for check in self.checks:
            if check.id == id:
                return check
        raise KeyError(f"no check {id!r} ran; there are {sorted({check.id for check in self.checks})}")

    def raise_for_failures(self, *, inconclusive: Inconclusive | None = None) -> AuditRun:
        """Raise AssertionError that explains every check that fails; return self when there is none.

        Args:
            inconclusive: Whether an undecided claim counts as a failure; see `Evidence.fails`.
        """
        __tracebackhide__ = True
        bad = [check for check in self.checks if check.fails(inconclusive=inconclusive)]
        if bad:
            raise raising("\n\n".join(check.explain() for check in bad), bad)
        return self

    def to_json(self) -> str:
        """Return the run as JSON text, ending in a newline."""
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


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of an audit, made from the records themselves."""
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
