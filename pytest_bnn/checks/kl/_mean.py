"""How a KL term holds the mean: its gradient to mu, where mu is and where mu was moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks.kl._fits import tolerance_of
from pytest_bnn.libraries.gaussian import PosteriorTensor


@dataclass(frozen=True, slots=True, eq=False)
class MeanFit:
    """For one tensor, what the loss's gradient to mu has of the KL's, once its drawn weights are cut off.

    Attributes:
        tensor: The tensor.
        reaches: Whether there is such a gradient, here or where mu moved: without one nothing holds mu.
        like_the_prior: Whether it is the KL's to the layer's own prior, element by element.
        slope: How much it changes, in units of the KL's to the layer's own prior.
        residual: The share of that change that is not in proportion to how far mu moved.
    """

    tensor: PosteriorTensor
    reaches: bool
    like_the_prior: bool
    slope: float
    residual: float


def of_the_mean(
    tensor: PosteriorTensor, before: Tensor | None, after: Tensor | None, moved: Tensor, weight: float
) -> MeanFit:
    """Compare the gradient to mu with the KL's of that weight (of the sum over the tensor), in float64.

    Args:
        tensor: Whose mu is where ``before`` was taken.
        before: The gradient to the parameter behind mu.
        after: The same with mu moved.
        moved: How far, in units of mu.
        weight: The weight of the KL, as the gradient to rho shows it.
    """
    prior_mu, prior_sigma = tensor.prior_mu.detach().double(), tensor.prior_sigma.detach().double()
    whole = tensor.mu_gradient(weight * (tensor.mu.detach().double() + moved - prior_mu) / prior_sigma**2)
    step = tensor.mu_gradient(weight * moved / prior_sigma**2)
    nothing = torch.zeros_like(step)
    first, second = (nothing if gradient is None else gradient for gradient in (before, after))
    change, size = second - first, float(step.norm())
    rounding = 4 * torch.finfo(tensor.mu.dtype).eps * float(second.norm())
    if not size or float(change.norm()) <= max(rounding, 1e-12 * size):
        # A prior with a constant slope, such as Laplace's, pulls on mu and does not change.
        return MeanFit(tensor, size == 0 or float(first.norm()) > 1e-12 * size, False, 0.0, 0.0)
    slope = float((change * step).sum()) / size**2
    off = float((second - whole).norm())
    residual = float((change - slope * step).norm()) / float(change.norm())
    return MeanFit(tensor, True, off <= tolerance_of(tensor) * float(whole.norm()), slope, residual)
