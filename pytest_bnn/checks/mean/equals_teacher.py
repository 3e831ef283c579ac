"""``mean.equals_teacher``: at its posterior mean, a fresh conversion is its teacher."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import RAISED, Finding, at_fault, not_applicable, raised_remedy
from pytest_bnn.checks.mean._cause import Cause, cause_of, restored_statistics
from pytest_bnn.checks.mean._weights import hidden, other_weights
from pytest_bnn.data.batch import Inputs
from pytest_bnn.libraries.fingerprint import cosine, equal_values, fingerprint
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers, zero_sigma
from pytest_bnn.libraries.registry import nobody_knows
from pytest_bnn.network.calling import ForwardError, forward
from pytest_bnn.network.comparing import TRACED_IMAGES, Parting, difference, first_parting, tolerance, traced
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.network.wrappers import eager
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject, fitted


@check(
    claim="With every sigma at 0 the Bayesian network gives its teacher's outputs, to float tolerance.",
    needs=("teacher", "images"),
    can=("mean_mode",),
    after="posterior.start",
)
def equals_teacher(subject: Subject) -> Finding:
    """Measure whether the network at its posterior mean is its teacher.

    With every rho at minus infinity, sigma is exactly 0 and the weights are mu. The outputs must then agree to
    ten times torch.testing's relative tolerance for the dtype, relative to the teacher's largest output. Where
    they do not, the first module whose output differs is named. Where they do, the weights are compared as well, to
    the rounding of their own dtype: outputs in half precision hide a layer that is a tenth off. Not applicable to
    fine-tuned models, whose mu has moved, and where nothing shows whether the model was trained; fails for models
    whose mu has nothing to do with the teacher's weights. Exact: no randomness.

    Args:
        subject: teacher and images, at least; see `Subject`.
    """
    return _find(subject)


measure_mean_equals_teacher, assert_mean_equals_teacher = equals_teacher.measure, equals_teacher.assert_


def _find(subject: Subject) -> Finding:
    assert subject.teacher is not None
    standing = subject.standing
    cosines = [(tensor, cosine(tensor, weight)) for tensor, weight in subject.alignment.pairs]
    lowest = min(cosines, key=lambda pair: pair[1], default=None)
    aligned = () if lowest is None else (
        Measurement(name="lowest cosine of mu to the teacher", value=lowest[1], note=lowest[0].name),
    )  # fmt: skip
    if standing.stage == "finetuned":
        why = "as the given stage says" if standing.told else standing.why
        return _abstained(
            f"the model was fine-tuned, so it differs from its teacher on purpose: {why}; --stage converted holds it "
            "to the claim all the same",
            aligned,
        )
    if standing.stage == "unrelated":
        return _unrelated(standing.why, cosines, aligned)
    expected = subject.teacher_output()
    images = subject.require_images()
    try:
        outputs = _at_its_mean(subject, images)
    except ForwardError as error:
        return _raised(error) if _was_converted(subject) else _abstained(_UNKNOWN.format(standing.why), aligned)
    apart = difference(expected, outputs)
    allowed = tolerance(expected, outputs)
    ok = 0 <= apart <= allowed
    if not ok and (why := nobody_knows(subject.model)):
        return not_applicable(why)
    if not ok and not _was_converted(subject):
        return _abstained(_UNKNOWN.format(standing.why), aligned)
    if not ok and (why := _varying(subject, expected, allowed)):
        return _abstained(why, aligned)
    if (
        ok
        and standing.stage == "converted"
        and (other := other_weights(subject.teacher, subject.model, subject.alignment))
    ):
        return hidden(subject, other, apart, allowed, aligned)
    where = None if ok else _parting(subject)
    if where is not None and not standing.told and (norms := _estimated_anew(subject, expected, allowed)):
        return _abstained(
            f"nothing but the statistics of {len(norms)} normalisation layers differs ({norms[0]} first): "
            "they were estimated anew, on purpose or by passes in train mode; --stage converted holds the model to the "
            "claim all the same",
            aligned,
        )
    if where is not None and not standing.told and (moved := _trained_without_its_weights(subject)):
        return _abstained(
            f"every weight's mu is the teacher's, but sigma is no longer where a conversion puts it, and the bias of "
            f"{moved} has moved: it was trained; --stage converted holds the model to the claim all the same",
            aligned,
        )
    notes = [] if bayesian_layers(subject.model) else ["the model has no Bayesian layer, so this compares two networks"]
    if outputs.dtype != expected.dtype:
        notes.append(
            f"the outputs are {outputs.dtype}, the teacher's {expected.dtype}: the conversion changed the dtype"
        )
    cause = None if where is None else cause_of(where, subject.teacher, subject.model, subject.alignment)
    finite = bool(torch.isfinite(outputs).all())
    if where is not None and finite and not 0 <= difference(outputs, _at_its_mean(subject, images, seed=1)) <= allowed:
        cause = Cause(
            "the outputs vary from pass to pass with every sigma at 0",
            "find the noise that is not the posterior's first: see noise.source",
        )
    if where is not None:
        notes.append(f"the first module whose output differs is {where}")
    if subject.alignment.prefix:
        notes.append(f"the teacher's layers are at {subject.alignment.prefix} in the model")
    if apart < 0:
        headline = f"the outputs have the shape {list(outputs.shape)} instead of {list(expected.shape)}"
    elif apart == 0:
        headline = f"the outputs are the teacher's to the last bit on {len(images)} images"
    else:
        headline = (
            f"the outputs differ from the teacher's by up to {apart:.3g} of its largest (at most {allowed:.2g} is "
            f"allowed, {len(images)} images)"
        )
    if where is not None:
        headline += f"; first at {called(where.path)}"
    return Finding(
        verdict=Verdict.PASS if ok else Verdict.FAIL,
        headline=headline,
        measurements=(
            Measurement(name="largest difference", value=apart, unit="of the teacher's largest output"),
            Measurement(name="teacher's largest output", value=float(expected.abs().max())),
            *aligned,
        ),
        threshold=Threshold(quantity="largest relative difference", observed=apart, relation="<=", allowed=allowed),
        layers=() if where is None else (_layer(where, cause),),
        remedy="" if ok else _remedy(cause, subject.teacher),
        notes=tuple(notes),
    )


_UNKNOWN = (
    "nothing shows whether the model was trained after its conversion: {}; say so with --stage converted, which holds "
    "it to the claim, or --stage finetuned (stage= in Python)"
)


def _was_converted(subject: Subject) -> bool:
    """Return whether it is known that the model should be its teacher; without a Bayesian layer nothing was trained."""
    return subject.stage == "converted" or not bayesian_layers(subject.model)


def _abstained(why: str, measurements: tuple[Measurement, ...]) -> Finding:
    finding = not_applicable(why)
    return Finding(verdict=finding.verdict, headline=finding.headline, measurements=measurements)


def _layer(where: Parting, cause: Cause | None) -> LayerFinding:
    said = str(where) if cause is None or not cause.found else f"{where}: {cause.found}"
    return LayerFinding(path=where.path, kind=where.kind, ok=False, finding=said)


def _remedy(cause: Cause | None, teacher: nn.Module) -> str:
    if cause is not None:
        return cause.remedy
    if isinstance(teacher, torch.jit.ScriptModule):
        return (
            "give the Python network that the teacher was made from, to have the module named that differs: modules "
            "inside TorchScript cannot be compared one by one"
        )
    return (
        "no single module differs on the images that were compared one by one: compare how the two networks put their "
        "outputs together"
    )


def _at_its_mean(subject: Subject, images: Inputs, *, seed: int = 0) -> Tensor:
    with eager(), undisturbed(subject.model, seed=subject.seed + seed), zero_sigma(subject.model):
        return forward(subject.model, images)


def _varying(subject: Subject, expected: Tensor, allowed: float) -> str:
    """Say why there is no one output of the teacher's to equal; empty where it gives the same from another seed."""
    assert subject.teacher is not None
    images = subject.require_images()
    with eager(), undisturbed(subject.teacher, seed=subject.seed + 1):
        if not 0 <= difference(expected, forward(subject.teacher, fitted(images, subject.teacher))) <= allowed:
            return (
                "the teacher itself gives other outputs in each pass, also in eval mode: there is no one output to "
                "equal; give one that draws nothing, such as a network that returns the mean of what it samples"
            )
    return ""


def _trained_without_its_weights(subject: Subject) -> str:
    """Return the first layer whose bias has moved, where every sigma has too, though no weight's mu; else nothing."""
    assert subject.teacher is not None
    alignment = subject.alignment
    prints = [fingerprint(tensor, weight) for tensor, weight in alignment.pairs]
    if not prints or any(not p.equal or p.fresh or p.untrained_sigma for p in prints):
        return ""
    teacher_paths, modules = alignment.teacher_paths(), dict(subject.teacher.named_modules())
    for layer in bayesian_layers(subject.model):
        bias = getattr(modules.get(teacher_paths.get(layer.path, "")), "bias", None)
        for tensor in layer.tensors:
            if tensor.role != "bias" or not isinstance(bias, Tensor) or bias.shape != tensor.mu.shape:
                continue
            if not equal_values(tensor.mu.detach(), bias.detach().to(tensor.mu.device)):
                return called(layer.path)
    return ""


def _estimated_anew(subject: Subject, expected: Tensor, allowed: float) -> tuple[str, ...]:
    """Return the layers whose running statistics alone keep the model from being its teacher; none where more does."""
    assert subject.teacher is not None
    with (
        eager(),
        undisturbed(subject.model, seed=subject.seed),
        zero_sigma(subject.model),
        restored_statistics(subject.teacher, subject.model, subject.alignment) as norms,
    ):
        if not norms:
            return ()
        try:
            outputs = forward(subject.model, subject.require_images())
        except ForwardError:
            return ()
    return norms if 0 <= difference(expected, outputs) <= allowed else ()


def _unrelated(why: str, cosines: list[tuple[PosteriorTensor, float]], aligned: tuple[Measurement, ...]) -> Finding:
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"the teacher's weights are not in this model: {why}",
        measurements=aligned,
        layers=tuple(
            at_fault(
                tensor, f"the cosine of its mu to the teacher's weight is {found:.3f}, as between unrelated weights"
            )
            for tensor, found in cosines
        ),
        remedy="convert with moped_enable=True so that mu starts at the teacher's weights, and load checkpoints with "
        "strict=True: a deterministic state_dict has other names than a Bayesian one; for a network that was trained "
        "from scratch beside this teacher say --stage finetuned",
    )


def _raised(error: ForwardError) -> Finding:
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"the model raised where its teacher does not: {error}",
        measurements=(Measurement(name=RAISED, value=str(error)),),
        remedy=raised_remedy(
            error,
            "call the model on these images by itself; where a shape or a dtype does not fit, look for what the "
            "conversion changed: a lost output_padding or padding mode, or a float64 network with float32 layers",
        ),
    )


def _parting(subject: Subject) -> Parting | None:
    assert subject.teacher is not None
    few = subject.require_images()[:TRACED_IMAGES]
    with torch.no_grad(), eager():
        with undisturbed(subject.teacher, seed=subject.seed), traced(subject.teacher) as expected:
            forward(subject.teacher, fitted(few, subject.teacher))
        with undisturbed(subject.model, seed=subject.seed), zero_sigma(subject.model), traced(subject.model) as found:
            forward(subject.model, few)
    paths = subject.alignment.paths
    return first_parting([replace(call, path=paths[call.path]) for call in expected if call.path in paths], found)
