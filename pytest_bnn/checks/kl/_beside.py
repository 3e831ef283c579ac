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
from pytest_bnn.network.tree import mapped
from pytest_bnn.subject import Subject

#: Allowed relative error of a factor that is read off outputs in full precision.
_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class DataTerm:
    """The data term of a loss: ``times`` the mean, or the sum, of the examples' negative log likelihoods."""

    over: Literal["mean", "sum"]
    times: float


def data_term_of(subject: Subject, layers: tuple[BayesianLayer, ...], left: Evaluation) -> DataTerm | None:
    """Tell a mean from a sum by doubling the batch, and by how much it is multiplied; None where neither shows.

    A factor for each row that is halved when the batch is doubled is a mean's, one that stays is a sum's. It shows
    where the loss pulls on the outputs as a likelihood does whose scale is known, such as a cross-entropy.
    """
    outputs = at_the_outputs(subject, left)
    one, rows = outputs.scale, max((pull.rows for pull in outputs.pulls), default=0)
    if one is None or not rows or one <= 0:
        return None
    try:
        batch = _doubled(subject.loss_batch())
        twice = evaluate(subject, layers, noise="cut", free_rho=True, batch=batch)
        other = at_the_outputs(subject, twice, batch).scale
    except Exception:  # it takes no other number of rows
        return None
    if other is None:
        return None
    if abs(other / one - 0.5) <= _TOLERANCE:
        return DataTerm("mean", one * rows)
    return DataTerm("sum", one) if abs(other / one - 1) <= _TOLERANCE else None


def _doubled(batch: Any) -> Any:
    rows = rows_of(batch)

    def double(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.ndim and len(leaf) == rows:
            return torch.cat([leaf.detach(), leaf.detach()]).requires_grad_(leaf.requires_grad)
        raise ValueError("a tensor without a row for each example")

    return mapped(batch, double)
