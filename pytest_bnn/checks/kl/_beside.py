"""What a KL term stands beside: how large the data term is, and whether it is a mean or a sum over examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pytest_bnn.checks._objective import Evaluation, evaluate
from pytest_bnn.checks._outputs import at_the_outputs
from pytest_bnn.data.batch import rows_of
from pytest_bnn.libraries.protocol import BayesianLayer
from pytest_bnn.network.tree import mapped, tensors
from pytest_bnn.subject import Subject

#: Allowed relative error of a factor that is read off outputs in full precision.
_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class DataTerm:
    """The data term of a loss: ``times`` the mean, or the sum, of the examples' negative log likelihoods.

    Attributes:
        over: How it adds up its examples; None where that does not show.
        times: None where its scale does not show, as that of a squared error.
        counts: Over how many labels it may be a mean or a sum: examples, or their pixels, tokens or numbers.
    """

    over: Literal["mean", "sum"] | None
    times: float | None
    counts: tuple[int, ...]

    @property
    def per_example(self) -> tuple[float, ...]:
        """How many labels an example may count as: one, or each of its pixels, tokens or numbers."""
        return tuple(count / self.counts[0] for count in self.counts)

    def units(self, weight: float) -> tuple[float, ...]:
        """Return a weight in units of the data term: of its mean over examples, and of that over labels."""
        if self.times is None:
            return (weight,)
        return tuple(weight / self.times / each for each in (self.per_example if self.over == "mean" else (1.0,)))


def data_term_of(subject: Subject, layers: tuple[BayesianLayer, ...], left: Evaluation) -> DataTerm:
    """Tell a mean from a sum by doubling the batch, and by how much it is multiplied, where these show.

    A factor for each row that is halved when the batch is doubled is a mean's, one that stays is a sum's. How large it
    is shows where the loss pulls on the outputs as a likelihood does whose scale is known, such as a cross-entropy.
    """
    outputs = at_the_outputs(subject, left)
    one, rows = outputs.scale, max((pull.rows for pull in outputs.pulls), default=0)
    counts = _counts(subject)
    try:
        batch = _doubled(subject.loss_batch())
        if one is None or not rows or one <= 0:
            return DataTerm(_by_the_pull(subject, layers, batch), None, counts)
        twice = evaluate(subject, layers, noise="cut", free_rho=True, batch=batch)
        other = at_the_outputs(subject, twice, batch).scale
    except Exception:  # it takes no other number of rows
        return DataTerm(None, None, counts)
    if other is None:
        return DataTerm(None, None, counts)
    if abs(other / one - 0.5) <= _TOLERANCE:
        return DataTerm("mean", one * rows, counts)
    return DataTerm("sum", one, counts) if abs(other / one - 1) <= _TOLERANCE else DataTerm(None, None, counts)


def _counts(subject: Subject) -> tuple[int, ...]:
    batch = subject.loss_batch()
    labels = subject.loss_labels(batch)
    rows = rows_of(batch)
    return (rows,) if labels is None else tuple(dict.fromkeys((rows, labels.numel())))


def _by_the_pull(subject: Subject, layers: tuple[BayesianLayer, ...], batch: Any) -> Literal["mean", "sum"] | None:
    """Tell a mean from a sum by the gradient at the outputs alone, without noise: halves of a batch add up in both."""
    one, twice = (
        _pulls(evaluate(subject, layers, noise="silent", free_rho=True, batch=given)) for given in (None, batch)
    )
    if not one or len(one) != len(twice):
        return None
    pairs = [(first, both[: len(first)]) for first, both in zip(one, twice, strict=True)]
    if any(first.shape != half.shape for first, half in pairs):
        return None
    size = sum(float(first.square().sum()) for first, _ in pairs)
    for over, factor in (("mean", 0.5), ("sum", 1.0)):
        apart = sum(float((half - factor * first).square().sum()) for first, half in pairs)
        if size and apart <= (_TOLERANCE * factor) ** 2 * size:
            return over  # type: ignore[return-value]
    return None


def _pulls(found: Evaluation) -> list[Tensor]:
    leaves = [leaf for call in found.outputs for leaf in tensors(call.output)]
    return [leaf.grad.double() for leaf in leaves if leaf.grad is not None and leaf.ndim]


def _doubled(batch: Any) -> Any:
    rows = rows_of(batch)

    def double(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.ndim and len(leaf) == rows:
            return torch.cat([leaf.detach(), leaf.detach()]).requires_grad_(leaf.requires_grad)
        raise ValueError("a tensor without a row for each example")

    return mapped(batch, double)
