"""How the history is broken that a model's numbers tell: what was loaded, what was trained, and what is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.mutators.case import MOPED_DELTA, Apply, Case, Ways, layer_of
from benchmarks.mutators.posterior import wider
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers


def of_start(layer: BayesianLayer) -> Ways:
    """Return every way in which one layer of a fresh conversion may have another history than the others."""
    yield "start", "never loaded", lambda case: _constructed(layer_of(case, layer))
    yield "start", "rho as constructed", lambda case: _constructed(layer_of(case, layer), mu=False)
    yield "start", "one sigma a tensor", _each(layer, _one_sigma)
    yield "start", "sigma scattered", _each(layer, _scattered)
    yield "start", "mu moved, sigma kept", _each(layer, _moved)
    yield "start", "mu and sigma moved", _each(layer, _moved, _scattered)


def of_training(layer: BayesianLayer) -> Ways:
    """Return every way in which one layer of a fine-tuned conversion may have another history than the others."""
    yield "trained", "never loaded", lambda case: _constructed(layer_of(case, layer))
    yield "trained", "left as converted", _each(layer, _mu_kept, _as_converted)
    yield "trained", "sigma left as converted", _each(layer, _as_converted)
    yield "trained", "mu left as converted", _each(layer, _mu_kept)
    yield "trained", "sigma of the new mu", _each(layer, lambda tensor, _: _as_converted(tensor, tensor.mu.detach()))
    yield "trained", "sigma permuted", _each(layer, lambda tensor, _: tensor.rho.copy_(tensor.rho.roll(1, 0)))
    yield "trained", "mu permuted", _each(layer, lambda tensor, _: tensor.mu.copy_(tensor.mu.roll(1, 0)))


def of_start_of_all() -> Ways:
    """Return every way in which a whole fresh conversion may contradict what is said of it."""
    yield "stage", "told to be fine-tuned", lambda case: setattr(case, "stage", "finetuned")
    yield "stage", "told to be a conversion", lambda case: setattr(case, "stage", "converted")
    yield "stage", "never loaded", _never_loaded


def of_training_of_all() -> Ways:
    """Return every way in which a whole fine-tuned conversion may contradict what is said of it."""
    yield "trained stage", "told to be fine-tuned", lambda case: setattr(case, "stage", "finetuned")
    yield "trained stage", "told to be a conversion", lambda case: setattr(case, "stage", "converted")
    yield "trained stage", "every sigma left as converted", _all(_as_converted)
    yield "trained stage", "every mu left as converted", _all(_mu_kept)


#: Changes a posterior tensor, given the teacher's.
Change = Callable[[PosteriorTensor, Tensor], object]


def _each(layer: BayesianLayer, *changes: Change) -> Apply:
    def apply(case: Case) -> None:
        with torch.no_grad():
            for tensor in layer_of(case, layer).tensors:
                weight = getattr(case.teacher.get_submodule(layer.path), tensor.role).detach()
                for change in changes:
                    change(tensor, weight)

    return apply


def _all(change: Change) -> Apply:
    def apply(case: Case) -> None:
        for layer in bayesian_layers(case.model):
            _each(layer, change)(case)

    return apply


def _constructed(layer: BayesianLayer, *, mu: bool = True) -> None:
    module: Any = layer.module
    kept = {tensor.mu_name: tensor.mu.detach().clone() for tensor in layer.tensors}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module.init_parameters()
    if not mu:
        with torch.no_grad():
            for name, value in kept.items():
                getattr(module, name).copy_(value)


def _never_loaded(case: Case) -> None:
    for layer in bayesian_layers(case.model):
        _constructed(layer)


def _rho(sigma: Tensor) -> Tensor:
    return sigma.double().expm1().log()


def _one_sigma(tensor: PosteriorTensor, _: Tensor) -> None:
    tensor.rho.fill_(float(_rho(tensor.sigma.mean())))


def _scattered(tensor: PosteriorTensor, _: Tensor) -> None:
    tensor.rho.copy_(wider(torch.exp(0.3 * _noise(tensor)))(tensor.rho))


def _moved(tensor: PosteriorTensor, _: Tensor) -> None:
    tensor.mu.add_(0.1 * float(tensor.mu.abs().mean()) * _noise(tensor))


def _noise(tensor: PosteriorTensor) -> Tensor:
    return torch.randn(tensor.mu.shape, generator=torch.Generator().manual_seed(7))


def _as_converted(tensor: PosteriorTensor, weight: Tensor) -> None:
    tensor.rho.copy_(_rho(MOPED_DELTA * weight.abs()))


def _mu_kept(tensor: PosteriorTensor, weight: Tensor) -> None:
    tensor.mu.copy_(weight)
