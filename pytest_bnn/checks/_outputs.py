"""What a loss does to the model's outputs, call by call, and which labels it pairs them with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pytest_bnn.checks._objective import Evaluation
from pytest_bnn.checks._watching import OutputCall
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.tree import leaves, tensors
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.subject import Subject
from pytest_bnn.tasks.likelihood import pull_of, scale_over_calls
from pytest_bnn.tasks.pull import FULL, Pull


@dataclass(slots=True, eq=False)
class Outputs:
    """The pulls of a loss on the outputs of each call, and how the rows are paired with labels.

    Attributes:
        pulls: One for each call whose output has a gradient.
        proven: Whether what the outputs mean is known, and not presumed.
        unpaired: How many rows are pulled toward the label of another row, of how many.
        notes: What could not be told.
    """

    pulls: list[Pull] = field(default_factory=list)
    proven: bool = False
    unpaired: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def form(self) -> str:
        """What the pulls are like."""
        forms = {pull.form for pull in self.pulls}
        return next(iter(forms)) if len(forms) == 1 else "unknown"

    @property
    def words(self) -> str:
        """The form, as a headline says it."""
        return "of a form that is not known" if self.form == "unknown" else f"that of a {self.form}"

    @property
    def sign(self) -> int:
        """1 where all pulls go toward the labels, -1 where all go away from them, else 0."""
        signs = {pull.sign for pull in self.pulls}
        return next(iter(signs)) if len(signs) == 1 else 0

    @property
    def scale(self) -> float | None:
        """The factor c of a row, summed over the calls."""
        return scale_over_calls(self.pulls)

    def problem(self) -> tuple[Verdict, str, str] | None:
        """Return what is wrong, in words, with the remedy; None where nothing is shown to be."""
        if self.sign == -1 and self.form == "binary cross-entropy" and (self.scale or 0.0) > 0:
            return (
                Verdict.WARN,
                "the loss pulls every output toward the other side than its label's: 0 and 1 are exchanged in it",
                "take the labels as they are, or exchange them in the data as well where 1 - label is meant",
            )
        if self.sign == -1:
            return (
                Verdict.FAIL,
                "the loss pushes the outputs away from their labels: its data term is maximised where the loss is "
                "minimised",
                "give the data term the other sign: a loss adds the negative log likelihood and the KL term",
            )
        if self.proven and self.form == "scores for log-probabilities":
            return (
                Verdict.FAIL,
                "the loss takes scores for log-probabilities: it pulls on the label's score alone, without a bound, "
                "as nll_loss does on outputs that are not normalised",
                "take cross_entropy(outputs, labels), or log_softmax before nll_loss",
            )
        if self.proven and self.form == "distance to the mean label":
            return (
                Verdict.FAIL,
                "the loss pulls every output toward the mean of all labels, and none toward its own: outputs of shape "
                "[N, 1] and labels of shape [N] are broadcast to [N, N]",
                "bring both to one shape: outputs.squeeze(1), or labels.unsqueeze(1)",
            )
        if self.unpaired is not None:
            rows, of = self.unpaired
            return (
                Verdict.FAIL,
                f"the loss pairs the outputs with the labels of other rows: {rows} of {of} rows are pulled toward a "
                "label that is not theirs",
                "shuffle inputs and labels by the same permutation",
            )
        if self.proven and self.form == "cross-entropy of shares":
            return (
                Verdict.WARN,
                "the loss takes probabilities for scores: cross_entropy takes the softmax of them once more, so that "
                "the data pull weakly, and the loss stays far from 0 where every label is right",
                "give cross_entropy the scores, or nll_loss the logarithm of the probabilities; where it is meant, say "
                "so: --set loss.data.severity=off",
            )
        if self.form == "distillation without T^2":
            temperature = self.pulls[0].temperature
            return (
                Verdict.WARN,
                f"the loss distils at temperature {temperature:g} without the factor {temperature:g}^2: the data's "
                f"gradient is {temperature**2:g} times smaller beside the KL term's than at temperature 1",
                f"multiply the distillation term by {temperature**2:g}, or, where it is meant, say so: "
                "--set loss.data.severity=off",
            )
        return None


def at_the_outputs(subject: Subject, left: Evaluation, batch: Any = None) -> Outputs:
    """Read off what the loss does to the outputs of its calls of the model.

    Args:
        subject: With a loss and images.
        left: An evaluation of the loss, with its gradients.
        batch: What the loss got; the subject's when None.
    """
    task = subject.task
    found = Outputs(proven=task.proven)
    batch = subject.loss_batch() if batch is None else batch
    labels = subject.loss_labels(batch)
    given = next(iter(tensors(batch)), None)
    for call in left.outputs:
        leaf = output_of(call.output, task.field)
        if leaf is None or leaf.grad is None or not leaf.ndim:
            continue
        beside = labels if labels is not None and len(labels) == len(leaf) else None
        pull = pull_of(task, leaf.detach(), leaf.grad, beside, _of_the_teacher(subject, call))
        found.pulls.append(pull)
        if beside is not None and pull.implied is not None and found.unpaired is None and task.kind != "dense":
            found.unpaired = _unpaired(pull.implied, beside, given, _first(call.inputs))
    if left.outputs and not found.pulls:
        found.notes.append("the loss does not use the output that the task is about, so that its pull is not judged")
    return found


def output_of(tree: Any, name: str) -> Tensor | None:
    """Return the output that a task is about, by its name where it has one; None where it cannot be told."""
    held = [(n, leaf) for n, leaf in leaves(tree) if isinstance(leaf, Tensor) and leaf.ndim]
    named = [leaf for n, leaf in held if n == name] if name else []
    if named:
        return named[0]
    return held[0][1] if len(held) == 1 else None


def _first(inputs: Any) -> Tensor | None:
    return next(iter(tensors(inputs)), None)


def _of_the_teacher(subject: Subject, call: OutputCall) -> Tensor | None:
    if subject.teacher is None:
        return None
    args, kwargs = call.inputs
    try:
        with undisturbed(subject.teacher, seed=subject.seed), torch.no_grad():
            output = subject.teacher(*args, **kwargs)
    except Exception:  # it takes its inputs in another way
        return None
    return output if isinstance(output, Tensor) else None


def _unpaired(implied: Tensor, labels: Tensor, given: Tensor | None, used: Tensor | None) -> tuple[int, int] | None:
    """Say how many rows are pulled toward another row's label, where the labels are the given ones.

    They may have another order than the rows, or be in order while the rows are not.
    """
    theirs = labels.reshape(len(labels), -1).to(implied.device).double()
    implied = implied.reshape(len(implied), -1).double()
    if given is None or used is None or given.shape != used.shape or theirs.shape != implied.shape:
        return None
    places = _places(given.detach(), used.detach())
    if places is None:
        return None
    own = theirs[places.to(theirs.device)]
    room = FULL * theirs.std(0, unbiased=False)
    wrong = int(((own - implied).abs() > room).any(1).sum())
    same_labels = any(
        bool(((one - other).abs() <= room).all())
        for one, other in ((own.sort(0).values, implied.sort(0).values), (theirs, implied))
    )
    # Of two labels a random order leaves half of the rows right, of more of them fewer.
    least = 0.3 if len(theirs.unique()) == 2 else 0.5
    return (wrong, len(own)) if same_labels and wrong > least * len(own) else None


def _places(given: Tensor, used: Tensor) -> Tensor | None:
    """Return the number of the given row that each used row is; None where rows are alike, or were changed."""
    rows = {row.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(): i for i, row in enumerate(given)}
    if len(rows) != len(given):
        return None
    found = [rows.get(row.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()) for row in used]
    return None if None in found else torch.tensor([place for place in found if place is not None])
