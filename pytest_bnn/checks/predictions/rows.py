"""``predictions.rows``: does an example's output depend on that example alone?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite

import torch
from torch import Tensor, nn

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.values import Reasons
from pytest_bnn.data.batch import Batch, Inputs, row_dim
from pytest_bnn.libraries.posterior import zero_sigma
from pytest_bnn.libraries.registry import nobody_knows
from pytest_bnn.network.calling import ForwardError, forward
from pytest_bnn.network.meeting import Meeting, meeting
from pytest_bnn.network.naming import called
from pytest_bnn.network.rows import Dependent, Rows, look_at_rows
from pytest_bnn.network.wrappers import eager
from pytest_bnn.records.evidence import Acceptance, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.sampling.own import undisturbed_passes
from pytest_bnn.subject import Subject, fitted

#: The most examples of the batch that others are compared with.
MOST = 32


@check(
    claim="With every sigma at 0, an example has the same outputs alone, in any batch and at any place in it.",
    needs=("images",),
    can=("mean_mode",),
    after="teacher.agreement",
)
def rows(subject: Subject, *, allow: Reasons | None = None) -> Finding:
    """Measure whether an example's output depends on that example alone.

    The network runs at its posterior mean, where two equal calls must give equal outputs, or nothing is claimed. Up
    to 32 examples go through it in one batch, in the reverse order, in small batches and alone. Each number of an
    example's output must be the same to 1e-4 of what it varies by over the examples, to 16 roundings of its own size,
    and to 20 times what it moves by where every weight is moved by one rounding. What differs by more must do so with
    such moved weights too: a difference that is rounding's does not. Where the teacher's outputs depend on the batch as
    well, it was so before the conversion: a warning, as without a teacher; where only the model's do, a failure. Exact:
    no randomness.

    Args:
        subject: images, at least, and a teacher to tell what was so before; see `Subject`.
        allow: Modules in which examples meet on purpose: a pattern for the path (as in fnmatch) to the reason, which
            the report shows.
    """
    return _find(subject, dict(allow or {}))


measure_predictions_rows, assert_predictions_rows = rows.measure, rows.assert_


@dataclass(frozen=True, slots=True, eq=False)
class _Looked:
    """What was seen of one network, and the module in which its examples meet."""

    rows: Rows
    meeting: Meeting | None = None


def _find(subject: Subject, allow: dict[str, str]) -> Finding:
    images = subject.require_images()
    if len(images) < 2:
        return not_applicable(
            "there is one example, and the claim compares batches: give at least two (--data MODULE:FACTORY, or "
            "images= in Python)"
        )
    looked = _look(subject.model, images, subject, zero_sigma)
    found = looked.rows
    if found.varies:
        return not_applicable(
            nobody_knows(subject.model)
            or "with every sigma at 0 the outputs still vary from pass to pass, so that other outputs say nothing "
            "about the batch: see noise.source"
        )
    if not found.compared:
        return not_applicable(_not_comparable(found))
    if found.dependent is None:
        if found.equal:
            return not_applicable(
                "all examples have the same outputs, so that they could not show what others in a batch do: give "
                "others with --data MODULE:FACTORY, or images= in Python"
            )
        return _independent(found)
    return _depends(subject, looked, found.dependent, allow)


def _look(
    network: nn.Module, images: Inputs, subject: Subject, calm: Callable[[nn.Module], AbstractContextManager[object]]
) -> _Looked:
    size = images.size if isinstance(images, Batch) else None
    count = _count(len(images), size, subject)
    chosen = images[torch.arange(count) * len(images) // count]

    def run(numbers: Tensor) -> Tensor:
        return forward(network, chosen[numbers])

    with eager(), undisturbed_passes(network, seed=subject.seed), calm(network), torch.no_grad():
        found = look_at_rows(network, run, count, size=size)
        if found.dependent is None:
            return _Looked(found)
        return _Looked(found, meeting(network, run, *found.dependent.seats))


def _count(given: int, size: int | None, subject: Subject) -> int:
    """Return how many examples to take: as many as no other dimension of the outputs could be mistaken for."""
    other = {d for field in subject.fields for d in field.shape[:-1] if d > 1}
    count = min(given, MOST if size is None else max(MOST // size, 2) * size)
    if size is not None:
        return count
    return next((n for n in range(count, 1, -1) if not any(d % n == 0 for d in other)), count)


def _not_comparable(found: Rows) -> str:
    why = next(iter(found.raised.items()), None)
    if why is not None:
        return (
            f"the network takes its examples in one batch only (of {why[0]} it raised {why[1]}): nothing compares them"
        )
    return (
        "the shape of an example's outputs follows its batch, as where they are padded to the longest, so that no two "
        "batches compare: give a network whose rows have one shape"
    )


def _independent(found: Rows) -> Finding:
    sizes = sorted(found.compared)
    return Finding(
        verdict=Verdict.PASS,
        headline=f"examples have the same outputs in batches of {_listed(sizes)}: they differ by at most "
        f"{found.gap:.2g} of what an output varies by",
        measurements=_measured(found),
        threshold=_threshold(found),
        notes=_notes(found),
    )


def _depends(subject: Subject, looked: _Looked, dependent: Dependent, allow: dict[str, str]) -> Finding:
    where = looked.meeting
    path = "" if where is None else where.path
    reason = next((why for pattern, why in allow.items() if fnmatchcase(path, pattern)), None)
    before, why = (None, "") if reason is not None else _before(subject)
    if reason is None and before is not False and (together := _together(subject)):
        return not_applicable(f"an example's output depends on {_ON[dependent.on]}, and {together}")
    amount = _amount(dependent.gap)
    headline = f"an example's output depends on {_ON[dependent.on]}: {amount}"
    if where is not None:
        headline += f"; {_PLACE[dependent.on]} {where}"
    verdict, remedy = (Verdict.FAIL if before is False else Verdict.WARN), _remedy(dependent, where)
    if reason is not None:
        verdict, remedy, why = Verdict.PASS, "", f"that is so on purpose: {reason}"
        headline += f"; accepted: {reason!r}"
    elif before is True:
        headline += "; so does its teacher's"
    said = f"{_PLACE[dependent.on]} {called(path)}"
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=_measured(looked.rows),
        threshold=_threshold(looked.rows),
        layers=()
        if where is None
        else (LayerFinding(path=path, kind=where.kind, ok=reason is not None, finding=said),),
        remedy=remedy,
        notes=(why, *_notes(looked.rows)) if why else _notes(looked.rows),
        accepted=() if reason is None else (Acceptance(path=path, reason=reason),),
    )


def _amount(gap: float) -> str:
    return f"by {gap:.2g} of what it varies by" if isfinite(gap) else "it is NaN or infinite in some batches"


_ON = {
    "company": "which others are in its batch",
    "place": "its place in the batch",
    "size": "how many are in its batch",
    "batch": "the batch that it is in",
}

_PLACE = {
    "company": "examples meet in",
    "place": "the place comes in at",
    "size": "the number comes in at",
    "batch": "that starts in",
}


def _before(subject: Subject) -> tuple[bool | None, str]:
    """Return whether the teacher's outputs depend on the batch too; None where that is not known, with why."""
    if subject.teacher is None:
        return None, (
            "whether it was so before the conversion is not known: no teacher was given (--teacher MODULE:FACTORY, or "
            "teacher= in Python)"
        )
    try:
        found = _look(
            subject.teacher, fitted(subject.require_images(), subject.teacher), subject, lambda _: nullcontext()
        ).rows
    except ForwardError as error:
        return None, f"whether the teacher's outputs depend on the batch is not known: it raised {error}"
    if found.varies:
        return None, "whether the teacher's outputs depend on the batch is not known: they vary from pass to pass"
    if not found.compared:
        return None, f"whether the teacher's outputs depend on the batch is not known: {_not_comparable(found)}"
    if found.dependent is None:
        return False, "the teacher given does not: its outputs are the same in all of these batches"
    return True, "the teacher does the same, so it was so before the conversion"


def _together(subject: Subject) -> str:
    """Say why rows of this network may belong together on purpose; empty where nothing says so."""
    images = subject.require_images()
    if not isinstance(images, Batch):
        return ""
    if images.size is not None:
        return (
            f"the network takes {images.size} of them at once and no other number: they may belong together, as pairs "
            "do; give it rows that are whole sets, to have those compared"
        )
    for tensor in images.tensors:
        dims = [d for d, length in enumerate(tensor.shape) if length == len(images)]
        alone = row_dim(tensor, rows=len(images), dim=images.dim) is None
        if (tensor.ndim and alone) or len(dims) > 1:
            return (
                f"it is given a tensor of shape {list(tensor.shape)} that belongs to all examples, as the edges of a "
                "graph do: they may belong together; give it rows that are whole graphs or sets, to have those compared"
            )
    return ""


def _remedy(dependent: Dependent, where: Meeting | None) -> str:
    allow = (
        "where examples are meant to meet, say so with --allow 'PATTERN=REASON' (allow= of predictions.rows in Python)"
    )
    if dependent.on == "size":
        return f"let one computation serve every number of examples; {allow}"
    time = "where the first dimension of the data is time, say --batch-dim 1"
    if dependent.on == "place":
        return f"let nothing depend on the place of an example in its batch; {time}; {allow}"
    module = None if where is None else where.module
    if isinstance(module, nn.modules.batchnorm._NormBase) and not module.training:
        return f"let it keep running statistics (track_running_stats=True), estimated on the training data; {allow}"
    if module is not None and module.training:
        return f"switch that module to eval mode, so that it uses its running statistics; {allow}"
    if getattr(module, "batch_first", None) is False:
        return f"make it with batch_first=True, or give it its input as [length, batch, features]; {time}; {allow}"
    return f"compute over the dimensions of one example only, not over the batch's; {time}; {allow}"


def _measured(found: Rows) -> tuple[Measurement, ...]:
    return (
        Measurement(name="largest difference", value=found.gap, unit="of what the output varies by over the examples"),
        Measurement(name="what rounding explains", value=found.allowed, unit="of what the output varies by"),
    )


def _threshold(found: Rows) -> Threshold:
    return Threshold(
        quantity="difference of an example's outputs", observed=found.gap, relation="<=", allowed=found.allowed
    )


def _notes(found: Rows) -> tuple[str, ...]:
    notes = [f"not judged: batches of {size}, of which the network raised {e}" for size, e in found.raised.items()]
    notes += [f"not judged: batches of {size}, whose outputs have another shape" for size in sorted(found.unlike)]
    return tuple(notes)


def _listed(numbers: list[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
