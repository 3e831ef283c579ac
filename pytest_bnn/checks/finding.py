"""What a check found on a subject, before it becomes evidence."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from pytest_bnn.records.charts import Chart
from pytest_bnn.records.evidence import Acceptance, Certainty, LayerFinding, Measurement, Threshold, Verdict

if TYPE_CHECKING:
    from pytest_bnn.libraries.gaussian import PosteriorTensor


class LossError(Exception):
    """The training loss is NaN or infinite, so that nothing can be said about its gradient.

    Args:
        problem: What is wrong, in words.
        value: What the loss is.
    """

    def __init__(self, problem: str, value: float = math.nan) -> None:
        super().__init__(problem)
        self.value = value


class NotHereError(Exception):
    """Why a claim cannot be judged here, and what it would take: the verdict is ``not_applicable``.

    Args:
        why: The headline.
        missing: What was not given and would let it be judged, as in `not_applicable`.
    """

    def __init__(self, why: object, missing: tuple[str, ...] = ()) -> None:
        super().__init__(why)
        self.missing = missing


class NeverHereError(NotHereError):
    """Why a claim cannot be judged here, however many more examples there are."""


class NoCutError(Exception):
    """The training loss works, and not where the drawn weights are cut off, so that a claim is not applicable."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found on one subject; with the check's claim it becomes Evidence.

    ``spared`` says that it would accuse, and is left open: see `of_the_first`.
    """

    verdict: Verdict
    headline: str
    measurements: tuple[Measurement, ...] = ()
    threshold: Threshold | None = None
    layers: tuple[LayerFinding, ...] = ()
    remedy: str = ""
    notes: tuple[str, ...] = ()
    samples: int = 0
    certainty: Certainty | None = None
    charts: tuple[Chart, ...] = ()
    accepted: tuple[Acceptance, ...] = ()
    missing: tuple[str, ...] = ()
    explained_by: str = ""
    spared: bool = False


def at_fault(tensor: PosteriorTensor, finding: str) -> LayerFinding:
    """Return the finding about a layer with a faulty posterior tensor."""
    return LayerFinding(path=tensor.path, kind=type(tensor.module).__name__, ok=False, finding=finding)


#: Measurements by which failures of one cause are told (`pytest_bnn.audit.causes`): what was seen, not what it did.
BAYESIAN_LAYERS = "Bayesian layers"
TENSORS_NOT_FINITE = "tensors with NaN or infinity"
TENSORS_WITHOUT_KL = "tensors without a finite KL"
RAISED = "raised"
TRAINING_LOSS = "training loss"


#: Why a claim about posteriors does not hold of a model, and what would make it one that it is about.
NOTHING_BAYESIAN = (
    "the model has no Bayesian layer, and the claim is about posteriors: give the converted model, as "
    "pytest_bnn.convert or bayesian-torch's dnn_to_bnn make it"
)


def not_applicable(why: str, missing: tuple[str, ...] = ()) -> Finding:
    """Say that the claim cannot be judged here, and what it would take.

    Args:
        why: The headline.
        missing: What was not given and would let it be judged, as in a check's ``needs``.
    """
    return Finding(verdict=Verdict.NOT_APPLICABLE, headline=why, missing=missing)


def of_the_first(finding: Finding, source: str, fix: str) -> Finding:
    """Return a finding about the first examples of a stream, which may be sorted: what fails on them is left open.

    Args:
        finding: What they say.
        source: How messages call the stream.
        fix: What to give in its place.
    """
    if finding.verdict in (Verdict.NOT_APPLICABLE, Verdict.ERROR):
        return finding
    if finding.verdict not in (Verdict.FAIL, Verdict.WARN):
        note = f"judged on the first examples of {source}, which goes on behind them and may be sorted"
        return dataclasses.replace(finding, notes=(*finding.notes, note))
    said = finding.headline[:1].upper() + finding.headline[1:]
    return dataclasses.replace(
        finding,
        verdict=Verdict.INCONCLUSIVE,
        headline=f"the first examples of {source}, which goes on behind them and may be sorted, do not decide the "
        "claim, which fails on them",
        remedy=fix,
        notes=(said, *finding.notes),
        spared=True,
    )


#: What to do about a call that ends the process.
NO_EXIT = "remove the call that ends the process, such as sys.exit(), from the model, the loss and the data"


def raised_remedy(error: BaseException, otherwise: str) -> str:
    """Say what to do about a forward that raised: an exit is no misfit, and nothing else shows its cause.

    Args:
        error: What came out of the forward, with its cause.
        otherwise: What to do where it was no exit.
    """
    return NO_EXIT if isinstance(error.__cause__, SystemExit) else otherwise
