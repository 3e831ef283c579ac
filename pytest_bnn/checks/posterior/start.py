"""``posterior.start``: what the model is, by its numbers: a fresh conversion, fine-tuned, never trained, not loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import NOTHING_BAYESIAN, Finding, at_fault, not_applicable
from pytest_bnn.checks.posterior._declared import contradiction
from pytest_bnn.checks.posterior._inner import inner
from pytest_bnn.checks.posterior._story import count, share, told
from pytest_bnn.checks.values import Reasons
from pytest_bnn.libraries.history import Trace, displaced, left_at_the_start, never_trained
from pytest_bnn.libraries.registry import nobody_knows
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import Acceptance, LayerFinding, Measurement, Verdict
from pytest_bnn.subject import Subject


@check(
    claim="All layers share one history, the one that was declared: none was left at its random start, no sigma lies "
    "apart from its mu, and sigma was trained where mu was.",
    can=("mean_field",),
    after="memory.separate",
)
def start(subject: Subject, *, allow: Reasons | None = None) -> Finding:
    """Measure whether the numbers of a model tell one history, and the declared one.

    A fresh conversion has a sigma that is one share of abs(mu) at every place, to rounding; a step of training ends
    that. A layer that was never loaded has mu and rho as the library's constructor draws them, and nothing of the
    teacher's weight. With a teacher it is seen, too, that mu moved and rho did not. Needs nothing but the model; no
    pass is run, and nothing is drawn.

    Args:
        subject: teacher and stage, where there are any; see `Subject`.
        allow: Layers that were left at their start, or whose sigma was, on purpose: a pattern for the path (as in
            fnmatch) to the reason, which the report shows.
    """
    return _find(subject, dict(allow or {}))


measure_posterior_start, assert_posterior_start = start.measure, start.assert_


def _find(subject: Subject, allow: Mapping[str, str]) -> Finding:
    found = subject.traces
    if unknown := nobody_knows(subject.model):  # the claim is about all layers
        return not_applicable(unknown)
    if not found:
        return not_applicable(NOTHING_BAYESIAN)
    excused = {trace.tensor.path: p for p in allow for trace in found if fnmatchcase(trace.tensor.path, p)}
    judged = [trace for trace in found if trace.tensor.path not in excused]
    judges: tuple[Callable[[Subject, Sequence[Trace]], Finding | None], ...] = (_apart, _left, contradiction, _kept)
    finding = next((one for judge in judges if (one := judge(subject, judged))), None) or told(subject, found)
    notes = [f"{called(path)} is left out on purpose: {allow[pattern]}" for path, pattern in excused.items()]
    notes += [f"the pattern {p!r} in allow matches no Bayesian layer" for p in allow if p not in excused.values()]
    accepted = {path: sum(t.tensor.count for t in found if t.tensor.path == path) for path in excused}
    return replace(
        finding,
        measurements=_measurements(found),
        notes=(*finding.notes, *dict.fromkeys(notes)),
        accepted=tuple(
            Acceptance(path=path, reason=allow[excused[path]], weights=weights) for path, weights in accepted.items()
        ),
    )


def _measurements(found: Sequence[Trace]) -> tuple[Measurement, ...]:
    weights = [trace for trace in found if trace.tensor.role == "weight"]
    unit = f"of {len(weights)} weight tensors"
    numbers = {
        "as a conversion leaves them": sum(trace.untouched for trace in weights),
        "mu equal to the teacher's to the bit": sum(trace.print.equal for trace in weights),
        "mu away from the teacher's": sum(trace.moved for trace in weights),
        "at the library's random start": sum(trace.print.random_start for trace in weights),
    }
    return tuple(Measurement(name=name, value=number, unit=unit) for name, number in numbers.items())


def _apart(_subject: Subject, found: Sequence[Trace]) -> Finding | None:
    """Find each sigma that a conversion made for other places than those where it lies."""
    apart = [one for one in displaced(found) if not one.of_mu]
    if not apart:
        return None
    layers = []
    for one in apart:
        ratio = f"{one.delta:.4g} times abs(mu)"
        where = "of this tensor, at other places" if one.donor is one.trace else f"of `{one.donor.tensor.name}`"
        layers.append(at_fault(one.trace.tensor, f"the sigma of `{one.trace.tensor.name}` is {ratio} {where}"))
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"sigma lies apart from its mu in {count(apart, 'tensor')}: {layers[0].finding}",
        layers=tuple(layers),
        remedy="convert again, or load mu and rho from one checkpoint; look for what moves channels or layers (a "
        "permutation, a transposition, a swap of keys) and was applied to the one and not to the other",
    )


def _left(subject: Subject, found: Sequence[Trace]) -> Finding | None:
    """Find each layer at the library's random start beside others that have the teacher's weights.

    It fails where the layer feeds one of the others, so that no new head explains it, and where training shows.
    """
    left = left_at_the_start(found)
    if not left:
        return None
    paired = [t for t in found if t.tensor.role == "weight" and t.weight is not None and t not in left]
    others = {trace.tensor.path for trace in paired}
    # Before any training a new layer may be meant; what the outputs are then is for mean.equals_teacher.
    trained = subject.shown.stage != "converted" or subject.stage == "finetuned"
    inside = inner(subject, left, others) if trained else ()
    first = (inside or left)[0].tensor
    return Finding(
        verdict=Verdict.FAIL if inside else Verdict.WARN,
        headline=f"`{first.name}` is at the library's random start, with nothing of the teacher's weight"
        + (f", and so {'is' if len(left) == 2 else 'are'} {count(left[1:], 'more tensor')}" if len(left) > 1 else "")
        + f", beside {count(paired, 'weight tensor')} that carry the teacher: "
        + ("it was never loaded or never trained" if inside else "never loaded, or a new layer with little training"),
        layers=tuple(
            at_fault(
                trace.tensor,
                f"its mu and rho are distributed as the constructor draws them; the cosine of mu to the teacher's "
                f"weight is {trace.print.cosine:.3f}",
            )
            for trace in left
        ),
        remedy="load the checkpoint with strict=True, and look for keys that another name of this layer left out; "
        f"where it was made anew on purpose, say so with --set posterior.start.allow='{first.path}=REASON'",
    )


def _kept(subject: Subject, found: Sequence[Trace]) -> Finding | None:
    """Find the tensors whose mu was trained and whose sigma is where the conversion put it."""
    if subject.stage == "converted" or subject.shown.stage == "converted":
        return None
    kept = [trace for trace in found if never_trained(trace) and trace.tensor.rho_parameter.requires_grad]
    if not any(trace.tensor.role == "weight" for trace in kept):
        return None
    moved = [trace for trace in found if trace.moved]
    return Finding(
        verdict=Verdict.WARN,
        headline=f"rho was never trained in {len(kept)} of the {count(moved, 'tensor')} whose mu moved: sigma is still "
        f"{share(kept, of_teacher=True)} times abs(teacher's weight) at every place",
        layers=tuple(
            LayerFinding(
                path=trace.tensor.path,
                kind=type(trace.tensor.module).__name__,
                ok=False,
                finding=f"the mu of `{trace.tensor.name}` moved (cosine to the teacher's {trace.print.cosine:.4f}), "
                f"and its sigma is {share([trace], of_teacher=True)} times abs(teacher's weight) everywhere",
            )
            for trace in kept
        ),
        remedy="give the optimizer every parameter: a filter on names such as 'mu' leaves rho out, and steps of plain "
        "SGD can be smaller than the rounding of rho; where sigma is kept on purpose, say so with "
        f"--set posterior.start.allow='{kept[0].tensor.path}=REASON'",
    )
