"""Whether a model's numbers contradict the stage that was declared."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_bnn.checks.finding import Finding, at_fault
from pytest_bnn.checks.posterior._story import count, fresh, is_untrained
from pytest_bnn.libraries.history import Trace, barely_moved, carries_the_teacher, moved_beside
from pytest_bnn.records.evidence import Threshold, Verdict
from pytest_bnn.subject import Subject

_LOAD = (
    "load the checkpoint into this model with strict=True, and compare the names of its keys: a prefix such as "
    "'module.', of DataParallel, makes strict=False load nothing; where nothing was trained, leave --stage away"
)


def contradiction(subject: Subject, found: Sequence[Trace]) -> Finding | None:
    """Say where the declared stage cannot be true; None where it can, or where none was declared."""
    if not subject.standing.told:
        return None
    weights = [trace for trace in found if trace.tensor.role == "weight"]
    return _not_trained(subject, found, weights) if subject.stage == "finetuned" else _trained(weights)


def _not_trained(subject: Subject, found: Sequence[Trace], weights: Sequence[Trace]) -> Finding | None:
    telling = [trace for trace in found if trace.tells]
    if not any(trace.tensor.role == "weight" for trace in telling):
        return None
    at_start = [trace for trace in telling if trace.untouched or trace.print.random_start]
    if len(at_start) < len(telling) or any(map(barely_moved, weights)):
        return None
    untrained = is_untrained(weights)
    story = "every weight tensor is at the library's random start" if untrained else fresh(weights)
    beside = moved_beside(subject.model, subject.teacher, subject.alignment)
    finding = Finding(
        verdict=Verdict.FAIL,
        headline=f"the stage was declared finetuned, but the model is {story}"
        if not untrained
        else f"the stage was declared finetuned, but {story}: nothing was loaded, or nothing was trained",
        threshold=Threshold(
            quantity="tensors that show a step of training",
            observed=len(telling) - len(at_start),
            relation=">=",
            allowed=1,
        ),
        layers=tuple(at_fault(trace.tensor, f"`{trace.tensor.name}` shows no step of training") for trace in weights),
        remedy=_LOAD,
    )
    if not beside:
        return finding
    others = f"{beside[0]}" + (f" and {len(beside) - 1} more" if len(beside) > 1 else "")
    seen = "is not the teacher's" if subject.teacher is not None else "may have been, which only a teacher shows"
    return Finding(
        verdict=Verdict.WARN,
        headline=f"{finding.headline}; of what has no posterior, {others} {seen}",
        layers=finding.layers,
        remedy=f"{_LOAD}; where only layers without a posterior were trained on purpose, this is as it has to be",
    )


def _trained(weights: Sequence[Trace]) -> Finding | None:
    paired = [trace for trace in weights if trace.weight is not None]
    moved = [
        trace
        for trace in paired
        if trace.moved and not trace.print.untrained_sigma and carries_the_teacher(trace, len(paired))
    ]
    if 2 * len(moved) <= len(paired):
        return None
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"the stage was declared converted, but mu of {len(moved)} of {count(paired, 'weight tensor')} has "
        "moved from the teacher's weight, and sigma is no share of either: the model was trained",
        threshold=Threshold(
            quantity="weight tensors that moved", observed=len(moved), relation="<=", allowed=len(paired) // 2
        ),
        layers=tuple(
            at_fault(t.tensor, f"the cosine of its mu to the teacher's weight is {t.print.cosine:.4f}") for t in moved
        ),
        remedy="say --stage finetuned, or leave it away; to audit the conversion itself, give the model before its "
        "training",
    )
