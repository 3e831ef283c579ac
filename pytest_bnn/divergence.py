"""The KL term of a network's ELBO, with its gradient, in one pass over the weights."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy
import torch
from torch import Tensor, nn

from pytest_bnn.errors import InputError
from pytest_bnn.posterior import PosteriorTensor, bayesian_layers
from pytest_bnn.threads import share, spread

#: How the KL of single weights is put together: averaged over each tensor, as bayesian-torch does, or summed.
Convention: TypeAlias = Literal["mean per tensor", "sum"]

#: Numbers of a tensor that one thread takes at a time.
_PART = 128 * 2048


def kl(model: nn.Module, *, convention: Convention = "mean per tensor") -> Tensor:
    """Give KL(posterior || prior) of a network, in nats, with its gradient to every mu and rho.

    ``"mean per tensor"`` is what bayesian-torch's ``get_kl_loss`` gives: the mean over each weight and bias tensor,
    summed over tensors. ``"sum"`` is the divergence of an ELBO, the sum over all weights; divide it by the number of
    training examples. Each layer counts once, also inside other Bayesian layers.

    Float32 on the CPU takes one compiled pass for value and gradient together; anything else, and a machine without
    numba, torch's own operations. The closed form is that of two Gaussians (Kingma and Welling 2014, appendix B).

    Args:
        model: The Bayesian network.
        convention: How single weights are put together.

    Returns:
        A scalar, of the parameters' dtype and device.

    Raises:
        InputError: Nothing in the model is Bayesian.
        ValueError: There is no such convention.
    """
    if convention not in ("mean per tensor", "sum"):
        raise ValueError(f"convention must be 'mean per tensor' or 'sum', not {convention!r}")
    tensors = [tensor for layer in bayesian_layers(model) for tensor in layer.tensors]
    if not tensors:
        raise InputError(
            "the model has no Bayesian layer, so it has no KL term", fix="convert it first: convert(model)"
        )
    factors = [1.0 if convention == "sum" else 1 / tensor.count for tensor in tensors]
    divergence = _compiled() if all(map(_is_plain, tensors)) else None
    if divergence is None:
        return _summed(tensors, factors)
    parameters = [parameter for tensor in tensors for parameter in (tensor.mu, tensor.rho)]
    wanted = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
    value: Tensor = _Fused.apply(divergence, tensors, factors, wanted, *parameters)
    return value if bool(torch.isfinite(value)) else _summed(tensors, factors)


def _compiled() -> Any:
    try:
        from pytest_bnn.engine.kernels import divergence
    except Exception:  # numba is missing or cannot work here
        return None
    return divergence


def _is_plain(tensor: PosteriorTensor) -> bool:
    used = (tensor.mu, tensor.rho, tensor.prior_mu, tensor.prior_sigma)
    return all(t.device.type == "cpu" and t.dtype is torch.float32 for t in used) and all(
        t.is_contiguous() for t in used[:2]
    )


def _summed(tensors: list[PosteriorTensor], factors: list[float]) -> Tensor:
    return torch.stack([factor * _by_torch(tensor) for tensor, factor in zip(tensors, factors, strict=True)]).sum()


def _by_torch(tensor: PosteriorTensor) -> Tensor:
    sigma = nn.functional.softplus(tensor.rho, threshold=80)
    ratio, gap = sigma / tensor.prior_sigma, (tensor.mu - tensor.prior_mu) / tensor.prior_sigma
    return (0.5 * (ratio**2 + gap**2 - 1) - torch.log(ratio)).sum()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        divergence: Any,
        tensors: list[PosteriorTensor],
        factors: list[float],
        wanted: bool,
        *parameters: Tensor,
    ) -> Tensor:
        gradients = [torch.empty_like(parameter if wanted else parameter[:0]) for parameter in parameters]
        jobs = []
        for place, (tensor, factor) in enumerate(zip(tensors, factors, strict=True)):
            pair = slice(2 * place, 2 * place + 2)
            prior = [value.expand(tensor.mu.shape) for value in (tensor.prior_mu, tensor.prior_sigma)]
            arrays = [value.detach().flatten() for value in (*parameters[pair], *prior, *gradients[pair])]
            starts = range(0, tensor.count, _PART)
            jobs += [(factor, [array[start : start + _PART].numpy() for array in arrays]) for start in starts]

        def work(_: int, job: Any) -> float:
            factor, (mu, rho, prior_mu, prior_sigma, *to) = job
            part: float = divergence(mu, rho, prior_mu, prior_sigma, numpy.float32(factor), *to)
            return part * float(factor)

        total = sum(spread(range(share()), jobs, work))
        ctx.save_for_backward(*gradients)
        return parameters[0].new_tensor(total)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, None, None, None, *(gradient * saved for saved in ctx.saved_tensors)
