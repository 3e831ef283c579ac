"""What a regression predicts: the mixture of its passes, its teacher's answer, and the numbers that occurred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_bnn.checks._predictions import evaluated, naming
from pytest_bnn.checks._remembered import remembered
from pytest_bnn.checks._units import require_known
from pytest_bnn.checks.finding import NotHereError
from pytest_bnn.checks.noise._scale import without_noise
from pytest_bnn.checks.values import NumbersHead
from pytest_bnn.data.repeats import repeats
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import Field
from pytest_bnn.network.comparing import difference, tolerance
from pytest_bnn.sampling.normals import Normals
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.reached import outputs_of_loss
from pytest_bnn.tasks.spreads import Beside, Head, Pulled, UnclearError, deviation, head_of

_NOT_NUMBERS = (
    "the claim is about numbers, and the task is {kind}: say --task regression where the outputs are quantities, or "
    "--output NAME where another output has them"
)
_NO_LABELS = (
    "the claim is about the truth, and no labels were given: let --data or --evaluation return (inputs, numbers)"
)
_NO_NUMBERS = "the labels are no numbers for each example: let --data return (inputs, numbers [N] or [N, outputs])"
_NOT_FINITE = "outputs are NaN or infinite in some passes: see noise.varies; load or train the weights again"
_ASK = (
    "{why}: say which with --set {id}.head=variance, log_variance, std or log_std (mean where it is none of these), or "
    "call the outputs mean and log_variance in a dictionary"
)
_NEGATIVE = (
    "{why}, and some of its values are negative, which no {kind} is: say what it is with --set {id}.head=log_variance "
    "or log_std"
)
_ZERO = (
    "the predicted standard deviation of {count} of {of} numbers is 0 or infinite, and it cannot be told from "
    "rounding: add a least variance in the head, as torch's gaussian_nll_loss does with eps"
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Numbers:
    """The predictions for ``N`` numbers that occurred: one an example, by a seeded choice, each example once.

    Attributes:
        mixture: The passes of the model.
        teacher: Its teacher, as a single pass; None without a teacher, or where its outputs are others.
        labels: The numbers ``[N]``.
        scale: Of the output that each belongs to, ``[N]``: the spread of the teacher's answers, or the model's.
        source: Where the standard deviations are from: the head, the declared noise, or nowhere.
        teacher_source: The same of the teacher's.
        left_out: How many examples do not count: repeated ones, and those without a label.
        head: Where in a row of outputs they stand, and why.
        rows: The numbers of their examples.
        places: Which of the outputs each is.
    """

    mixture: Normals
    teacher: Normals | None
    labels: Tensor
    scale: Tensor
    source: str
    teacher_source: str = ""
    left_out: int = 0
    head: Head
    rows: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def scales(outputs: Tensor) -> Tensor:
    """Return the scale of each output of a regression: its standard deviation over examples, or else its size."""
    values = outputs.double().reshape(len(outputs), -1)
    spread = values.std(0) if len(values) > 1 else torch.zeros(values.shape[1], dtype=torch.float64)
    size = values.square().mean(0).sqrt()
    return torch.where(spread > 1e-12 * size, spread, size).clamp_min(1e-300)


def numbers(subject: Subject, id: str, passes: int, head: NumbersHead, noise: float | None) -> Numbers:
    """Return what the model predicts for the labels on which claims about the truth are judged.

    Args:
        subject: With images.
        id: Of the check that asks, for its messages.
        passes: Of the model.
        head: What the user says of the head.
        noise: The standard deviation that the user declares, in units of the outputs.

    Raises:
        NotHereError: The task is no regression, there are no labels of it, or nobody knows these.
    """
    key = f"numbers {passes} {head} {noise}"
    return remembered(subject, key, lambda: _numbers(subject, id, passes, head, noise))


def _numbers(subject: Subject, id: str, passes: int, head: NumbersHead, noise: float | None) -> Numbers:
    judged, where = evaluated(subject)
    task = judged.task
    if task.kind != "regression":
        raise NotHereError(_NOT_NUMBERS.format(kind=task.kind))
    with naming(where):
        example = judged.forward_once()
    labels = _labels(judged.labels_of(task.field), len(example))
    found = _head(subject, judged, id, head, noise, labels)
    places = torch.randint(labels.shape[1], (len(labels),), generator=torch.Generator().manual_seed(judged.seed))
    with naming(where):
        mixture, source = _with_noise(_passes(judged, passes, found, places), found, noise, id)
    rows = repeats(judged.require_images()).first
    chosen = labels.gather(1, places[:, None])[:, 0]
    rows = rows[torch.isfinite(chosen[rows])]
    if not len(rows):
        raise NotHereError(_NO_NUMBERS)
    teacher, teacher_source, whole = _teacher(judged, found, places, noise, labels.shape[1])
    scale = scales(whole if whole is not None else _all_means(example, found))[places]
    made = Numbers(
        mixture=mixture[rows],
        teacher=None if teacher is None else teacher[rows],
        labels=chosen[rows],
        scale=scale[rows],
        source=source,
        teacher_source=teacher_source,
        left_out=len(labels) - len(rows),
        head=found,
        rows=rows,
        places=places[rows],
    )
    require_known([mixture[rows], made.teacher], made.labels, labels, made.places)
    return made


def _labels(given: object, rows: int) -> Tensor:
    """Return the labels as ``[rows, d]``, in float64."""
    if given is None:
        raise NotHereError(_NO_LABELS, ("labels",))
    if not isinstance(given, Tensor) or given.is_complex() or not given.ndim or len(given) != rows:
        raise NotHereError(_NO_NUMBERS)
    return given.detach().cpu().double().reshape(rows, -1)


def _head(subject: Subject, judged: Subject, id: str, head: NumbersHead, noise: float | None, labels: Tensor) -> Head:
    task, fields, example = judged.task, judged.fields, next(judged.bank.blocks(0, 1))[0]
    field = next((one for one in fields if one.name == task.field), None)
    count = example[0].numel()
    together = len(fields) > 1 and count == sum(one.size for one in fields)
    row = field.shape if together and field is not None else tuple(example.shape[1:])
    try:
        return head_of(
            head, fields=fields, field=task.field, numbers=count, wanted=labels.shape[1], row=row,
            pulled=lambda: _pulled(subject, fields), noise_declared=noise is not None,
        )  # fmt: skip
    except UnclearError as error:
        raise NotHereError(_ASK.format(why=error, id=id)) from error


def _pulled(subject: Subject, fields: Sequence[Field]) -> Pulled | None:
    """Return what the loss does to the outputs; None where that is not known."""
    if subject.loss is None:
        return None
    batches = []

    def batch() -> object:
        batches.append(subject.loss_batch())
        return batches[-1]

    leaves = outputs_of_loss(subject.model, subject.loss, batch, subject.seed)
    labels = subject.loss_labels(batches[-1]) if batches else None
    chosen = [leaves.get(one.name) for one in fields]
    if labels is None or not chosen or any(leaf is None or len(leaf) != len(labels) for leaf in chosen):
        return None
    kept = [leaf for leaf in chosen if leaf is not None]
    slopes = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in kept]
    flat = [torch.cat([one.detach().reshape(len(labels), -1).cpu() for one in each], 1) for each in (kept, slopes)]
    return Pulled(outputs=flat[0], slope=flat[1], labels=labels.detach().cpu().reshape(len(labels), -1))


def _passes(subject: Subject, passes: int, head: Head, places: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the mean and the number beside it of each example's chosen output, ``[passes, N]``."""
    means, besides = [], []
    for block in subject.bank.blocks(0, passes):
        mean, beside = taken(block.detach().cpu(), head, places)
        means.append(mean)
        besides += [] if beside is None else [beside]
    return torch.cat(means), torch.cat(besides) if besides else None


def taken(outputs: Tensor, head: Head, places: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the mean and the number beside it of each example's chosen output, ``[passes, N]``, in float64."""
    flat, rows = outputs.flatten(2) if outputs.ndim > 2 else outputs[..., None], torch.arange(len(places))
    mean = flat[:, rows, head.mean[places]].double()
    beside = None if head.beside is None else flat[:, rows, head.beside[places]].double()
    if not bool(torch.isfinite(mean).all()) or (beside is not None and bool(torch.isnan(beside).any())):
        raise NotHereError(_NOT_FINITE)
    return mean, beside


def _with_noise(found: tuple[Tensor, Tensor | None], head: Head, noise: float | None, id: str) -> tuple[Normals, str]:
    mean, beside = found
    if beside is None:
        source = "" if noise is None else "the declared noise"
        return Normals(means=mean, deviations=torch.full_like(mean, noise or 0.0)), source
    if head.kind in ("variance", "std") and bool((beside < 0).any()):
        raise NotHereError(_NEGATIVE.format(why=head.why, kind=_word(head.kind), id=id))
    deviations = deviation(head.kind, beside)
    sick = ~((deviations > 0) & torch.isfinite(deviations))
    if bool(sick.any()):
        raise NotHereError(_ZERO.format(count=int(sick.any(0).sum()), of=sick.shape[1]))
    return Normals(means=mean, deviations=deviations), "the head"


def _word(kind: Beside) -> str:
    return "standard deviation" if kind == "std" else kind


def _teacher(
    subject: Subject, head: Head, places: Tensor, noise: float | None, wanted: int
) -> tuple[Normals | None, str, Tensor | None]:
    """Return the teacher's predictions, where their noise is from, and its means for all outputs."""
    if subject.teacher is None:
        return None, "", None
    outputs = subject.teacher_output().detach().cpu()
    flat = outputs.reshape(len(outputs), -1)
    if flat.shape[1] == next(subject.bank.blocks(0, 1))[0, 0].numel():
        own = head
    elif flat.shape[1] == wanted:
        own = replace(head, kind="mean", mean=torch.arange(wanted), beside=None)
    else:
        return None, "", None
    mean, beside = taken(flat[None], own, places)
    deviations, source = torch.full_like(mean, noise or 0.0), "" if noise is None else "the declared noise"
    if beside is not None:
        given = deviation(own.kind, beside)
        if bool(((given > 0) & torch.isfinite(given)).all()):
            deviations, source = given, "the head"
    return Normals(means=mean, deviations=deviations), source, flat[:, own.mean]


def _all_means(outputs: Tensor, head: Head) -> Tensor:
    return outputs.detach().cpu().reshape(len(outputs), -1)[:, head.mean]


def without_the_noise(subject: Subject, found: Numbers) -> Normals | None:
    """Return what the network at its posterior mean predicts, as a single pass; None where it still varies there.

    Args:
        subject: What was judged.
        found: What it predicts; a noise that was declared is taken from it.
    """
    if not bayesian_layers(subject.model):
        return None
    calm = without_noise(subject)
    if not 0 <= difference(calm, without_noise(subject, again=True)) <= tolerance(torch.empty(0)):
        return None
    try:
        mean, beside = taken(calm[found.rows].cpu()[None], found.head, found.places)
    except NotHereError:
        return None
    deviations = found.mixture.deviations[:1] if beside is None else deviation(found.head.kind, beside)
    usable = bool((torch.isfinite(deviations) & (deviations >= 0)).all())
    return Normals(means=mean, deviations=deviations) if usable else None
