"""Predictions beside the labels on which claims about the truth are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from pytest_bnn.checks._knowing import Answers, require_known
from pytest_bnn.checks._paired import Scores
from pytest_bnn.checks._predictions import Predicted, classes_of, evaluated, naming, part_of, predicted
from pytest_bnn.checks._sides import Exact, Side, ranges_of
from pytest_bnn.checks.finding import NeverHereError, NotHereError
from pytest_bnn.data.repeats import repeats
from pytest_bnn.sampling.mixture import Mixture
from pytest_bnn.subject import Subject

_ROUNDED = (
    "{count} of {of} labels are of classes to which the outputs give a probability of exactly 0, and it cannot be told "
    "from rounding: let the network return the scores before its softmax or sigmoid, or name that output with --output"
)


class Labels(Protocol):
    """What claims about labelled examples are judged on: the predictions, or sums over many shards of them."""

    @property
    def passes(self) -> int:
        """How many passes the prediction is the mean of."""

    @property
    def growing(self) -> bool:
        """Whether they are looked at again and again as more of them come."""

    @property
    def left_out(self) -> int:
        """How many examples were left out: repeated ones, and those whose label is no class of the model's."""

    @property
    def known(self) -> bool:
        """Whether the model, and not only its teacher, is right more often than by chance."""

    @property
    def own(self) -> Side:
        """The model's predictions."""

    @property
    def its(self) -> Side | None:
        """The teacher's; None without a teacher of the same classes."""

    @property
    def scores(self) -> Scores | None:
        """The Brier scores of both, that of the model without the bias of a finite number of passes."""

    @property
    def brier_of_a_pass(self) -> float:
        """The mean Brier score of a single pass."""

    @property
    def groups(self) -> Mapping[str, Labels]:
        """The labels of each group that the user's ``slices`` names, where they are known already."""

    def __len__(self) -> int:
        """Return how many labels there are."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Labelled:
    """`Predicted` beside the classes ``[N]`` that occurred, each example once.

    ``rows`` are the numbers of the examples, as in the predictions; ``known`` says whether the model, and not only its
    teacher, is right more often than by chance.
    """

    predicted: Predicted
    labels: Tensor
    rows: Tensor
    left_out: int
    known: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def mixture(self) -> Mixture:
        return self.predicted.mixture

    @property
    def passes(self) -> int:
        return self.mixture.passes

    @property
    def growing(self) -> bool:
        return False

    @cached_property
    def own(self) -> Exact:
        return Exact(self.mixture.log_shares, self.labels)

    @cached_property
    def its(self) -> Exact | None:
        return None if self.predicted.teacher is None else Exact(self.predicted.teacher, self.labels)

    @cached_property
    def scores(self) -> Scores | None:
        if self.its is None:
            return None
        return Scores.of(
            own=self.mixture.brier(self.labels),
            its=self.its.briers,
            ranges=ranges_of(self.own.log_shares, self.its.log_shares),
        )

    @property
    def brier_of_a_pass(self) -> float:
        shares = self.mixture.log_shares.gather(1, self.labels[:, None])[:, 0].double().exp()
        return float((self.mixture.squares - 2 * shares + 1).mean())

    @property
    def groups(self) -> Mapping[str, Labels]:
        return {}

    def part(self, rows: Tensor) -> Labelled:
        """Return some of them, by their places among the labels."""
        return Labelled(
            predicted=part_of(self.predicted, rows),
            labels=self.labels[rows],
            rows=self.rows[rows],
            left_out=0,
            known=self.known,
        )


def beside_labels(judged: Subject, passes: int, where: str = "") -> Labelled:
    """Return the predictions for a subject's examples beside their labels, whoever knows these.

    Each distinct example counts once, and labels that are no class of the model's not at all.

    Args:
        judged: The subject on the examples.
        passes: Of the model.
        where: The option that gave the examples; empty for --data.

    Raises:
        NotHereError: There are no labels of classes, or the predictions are no more than presumed to be of classes.
    """
    task = judged.task
    given = judged.labels_of(task.field)
    if given is None:
        whose = where or "--data or --evaluation"
        raise NotHereError(
            f"the claim is about the truth, and no labels were given: let {whose} return (images, labels)"
            + ("; those of --data are not of these examples" if where else ""),
            ("labels",),
        )
    with naming(where):
        found = predicted(judged, passes)
    if found.presumed:
        raise NotHereError(_no_classes(given, where or "--data") or found.presumed)
    labels = classes_of(judged, given, task)
    if labels is None:
        whose, shape = where or "--data", "[N, ...]" if task.kind == "dense" else "[N]"
        raise NotHereError(
            f"the labels are no class for each decision: let {whose} return (images, class indices {shape}), as whole "
            "numbers"
        )
    kept = repeats(judged.require_images()).first
    classes = found.mixture.log_shares.shape[1]
    kept = kept[(labels[kept] >= 0) & (labels[kept] < classes)]
    return Labelled(
        predicted=part_of(found, kept), labels=labels[kept], rows=kept, left_out=len(labels) - len(kept)
    )  # fmt: skip


def _no_classes(labels: object, whose: str) -> str:
    """Say why labels do not tell that the outputs are scores of classes; empty where they are none that could."""
    if not isinstance(labels, Tensor) or not labels.numel() or labels.is_complex():
        return ""
    said = f"the labels are {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
    if labels.is_floating_point() and bool((labels == labels.round()).all()):
        if labels.ndim == 1 or labels.shape[1:].numel() == 1:
            return (
                f"{said}, and class indices are whole numbers: let {whose} return (images, labels.long()"
                f"{'.flatten()' if labels.ndim > 1 else ''}); where they are quantities, give --task regression"
            )
        return f"{said}, which are no class indices [N]: let {whose} return (images, class indices [N])"
    if labels.is_floating_point():
        return (
            f"{said} with fractions, which are neither class indices nor shares that sum to 1: let {whose} return "
            "(images, class indices [N]) as whole numbers, or give --task regression where they are quantities"
        )
    return (
        f"{said}, from {labels.min()} to {labels.max()}, which do not tell that the outputs are scores of classes: let "
        f"{whose} return class indices [N] from 0, or give --task classification"
    )


def labelled(subject: Subject, passes: int) -> Labelled:
    """Return the predictions beside the labels of the examples on which claims about the truth are judged.

    Raises:
        NotHereError: There are no labels of classes, or nobody knows these better than by chance.
    """
    judged, where = evaluated(subject)
    found = beside_labels(judged, passes, where)
    require_some(found)
    require_exact(found, shares=found.predicted.task.shares)
    its = None if found.its is None else Answers.of(found.its.log_shares, found.labels)
    who = require_known(Answers.of(found.own.log_shares, found.labels), its)
    return Labelled(
        predicted=found.predicted, labels=found.labels, rows=found.rows, left_out=found.left_out, known=who == "model"
    )


def calibrated(subject: Subject, passes: int) -> Labelled:
    """Return `labelled` predictions of a model that knows the labels, so that it can be rightly sure of them.

    Raises:
        NotHereError: As `labelled` does, and where the teacher knows the labels and the model does not.
    """
    found = labelled(subject, passes)
    require_model_knows(found)
    return found


def require_some(found: Labels) -> None:
    """Refuse examples without any label of a class.

    Raises:
        NotHereError: There is none.
    """
    if not len(found):
        raise NotHereError(
            "no label is a class of the model: give class indices from 0, with --data, --evaluation or labels="
        )


def require_exact(found: Labels, *, shares: bool) -> None:
    """Refuse labels of a probability that may be 0 for want of digits.

    Args:
        found: The labels.
        shares: Whether the outputs are probabilities already.

    Raises:
        NeverHereError: They are, and some labels have none.
    """
    count = found.own.ruled_out if shares else 0
    if count:
        raise NeverHereError(_ROUNDED.format(count=count, of=len(found)))


def require_model_knows(found: Labels) -> None:
    """Refuse to say how sure a model may be that has learned nothing.

    Raises:
        NotHereError: The teacher knows the labels and the model does not.
    """
    if not found.known:
        raise NotHereError(
            "the model is right on the labels no more often than by chance, and its teacher is: that is no matter of "
            "how sure it is, see teacher.agreement and scores.against_teacher"
        )
