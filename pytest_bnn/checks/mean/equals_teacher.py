"""``mean.equals_teacher``: at its posterior mean, a fresh conversion is its teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_bnn.checks.check import Finding, accused, check, not_applicable
from pytest_bnn.libraries.posterior import bayesian_layers, zero_sigma
from pytest_bnn.network.comparing import TRACED_IMAGES, Parting, difference, first_parting, tolerance, traced
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.sampling.bank import ForwardError, forward
from pytest_bnn.subject import Subject, cosine, fitted, weight_pairs


@check(
    claim="With every sigma at 0 the Bayesian network gives its teacher's outputs, to float tolerance.",
    needs=("teacher", "images"),
    after="memory.separate",
)
def equals_teacher(subject: Subject) -> Finding:
    """Measure whether the network at its posterior mean is its teacher.

    With every rho at minus infinity, sigma is exactly 0 and the weights are mu. The outputs must then agree to
    ten times torch.testing's relative tolerance for the dtype, relative to the teacher's largest output. Where
    they do not, the first module whose output differs is named. Not applicable to fine-tuned models, whose mu has
    moved; fails for models whose mu has nothing to do with the teacher's weights. Exact: no randomness.

    Args:
        subject: teacher and images, at least; see `Subject`.
    """
    return _find(subject)


measure_mean_equals_teacher, assert_mean_equals_teacher = equals_teacher.measure, equals_teacher.assert_


def _find(subject: Subject) -> Finding:
    assert subject.teacher is not None
    cosines = [(tensor, cosine(tensor, weight)) for tensor, weight in weight_pairs(subject.model, subject.teacher)]
    lowest = min(cosines, key=lambda pair: pair[1], default=None)
    aligned = () if lowest is None else (
        Measurement(name="lowest cosine of mu to the teacher", value=lowest[1], note=lowest[0].name),
    )  # fmt: skip
    if subject.stage == "finetuned":
        finding = not_applicable(
            "the model was fine-tuned, so its mu has moved away from the teacher's weights on purpose"
        )
        return Finding(verdict=finding.verdict, headline=finding.headline, measurements=aligned)
    if subject.stage == "unrelated":
        return _unrelated(subject, aligned)
    expected = subject.teacher_output()
    images = subject.require_images()
    with undisturbed(subject.model, seed=subject.seed), zero_sigma(subject.model):
        try:
            outputs = forward(subject.model, images)
        except ForwardError as error:
            return _raised(error)
    apart = difference(expected, outputs)
    allowed = tolerance(expected, outputs)
    ok = 0 <= apart <= allowed
    notes = [] if bayesian_layers(subject.model) else ["the model has no Bayesian layer, so this compares two networks"]
    if outputs.dtype != expected.dtype:
        notes.append(
            f"the outputs are {outputs.dtype}, the teacher's {expected.dtype}: the conversion changed the dtype"
        )
    where = None if ok else _parting(subject, images)
    if where is not None:
        notes.append(f"the first module whose output differs is {where}")
    if apart < 0:
        headline = f"the outputs have the shape {list(outputs.shape)} instead of {list(expected.shape)}"
    elif apart == 0:
        headline = f"equal to the last bit on {len(images)} images"
    else:
        headline = f"outputs differ by up to {apart:.3g} of the teacher's largest output on {len(images)} images"
    if where is not None:
        headline += f"; first at {where.path or 'the model itself'}"
    return Finding(
        verdict=Verdict.PASS if ok else Verdict.FAIL,
        headline=headline,
        measurements=(
            Measurement(name="largest difference", value=apart, unit="of the teacher's largest output"),
            Measurement(name="teacher's largest output", value=float(expected.abs().max())),
            *aligned,
        ),
        threshold=Threshold(quantity="largest relative difference", observed=apart, relation="<=", allowed=allowed),
        layers=() if where is None else (LayerFinding(path=where.path, kind=where.kind, ok=False, finding=str(where)),),
        remedy=""
        if ok
        else "look at that module: the conversion lost a setting (padding mode, output padding, stride), "
        "replaced a class that is not torch's, mixed up weights, or BatchNorm's statistics changed",
        notes=tuple(notes),
    )


def _unrelated(subject: Subject, aligned: tuple[Measurement, ...]) -> Finding:
    return Finding(
        verdict=Verdict.FAIL,
        headline="the teacher's weights are not in this model",
        measurements=aligned,
        layers=tuple(
            accused(tensor, f"cosine of mu to the teacher's weight {cosine(tensor, weight):.3f}")
            for tensor, weight in weight_pairs(subject.model, subject.teacher)
        ),
        remedy="convert with moped_enable=True so that mu starts at the teacher's weights, and load checkpoints with "
        "strict=True: a deterministic state_dict has other names than a Bayesian one",
    )


def _raised(error: ForwardError) -> Finding:
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"the model raised where its teacher does not: {error}",
        remedy="the conversion changed a shape or dtype on the way: look for a lost output_padding, padding mode, "
        "or a float64 network whose layers became float32",
    )


def _parting(subject: Subject, images: Tensor) -> Parting | None:
    assert subject.teacher is not None
    few = images[:TRACED_IMAGES]
    with torch.no_grad():
        with undisturbed(subject.teacher, seed=subject.seed), traced(subject.teacher) as expected:
            forward(subject.teacher, fitted(few, subject.teacher))
        with undisturbed(subject.model, seed=subject.seed), zero_sigma(subject.model), traced(subject.model) as found:
            forward(subject.model, few)
    return first_parting(expected, found)
