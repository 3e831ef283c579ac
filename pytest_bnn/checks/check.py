"""What all checks have in common: a claim, what it needs, and how a finding becomes recorded evidence."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, ParamSpec, TypeAlias

from pytest_bnn.errors import PytestBnnError
from pytest_bnn.libraries.posterior import KlError, PosteriorTensor
from pytest_bnn.network.calling import ForwardError
from pytest_bnn.records.evidence import Certainty, Evidence, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.records.policy import inconclusive_policy
from pytest_bnn.records.recorder import record
from pytest_bnn.sampling.threads import limited
from pytest_bnn.subject import Subject

P = ParamSpec("P")

Need: TypeAlias = Literal["teacher", "images", "loss"]


class LossError(Exception):
    """The training loss is NaN or infinite, so that nothing can be said about its gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found on one subject; with the check's claim it becomes Evidence."""

    verdict: Verdict
    headline: str
    measurements: tuple[Measurement, ...] = ()
    threshold: Threshold | None = None
    layers: tuple[LayerFinding, ...] = ()
    remedy: str = ""
    notes: tuple[str, ...] = ()
    samples: int = 0
    certainty: Certainty | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A claim about a subject, with the id that reports and options know it by.

    ``sampled`` is for claims that sampling decides: they share the run's error budget. The others are exact.
    """

    id: str
    claim: str
    needs: tuple[Need, ...] = ()
    sampled: bool = False

    def run(self, subject: Subject, find: Callable[[Subject], Finding]) -> Evidence:
        """Find out whether the claim holds, and record the evidence.

        A model whose own forward raises fails the claim; anything else that goes wrong inside the check is the
        verdict ``error``; wrong input (`PytestBnnError`) is raised.
        """
        start, asked = time.perf_counter(), subject.asked
        missing = next(filter(None, (subject.missing(need) for need in self.needs)), "")
        if missing:
            finding = not_applicable(missing)
        else:
            try:
                with limited():
                    finding = find(subject)
            except PytestBnnError:
                raise
            except ForwardError as error:
                finding = Finding(
                    verdict=Verdict.FAIL,
                    headline=f"the model's own forward raised {error}",
                    remedy="make model(images) work first; where the teacher accepts the same images, the "
                    "conversion changed a shape or a dtype",
                )
            except LossError as error:
                finding = Finding(
                    verdict=Verdict.FAIL,
                    headline=str(error),
                    remedy="look for NaN in mu, rho, the noise and the KL term (kl.present and noise.varies name the "
                    "layer), then in the loss's data term and its batch",
                )
            except KlError as error:
                finding = Finding(
                    verdict=Verdict.FAIL,
                    headline=f"the model's own kl_loss() raised {error}",
                    remedy="make get_kl_loss(model) work first; a layer whose prior and posterior differ in shape or "
                    "dtype cannot have a KL term",
                )
            except Exception as error:
                finding = Finding(
                    verdict=Verdict.ERROR,
                    headline=f"the check itself broke: {type(error).__name__}: {error}",
                    remedy="this is a defect of the check or a model beyond it; report it with the model",
                )
        evidence = Evidence(
            id=self.id,
            subject=subject.name,
            stage=subject.stage,
            verdict=finding.verdict,
            claim=self.claim,
            headline=finding.headline,
            measurements=finding.measurements,
            threshold=finding.threshold,
            layers=finding.layers,
            remedy=finding.remedy,
            notes=finding.notes + (subject.notes if "images" in self.needs else ()),
            seed=subject.seed,
            samples=finding.samples,
            seconds=round(time.perf_counter() - start, 3),
            sampler=subject.sampler if subject.asked > asked else "",
            certainty=finding.certainty,
        )
        record(evidence)
        return evidence


def accused(tensor: PosteriorTensor, finding: str) -> LayerFinding:
    """Say what is wrong with a posterior tensor, at its layer."""
    return LayerFinding(path=tensor.path, kind=type(tensor.module).__name__, ok=False, finding=finding)


def not_applicable(why: str) -> Finding:
    """Say that the claim cannot be judged here, and what it would take."""
    return Finding(verdict=Verdict.NOT_APPLICABLE, headline=why)


def asserting(measure: Callable[P, Evidence]) -> Callable[P, Evidence]:
    """Make the ``assert_*`` of a ``measure_*``: the same arguments, AssertionError when the claim fails."""

    @functools.wraps(measure)
    def check(*args: P.args, **kwargs: P.kwargs) -> Evidence:
        return measure(*args, **kwargs).raise_if_failed(inconclusive=inconclusive_policy())

    check.__name__ = check.__qualname__ = measure.__name__.replace("measure_", "assert_", 1)
    summary = (measure.__doc__ or "").replace("Measure whether", "Assert that", 1)
    check.__doc__ = f"{summary.rstrip()}\n\n    Raises AssertionError with the whole story when the claim fails.\n    "
    return check
