"""The data's part of a gradient, from the gradients to the drawn weights: what mu and rho should have got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks._objective import Evaluation
from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.libraries.cut import Key, key_of
from pytest_bnn.libraries.gaussian import PosteriorTensor
from pytest_bnn.network.calling import output_tensor

#: The data's part counts where it is longer than the first share of the whole gradient; it is missing where less than
#: the second share of its own length is left.
_VISIBLE, _MISSING = 1e-4, 1e-2

#: How much larger than one measured rounding another may be.
_TIMES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One tensor's gradients: how far they are from the exact ones, relative to these; rho's length and direction.

    Only the data's part counts; it may be lost in the rounding of the rest.
    """

    tensor: PosteriorTensor
    off: float
    allowed: float
    ratio: float
    cosine: float
    lost: bool
    missing: bool
    of: str = "rho"
    size: float = 1.0


@dataclass(slots=True, eq=False)
class _Part:
    """What the data give to a tensor's mu and rho, as float64, and how far off rounding may be."""

    to_mu: Tensor
    to_rho: Tensor
    rounding: float = 0.0


def rows_of(found: Evaluation, left: Evaluation, tensors: Sequence[PosteriorTensor]) -> list[Row]:
    """Compare the gradients of an evaluation with those of the noise that it used.

    Args:
        found: With the noise as it is drawn.
        left: The cut: what of the gradients is not the data's.
        tensors: Posterior tensors of the model. Those that a call does not reveal are left out.
    """
    parts = _parts(found)
    calls: dict[str, int] = {}
    for call in found.calls:
        calls[call.layer.path] = calls.get(call.layer.path, 0) + 1
    rows = []
    for tensor in tensors:
        part = parts.get(key_of(tensor))
        if part is None or tensor.path in left.not_cut:
            continue
        exact = (tensor.mu_gradient(part.to_mu), part.to_rho)
        rows.append(_row(tensor, found, left, exact, part.rounding, calls[tensor.path]))
    return rows


def _row(
    tensor: PosteriorTensor,
    found: Evaluation,
    left: Evaluation,
    exact: tuple[Tensor, Tensor],
    of_the_noise: float,
    calls: int,
) -> Row:
    eps = torch.finfo(tensor.mu.dtype).eps
    worst = Row(tensor, 0.0, 100 * eps, 1.0, 1.0, False, False)
    for of, parameter, whole, rest, part in zip(
        ("mu", "rho"),
        (tensor.mu_parameter, tensor.rho_parameter),
        found.gradients[key_of(tensor)],
        left.gradients[key_of(tensor)],
        exact,
        strict=True,
    ):
        if not parameter.requires_grad:
            continue
        nothing = torch.zeros_like(part)
        whole, rest = (nothing if gradient is None else gradient for gradient in (whole, rest))
        one, size = whole - rest, float(part.norm())
        # The parts of the passes and the KL's are added one by one, each time rounded.
        beside = max(float(whole.norm()), float(rest.norm()))
        rounding = (calls + 1) * eps * beside + (of_the_noise if of == "rho" else 0.0)
        if not size:
            off, allowed, lost = float(float(one.norm()) > max(rounding, 1e-30)), 0.5, False
        else:
            off, allowed = float((one - part).norm()) / size, 100 * eps + rounding / size
            lost = allowed >= 1
        both = float(one.norm()) * size
        visible = size > max(_VISIBLE, 10 * eps) * beside and bool(torch.isfinite(part).all())
        row = Row(
            tensor, off, allowed,
            ratio=float(one.norm()) / size if size else 1.0,
            cosine=float((one * part).sum()) / both if both else 1.0,
            lost=lost,
            missing=visible and not lost and float(one.norm()) < _MISSING * size,
            of=of, size=size,
        )  # fmt: skip
        # To rho only where nothing is wrong with either: that is what noise has a part in.
        if (of == "rho" and worst.off <= worst.allowed) or row.off / row.allowed > worst.off / worst.allowed:
            worst = row
    return worst


def beyond_rounding(rows: Sequence[Row], left: Evaluation, third: Evaluation) -> list[Row]:
    """Keep the rows that are further off than the rounding of what is not the data's part.

    Terms that cancel, as those of an estimated KL do, are rounded at their own size, which the sum does not show: a
    third of all of it is rounded in another way.

    Args:
        rows: What is off.
        left: The cut.
        third: The same with a third of the loss.
    """
    kept = []
    for row in rows:
        one, other = (e.gradients[key_of(row.tensor)][row.of == "rho"] for e in (left, third))
        apart = 0.0 if one is None or other is None else float((one - 3 * other).norm())
        if row.off > row.allowed + _TIMES * apart / max(row.size, 1e-300):
            kept.append(row)
    return kept


def _parts(found: Evaluation) -> dict[Key, _Part]:
    """Sum the data's part over the calls of each tensor; a tensor that one of them does not reveal is left out."""
    parts: dict[Key, _Part] = {}
    hidden: set[Key] = set()
    for call in found.calls:
        revealed = {key_of(tensor): noise for tensor, noise in call.noise()}
        for tensor in call.layer.tensors:
            key = key_of(tensor)
            if key not in revealed:
                hidden.add(key)
                continue
            of_mean, of_noise = (_gradient(call, tensor, index) for index in (0, -1))
            if of_mean is None and of_noise is None:
                continue
            part = parts.setdefault(
                key, _Part(torch.zeros_like(tensor.mu.detach(), dtype=torch.float64), _nothing_to_rho(tensor))
            )
            if of_mean is not None:
                part.to_mu += of_mean
            if of_noise is not None:
                sigma = tensor.sigma.double().clamp_min(1e-300)
                part.to_rho += tensor.data_to_rho(of_noise, revealed[key].double() / sigma)
                part.rounding += _rounding(tensor, of_noise, about_mu=call.layer.estimator != "Flipout")
    return {key: part for key, part in parts.items() if key not in hidden}


def _nothing_to_rho(tensor: PosteriorTensor) -> Tensor:
    return torch.zeros_like(tensor.data_to_rho(torch.zeros_like(tensor.mu), torch.zeros_like(tensor.mu)))


def _rounding(tensor: PosteriorTensor, gradient: Tensor, *, about_mu: bool) -> float:
    """Return how far off the part to rho may be since the noise is read off a weight, which is rounded beside mu."""
    sigma = tensor.sigma.double().clamp_min(1e-300)
    eps = torch.finfo(tensor.mu.dtype).eps
    size = (tensor.mu.detach().double().abs() + 4 * sigma) * eps if about_mu else 4 * sigma * eps
    return float(tensor.data_to_rho(gradient.abs(), size / sigma).norm())


def _gradient(call: LayerCall, tensor: PosteriorTensor, index: int) -> Tensor | None:
    """Return the gradient to what a functional call of a layer used of a tensor, float64."""
    functional = call.functional[index]
    used = functional.weight if tensor.role == "weight" else functional.bias
    if used is None or not (used.retains_grad or used.is_leaf) or used.grad is None:
        return None
    return used.grad.detach().double() if used.shape == tensor.mu.shape else None


def undifferentiated(found: Evaluation) -> list[PosteriorTensor]:
    """Return the tensors that were drawn with noise in a graph, but without a graph of their own."""
    cut: dict[Key, PosteriorTensor] = {}
    for call in found.calls:
        for tensor, noise in call.noise():
            drawn = call.functional[-1].weight if tensor.role == "weight" else call.functional[-1].bias
            in_a_graph = output_tensor(call.output).requires_grad and tensor.rho_parameter.requires_grad
            if drawn is not None and in_a_graph and not drawn.requires_grad and bool(noise.any()):
                cut[key_of(tensor)] = tensor
    return list(cut.values())
