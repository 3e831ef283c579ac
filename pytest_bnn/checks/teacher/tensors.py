"""``teacher.tensors``: what the model keeps of its teacher without a posterior was not lost on the way."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import NOTHING_BAYESIAN, Finding, not_applicable
from pytest_bnn.checks.teacher._fit import misfits
from pytest_bnn.checks.teacher._kept import Kept, kept, restored
from pytest_bnn.data.batch import Inputs
from pytest_bnn.libraries.alignment import standing_of
from pytest_bnn.libraries.posterior import bayesian_layers, zero_sigma
from pytest_bnn.network.calling import forward
from pytest_bnn.network.comparing import difference, tolerance
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.network.wrappers import eager
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject, fitted

#: Running statistics whose divergence from the activations is above this, in nats, do not fit: at 1 nat the typical
#: channel is off by 1.4 of its standard deviations, or its variance by a factor of 4.5.
_MISFIT = 1.0

_STATISTICS = ("running_mean", "running_var")


@check(
    claim="No tensor without a posterior that the teacher has too, such as a norm's scale or running mean, is still "
    "where a constructor puts it while the teacher's is not, and running statistics fit what they normalise.",
    needs=("teacher",),
    can=("mean_mode",),
    after="mean.equals_teacher",
)
def tensors(subject: Subject) -> Finding:
    """Measure whether the tensors without a posterior are the teacher's, or were moved by training.

    A parameter or buffer of the teacher that has no posterior in the model (the scale and shift of a norm, running
    statistics, positions) and that is all 1 or all 0 there, though not in the teacher, was built and never loaded.
    With images, the teacher's values are put back, and the model at its posterior mean must come closer to its
    teacher's outputs by that: a batch norm that was folded into its convolution is as just built, and in order.
    Tensors that moved are in order, too, unless they are running statistics that do not fit the model's activations
    where the teacher's fit its own. What differs in a fresh conversion makes its outputs differ, which is the claim of
    ``mean.equals_teacher``. Exact: no randomness.

    Args:
        subject: teacher, at least; images where there are any; see `Subject`.
    """
    return _find(subject)


measure_teacher_tensors, assert_teacher_tensors = tensors.measure, tensors.assert_


def _find(subject: Subject) -> Finding:
    if not bayesian_layers(subject.model):
        return not_applicable(NOTHING_BAYESIAN)
    if subject.alignment.copies:
        places = ", ".join(called(place) for place in subject.alignment.copies)
        return not_applicable(
            f"the teacher's layers lie in several places of the model: {places}; audit one of these modules by itself"
        )
    pairs = kept(subject)
    lost = [one for one in pairs if one.start is not None]
    moved = [one for one in pairs if one.start is None and not torch.equal(one.now, one.before)]
    counts = (
        Measurement(name="tensors compared", value=len(pairs)),
        Measurement(name="at a constructor's start", value=len(lost)),
        Measurement(name="moved", value=len(moved)),
    )
    statistics = [one for one in moved if one.name in _STATISTICS and _is_in_use(one.module)]
    if (lost or moved) and (why := _premise_lost(subject, statistics)):
        abstained = not_applicable(why)
        return Finding(verdict=abstained.verdict, headline=abstained.headline, measurements=counts)
    notes: list[str] = []
    lost = _confirmed(subject, lost, notes)
    unfit = [] if lost else _unfit(subject, statistics, notes)
    if undecided := [one for one in lost if subject.images is None and _may_be_folded(one, lost)]:
        lost = [one for one in lost if one not in undecided]
        if not lost:
            abstained = not_applicable(
                f"{called(undecided[0].path)} is as a constructor leaves it: its statistics were lost, or it was "
                "folded into the layer before it, which images would tell: --data MODULE:FACTORY, or images= in Python"
            )
            return Finding(verdict=abstained.verdict, headline=abstained.headline, measurements=counts)
    layers = (*_layers(lost), *unfit)
    headline = f"{len(pairs)} tensors without a posterior: {len(pairs) - len(moved)} are the teacher's"
    if not pairs:
        headline = "the model has no tensor without a posterior that the teacher has too: none was lost"
    headline += f", {len(moved)} have moved" if moved else ""
    if layers:
        headline = f"{called(layers[0].path)} ({layers[0].kind}) {layers[0].finding}"
    return Finding(
        verdict=Verdict.FAIL if layers else Verdict.PASS,
        headline=headline,
        measurements=counts,
        threshold=Threshold(quantity="modules that lost the teacher's", observed=len(layers), relation="==", allowed=0),
        layers=layers,
        remedy=(_LOAD if lost else _ESTIMATE) if layers else "",
        notes=tuple(notes),
    )


_LOAD = (
    "load them: load_state_dict(..., strict=True) says which keys did not match; or copy them from the teacher, module "
    "by module, with load_state_dict(teacher_module.state_dict())"
)
_ESTIMATE = (
    "load the teacher's running statistics, or estimate them anew by passes in train mode over the training data that "
    "change nothing else"
)


def _premise_lost(subject: Subject, statistics: list[Kept]) -> str:
    """Say why what differs from the teacher is no fault of its own; empty where it may be one.

    Statistics that alone keep a fresh conversion from being its teacher are no fault to ``mean.equals_teacher``: they
    may have been estimated anew.
    """
    if subject.stage == "converted" and subject.images is not None:
        if statistics and not subject.standing.told and _is_the_teacher(subject, statistics):
            return ""
        return (
            "no training step was taken, so any tensor that is not the teacher's makes the outputs differ: see "
            "mean.equals_teacher"
        )
    if subject.stage == "unrelated" or standing_of(subject.alignment).stage == "unrelated":
        return "the model's weights do not come from this teacher, so its other tensors need not either"
    return ""


def _may_be_folded(one: Kept, lost: list[Kept]) -> bool:
    """Return whether a batch norm does nothing at all, as one whose scale and shift went into the layer before it."""
    own = {other.name for other in lost if other.module is one.module}
    return set(_STATISTICS) <= own


def _outputs(subject: Subject, put_back: list[Kept]) -> Tensor:
    with eager(), undisturbed(subject.model, seed=subject.seed), zero_sigma(subject.model), restored(put_back):
        return forward(subject.model, subject.require_images())


def _is_the_teacher(subject: Subject, put_back: list[Kept]) -> bool:
    expected, outputs = subject.teacher_output(), _outputs(subject, put_back)
    return 0 <= difference(expected, outputs) <= tolerance(expected, outputs)


def _distance(subject: Subject, put_back: list[Kept]) -> float | None:
    """Return how far the model at its mean is from its teacher's outputs; None where they have other shapes."""
    expected, outputs = subject.teacher_output(), _outputs(subject, put_back)
    if outputs.shape != expected.shape:
        return None
    usable = torch.isfinite(outputs) & torch.isfinite(expected)
    return float((outputs.double() - expected.double())[usable].norm())


def _confirmed(subject: Subject, lost: list[Kept], notes: list[str]) -> list[Kept]:
    """Return those that the model misses: with the teacher's values it comes closer to the teacher's outputs."""
    if not lost or subject.images is None:
        return [one for one in lost if one.now.numel() > 1]
    now = _distance(subject, [])
    if now is None:
        return [one for one in lost if one.now.numel() > 1]

    def missed(some: list[Kept]) -> bool:
        found = _distance(subject, some)
        return found is not None and found < now

    if missed(lost):
        return lost
    found = [part for part in _by_module(lost) if missed(part)]
    notes += [
        f"{called(part[0].path)} is as a constructor leaves it, and in order: with the teacher's values the model is "
        "no closer to its teacher, as where a norm was folded into the layer before it"
        for part in _by_module(lost)
        if part not in found
    ]
    return [one for part in found for one in part]


def _by_module(some: list[Kept]) -> list[list[Kept]]:
    found: dict[str, list[Kept]] = defaultdict(list)
    for one in some:
        found[one.path].append(one)
    return list(found.values())


def _layers(lost: list[Kept]) -> tuple[LayerFinding, ...]:
    found = []
    for part in _by_module(lost):
        said = " and ".join(f"{one.name} all {one.start}" for one in part)
        found.append(
            LayerFinding(
                path=part[0].path,
                kind=type(part[0].module).__name__,
                ok=False,
                finding=f"has {said}, as just built; the teacher's are not, so they were never loaded",
            )
        )
    return tuple(found)


def _unfit(subject: Subject, statistics: list[Kept], notes: list[str]) -> list[LayerFinding]:
    """Return the batch norms whose statistics fit no activations any more, where the teacher's fit its own."""
    assert subject.teacher is not None
    if not statistics or subject.images is None:
        return []
    images = subject.require_images()
    originals = subject.alignment.teacher_paths()
    paths = [p for p in dict.fromkeys(one.path for one in statistics) if p in originals]
    theirs = misfits(
        subject.teacher, fitted(images, subject.teacher), [originals[p] for p in paths], seed=subject.seed, mean=False
    )
    own_fit = _misfits(subject, images, paths)
    with restored(statistics):  # where these do not fit either, it is the activations that moved
        put_back = _misfits(subject, images, paths)
    found = []
    for path, own in own_fit.items():
        reference = theirs.get(originals[path], own)
        if own > _MISFIT and reference < _MISFIT / 10 and put_back.get(path, own) < own / 2:
            kind = type(subject.model.get_submodule(path)).__name__
            said = (
                f"has running statistics that do not fit its input: {own:.3g} nats apart for the typical channel, "
                f"{reference:.2g} in the teacher"
            )
            found.append(LayerFinding(path=path, kind=kind, ok=False, finding=said))
    before, after = _distance(subject, []), _distance(subject, statistics)
    if found and (before is None or after is None or after >= before):
        notes.append(
            f"{called(found[0].path)} {found[0].finding}; but with the teacher's the outputs are no closer to its own"
        )
        return []
    return found


def _misfits(subject: Subject, images: Inputs, paths: list[str]) -> dict[str, float]:
    """Return the misfits of the model's norms, at its mean or in a noisy pass, whichever is smaller."""
    runs = [misfits(subject.model, images, paths, seed=subject.seed, mean=mean) for mean in (True, False)]
    return {path: min(run[path] for run in runs if path in run) for path in paths if any(path in run for run in runs)}


def _is_in_use(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training
