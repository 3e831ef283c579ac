"""The data's part of a gradient, from the gradients to the drawn weights: what mu and rho should have got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks._objective import Evaluation
from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.libraries.cut import Key, key_of
from pytest_bnn.libraries.gaussian import PosteriorTensor, in_parts
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
    calls: dict[str, list[LayerCall]] = {}
    for call in found.calls:
        calls.setdefault(call.layer.path, []).append(call)
    rows = []
    for tensor in tensors:
        if tensor.path in left.not_cut:
            continue
        part = _part(tensor, calls.get(tensor.path, []))  # one tensor's at a time: they are in double precision
        if part is not None:
            rows.append(_row(tensor, found, left, part, len(calls[tensor.path])))
    return rows


def _row(
    tensor: PosteriorTensor,
    found: Evaluation,
    left: Evaluation,
    exact: _Part,
    calls: int,
) -> Row:
    eps = torch.finfo(tensor.mu.dtype).eps
    worst = Row(tensor, 0.0, 100 * eps, 1.0, 1.0, False, False)
    for of, parameter, whole, rest, part in zip(
        ("mu", "rho"),
        (tensor.mu_parameter, tensor.rho_parameter),
        found.gradients.as_kept(key_of(tensor)),
        left.gradients.as_kept(key_of(tensor)),
        (tensor.mu_gradient(exact.to_mu), exact.to_rho),
        strict=True,
    ):
        if not parameter.requires_grad:
            continue
        beside, length, size, apart, product = _lengths(whole, rest, part)
        # The parts of the passes and the KL's are added one by one, each time rounded.
        rounding = (calls + 1) * eps * beside + (exact.rounding if of == "rho" else 0.0)
        if not size:
            off, allowed, lost = float(length > max(rounding, 1e-30)), 0.5, False
        else:
            off, allowed = apart / size, 100 * eps + rounding / size
            lost = allowed >= 1
        both = length * size
        visible = size > max(_VISIBLE, 10 * eps) * beside and math.isfinite(size)
        row = Row(
            tensor, off, allowed,
            ratio=length / size if size else 1.0,
            cosine=product / both if both else 1.0,
            lost=lost,
            missing=visible and not lost and length < _MISSING * size,
            of=of, size=size,
        )  # fmt: skip
        # To rho only where nothing is wrong with either: that is what noise has a part in.
        if (of == "rho" and worst.off <= worst.allowed) or row.off / row.allowed > worst.off / worst.allowed:
            worst = row
    return worst


def _lengths(whole: Tensor | None, rest: Tensor | None, part: Tensor) -> tuple[float, float, float, float, float]:
    """Compare ``whole - rest`` with ``part``, in double precision.

    Returns:
        The length of the longer one of ``whole`` and ``rest``, that of their difference, of ``part``, of how far it is
        from the difference, and the product of the two.
    """
    nothing = part.new_zeros(())
    given = (nothing if gradient is None else gradient for gradient in (whole, rest))
    lengths = torch.zeros(5, 1, dtype=torch.float64, device=part.device)
    product = 0.0
    for pieces in in_parts(*given, part):
        one, other, exact = (piece.double() for piece in pieces)
        difference = one - other
        found = (one, other, difference, exact, difference - exact)
        lengths = torch.cat([lengths, torch.stack([piece.norm() for piece in found])[:, None]], 1)
        product += float((difference * exact).sum())
    of_whole, of_rest, length, size, apart = lengths.norm(dim=1).tolist()
    return max(of_whole, of_rest), length, size, apart, product


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


def _part(tensor: PosteriorTensor, calls: Sequence[LayerCall]) -> _Part | None:
    """Sum the data's part of a tensor over its calls; None where one of them does not reveal it, or none has any."""
    part: _Part | None = None
    for call in calls:
        noise = call.noise_of(tensor)
        if noise is None:
            return None
        of_mean, of_noise = (_gradient(call, tensor, index) for index in (0, -1))
        if of_mean is None and of_noise is None:
            continue
        if part is None:
            whole = torch.zeros_like(tensor.mu.detach(), dtype=torch.float64)
            part = _Part(whole, torch.zeros_like(tensor.rho_parameter.detach(), dtype=torch.float64))
        if of_mean is not None:
            part.to_mu += of_mean
        if of_noise is not None:
            part.to_rho += tensor.noise_to_rho(of_noise, noise)
            part.rounding += _rounding(tensor, of_noise, about_mu=call.layer.estimator != "Flipout")
    return part


def _rounding(tensor: PosteriorTensor, gradient: Tensor, *, about_mu: bool) -> float:
    """Return how far off the part to rho may be since the noise is read off a weight, which is rounded beside mu."""
    eps = torch.finfo(tensor.mu.dtype).eps
    size = torch.empty(tensor.mu.shape, dtype=torch.float64, device=tensor.mu.device)
    start = 0
    for mu, of_noise in tensor.with_sigma(tensor.mu.detach()):
        sigma = of_noise.double().clamp_min(1e-300)
        place = size.view(-1)[start : (start := start + len(sigma))]
        place.copy_(((mu.double().abs() if about_mu else 0.0) + 4 * sigma) * eps)
    return float(tensor.noise_to_rho(gradient.abs(), size).norm())


def _gradient(call: LayerCall, tensor: PosteriorTensor, index: int) -> Tensor | None:
    """Return the gradient to what a functional call of a layer used of a tensor."""
    functional = call.functional[index]
    used = functional.weight if tensor.role == "weight" else functional.bias
    if used is None or not (used.retains_grad or used.is_leaf) or used.grad is None:
        return None
    return used.grad.detach() if used.shape == tensor.mu.shape else None


def undifferentiated(found: Evaluation) -> list[PosteriorTensor]:
    """Return the tensors that were drawn with noise in a graph, but without a graph of their own."""
    cut: dict[Key, PosteriorTensor] = {}
    for call in found.calls:
        for tensor in call.noisy():
            drawn = call.functional[-1].weight if tensor.role == "weight" else call.functional[-1].bias
            in_a_graph = output_tensor(call.output).requires_grad and tensor.rho_parameter.requires_grad
            if drawn is not None and in_a_graph and not drawn.requires_grad:
                cut[key_of(tensor)] = tensor
    return list(cut.values())
