"""The KL term of a network's ELBO, with its gradient, in one pass over the weights."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy
import torch
from torch import Tensor, nn

from pytest_bnn.errors import InputError
from pytest_bnn.libraries.gaussian import SOFTPLUS
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers
from pytest_bnn.sampling.threads import share, spread

#: How the KL of single weights is put together: averaged over each tensor, as bayesian-torch does, or summed.
Convention: TypeAlias = Literal["mean per tensor", "sum"]

#: Numbers of a tensor that one thread takes at a time.
_PART = 128 * 2048


@dataclass(frozen=True, slots=True, eq=False)
class FixedSigma:
    """The part of a network's KL term that sigma and prior decide, computed once by `fixed_sigma`."""

    tensors: tuple[PosteriorTensor, ...]
    priors: tuple[tuple[Tensor, Tensor], ...]
    constants: tuple[float, ...]


def kl(model: nn.Module, *, convention: Convention = "mean per tensor", sigma: FixedSigma | None = None) -> Tensor:
    """Return KL(posterior || prior) of a network, in nats, with its gradient to every mu and rho.

    ``"mean per tensor"`` is what bayesian-torch's ``get_kl_loss`` gives: the mean over each weight and bias tensor,
    summed over tensors. ``"sum"`` is the divergence of an ELBO, the sum over all weights; divide it by the number of
    training examples. Each layer counts once, also inside other Bayesian layers.

    Float32 on the CPU takes one compiled pass for value and gradient together; anything else, and a machine without
    numba, torch's own operations. The closed form is that of two Gaussians (Kingma and Welling 2014, appendix B).

    Args:
        model: The Bayesian network.
        convention: How the KL of single weights is put together: ``"mean per tensor"`` or ``"sum"``.
        sigma: Of this network, by `fixed_sigma`, where neither sigma nor prior has changed since: only mu is read, and
            only mu gets a gradient.

    Returns:
        A scalar, of the parameters' dtype and device.

    Raises:
        InputError: Nothing in the model is Bayesian.
        ValueError: There is no such convention, or ``sigma`` is another network's.
    """
    if convention not in ("mean per tensor", "sum"):
        raise ValueError(f"convention must be 'mean per tensor' or 'sum', not {convention!r}")
    tensors = _tensors(model)
    factors = [1.0 if convention == "sum" else 1 / tensor.count for tensor in tensors]
    if sigma is None:
        return _divergence(tensors, factors)
    known, these = ([(id(t.module), t.role) for t in each] for each in (sigma.tensors, tensors))
    if known != these:
        raise ValueError("sigma is that of another network: compute it by fixed_sigma(model)")
    return _distance(tensors, factors, sigma)


def fixed_sigma(model: nn.Module) -> FixedSigma:
    """Compute the part of a network's KL term that sigma and prior decide, for `kl` while mu alone changes.

    A change of rho or of a prior is not noticed: compute it anew.

    Raises:
        InputError: Nothing in the model is Bayesian.
    """
    tensors = _tensors(model)
    constants = []
    with torch.no_grad():
        for tensor in tensors:
            sigma = tensor.map.of(tensor.rho.double()).expand(tensor.mu.shape)
            ratio = sigma / tensor.prior_sigma.double()
            constants.append(float((0.5 * (ratio.square() - 1) - ratio.log()).sum()))
    return FixedSigma(tensors, tuple(tensor.flat_prior() for tensor in tensors), tuple(constants))


def _tensors(model: nn.Module) -> tuple[PosteriorTensor, ...]:
    tensors = tuple(tensor for layer in bayesian_layers(model) for tensor in layer.tensors)
    if not tensors:
        raise InputError(
            "the model has no Bayesian layer, so it has no KL term", fix="convert it first: convert(model)"
        )
    return tensors


def _divergence(tensors: Sequence[PosteriorTensor], factors: list[float]) -> Tensor:
    kernels = _kernels() if all(map(_is_plain, tensors)) else None
    if kernels is not None:
        priors = [(t.prior_mu.expand(t.mu.shape), t.prior_sigma.expand(t.mu.shape)) for t in tensors]
        value = _compute(kernels.divergence, priors, factors, [p for t in tensors for p in (t.mu, t.rho)])
        if bool(torch.isfinite(value)):
            return value
    return torch.stack([factor * _by_torch(tensor) for tensor, factor in zip(tensors, factors, strict=True)]).sum()


def _by_torch(tensor: PosteriorTensor) -> Tensor:
    sigma = tensor.map.of(tensor.rho).expand(tensor.mu.shape)
    ratio, gap = sigma / tensor.prior_sigma, (tensor.mu - tensor.prior_mu) / tensor.prior_sigma
    return (0.5 * (ratio**2 + gap**2 - 1) - torch.log(ratio)).sum()


def _distance(tensors: Sequence[PosteriorTensor], factors: list[float], sigma: FixedSigma) -> Tensor:
    constant = sum(factor * value for factor, value in zip(factors, sigma.constants, strict=True))
    kernels = _kernels() if all(map(_is_plain, tensors)) else None
    if kernels is not None:
        return _compute(kernels.distance, sigma.priors, factors, [t.mu for t in tensors]) + constant
    scaled = [
        factor * ((t.mu.flatten() - center) / width).square().sum()
        for t, factor, (center, width) in zip(tensors, factors, sigma.priors, strict=True)
    ]
    return 0.5 * torch.stack(scaled).sum() + constant


def _kernels() -> Any:
    try:
        # By its full name: as an attribute of its package it is there even where no import finds it. Compiled there,
        # numba writes a cache that no process can load.
        return importlib.import_module("pytest_bnn.sampling.engine.posterior_kernels")
    except Exception:  # numba is missing or cannot work here
        return None


def _is_plain(tensor: PosteriorTensor) -> bool:
    used = (tensor.mu, tensor.rho, tensor.prior_mu, tensor.prior_sigma)
    return (
        tensor.map is SOFTPLUS
        and tensor.rho.shape == tensor.mu.shape
        and all(t.device.type == "cpu" and t.dtype is torch.float32 for t in used)
        and all(t.is_contiguous() for t in used[:2])
    )


def _compute(
    kernel: Any, priors: Sequence[tuple[Tensor, Tensor]], factors: list[float], parameters: list[Tensor]
) -> Tensor:
    wanted = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
    value: Tensor = _Compiled.apply(kernel, priors, factors, wanted, *parameters)
    return value


class _Compiled(torch.autograd.Function):
    """Sums ``factor * kernel(parameters of a tensor, prior mean, prior sigma, factor, gradients)`` over tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Any,
        priors: Sequence[tuple[Tensor, Tensor]],
        factors: list[float],
        wanted: bool,
        *parameters: Tensor,
    ) -> Tensor:
        gradients = [torch.empty_like(parameter if wanted else parameter[:0]) for parameter in parameters]
        each = len(parameters) // len(factors)
        jobs = []
        for place, (prior, factor) in enumerate(zip(priors, factors, strict=True)):
            of_tensor = slice(each * place, each * (place + 1))
            arrays = [
                [value.detach().flatten().numpy() for value in values]
                for values in (parameters[of_tensor], prior, gradients[of_tensor])
            ]
            jobs += [(factor, arrays, start) for start in range(0, arrays[0][0].size, _PART)]

        def work(_: int, job: Any) -> float:
            factor, (values, prior, to), start = job
            part = slice(start, start + _PART)
            center, width = (value if value.size == 1 else value[part] for value in prior)
            values, to = ([value[part] for value in each] for each in (values, to))
            found: float = kernel(*values, center, width, numpy.float32(factor), *to)
            return found * float(factor)

        total = sum(spread(range(share()), jobs, work))
        ctx.save_for_backward(*gradients)
        return parameters[0].new_tensor(total)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, None, None, None, *(gradient * saved for saved in ctx.saved_tensors)
