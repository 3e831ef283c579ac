"""How the training loss is broken: its data term, that term's size, and the weight of the KL."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.mutators.case import BATCHES, EXAMPLES, WEIGHTS, Apply, Batch, Case, Loss, Ways, cross_entropy, loss
from pytest_bnn import kl
from pytest_bnn.libraries.posterior import bayesian_layers, zero_noise


def of_loss(case: Case) -> Ways:
    """Return every way to break the loss of a case."""
    for name, term in _DATA_TERMS.items():
        yield "data term", name, _with(_data(term))
    for factor in WEIGHTS:
        yield "data term", f"scaled by {factor}", _with(_data(_scaled(cross_entropy, factor)))
        yield "KL weight", f"scaled by {factor}", _with(_kl(_scaled(_term, factor)))
        yield "KL weight", f"summed, by examples, scaled by {factor}", _by_examples(factor)
    for name, term in _KL_TERMS.items():
        yield "KL weight", name, _with(_kl(term))
    yield "KL weight", "summed, by examples", _by_examples(1)
    for factor in (10, 0.125):
        yield "loss", f"scaled by {factor}", _with(_scaled(loss, factor))
    yield "loss", "several passes", _with(_data(_several))
    yield "loss", "a backward for each of several passes", _with(_backward_for_each)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in case.model.modules()):
        yield "loss", "teacher in train mode", _distilling(train=True)
    yield "loss", "teacher in eval mode", _distilling(train=False)


def _with(new: Loss) -> Apply:
    def apply(case: Case) -> None:
        case.loss = new

    return apply


def _data(term: Loss) -> Loss:
    return lambda model, batch: term(model, batch) + get_kl_loss(model) / BATCHES


def _kl(term: Loss) -> Loss:
    return lambda model, batch: cross_entropy(model, batch) + term(model, batch)


def _scaled(term: Loss, by: float) -> Loss:
    return lambda model, batch: by * term(model, batch)


# --- the data term -----------------------------------------------------------------------------------------------


def _at_the_mean(model: nn.Module, batch: Batch) -> Tensor:
    with zero_noise(model):
        return cross_entropy(model, batch)


def _batch(change: Callable[[Tensor, Any], Batch]) -> Loss:
    return lambda model, batch: cross_entropy(model, change(*batch))


def _order(images: Tensor, labels: Any) -> Batch:
    order = torch.randperm(len(images))
    return images[order], labels[order]


def _several(model: nn.Module, batch: Batch) -> Tensor:
    return torch.stack([cross_entropy(model, batch) for _ in range(3)]).mean()


def _backward_for_each(model: nn.Module, batch: Batch) -> Tensor:
    total = torch.zeros(())
    for _ in range(3):
        part = loss(model, batch) / 3
        part.backward()
        total = total + part.detach()
    return total


_DATA_TERMS: dict[str, Loss] = {
    "detached": lambda m, b: cross_entropy(m, b).detach(),
    "a number": lambda m, b: torch.tensor(cross_entropy(m, b).item()),
    "left out": lambda m, b: torch.zeros(()),
    "times 0": lambda m, b: 0 * cross_entropy(m, b),
    "of a copy": lambda m, b: cross_entropy(copy.deepcopy(m), b),
    "at the mean": _at_the_mean,
    "sign turned": lambda m, b: -cross_entropy(m, b),
    "labels rolled": _batch(lambda images, labels: (images, labels.roll(1))),
    "images rolled": _batch(lambda images, labels: (images.roll(1, 0), labels)),
    "one row for all": _batch(lambda images, labels: (images[:1].expand_as(images), labels)),
    "scores for log-probabilities": lambda m, b: functional.nll_loss(m(b[0]), _labels(b)),
    "one score": lambda m, b: -m(b[0])[:, :1].log_softmax(1).mean(),
    "softmax twice": lambda m, b: functional.cross_entropy(m(b[0]).softmax(1), _labels(b)),
    "share of wrong answers": lambda m, b: (m(b[0]).argmax(1) != b[1]).float().mean(),
    "of half the rows": _batch(lambda images, labels: (images[::2], labels[::2])),
    "rows in another order": _batch(_order),
    "log_softmax and nll": lambda m, b: functional.nll_loss(m(b[0]).log_softmax(1), _labels(b)),
    "smoothed labels": lambda m, b: functional.cross_entropy(m(b[0]), _labels(b), label_smoothing=0.1),
}


def _labels(batch: Batch) -> Tensor:
    assert batch[1] is not None
    return batch[1]


def _distilling(*, train: bool) -> Apply:
    """Let half of the data term be a distance to the teacher's outputs."""

    def apply(case: Case) -> None:
        teacher = case.teacher = copy.deepcopy(case.teacher)

        def distilled(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                target = teacher.train(train)(batch[0]).softmax(1)
            return functional.cross_entropy(model(batch[0]), target)

        case.loss = _data(distilled)

    return apply


# --- the KL term -------------------------------------------------------------------------------------------------


def _term(model: nn.Module, _: Batch) -> Tensor:
    term: Tensor = get_kl_loss(model) / BATCHES
    return term


def _by_hand(model: nn.Module, part: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Return the mean of a part over each tensor, given mu, sigma and those of the prior, summed over the tensors."""
    values = []
    for t in (tensor for layer in bayesian_layers(model) for tensor in layer.tensors):
        prior = getattr(t.module, t.prior_mu_name), getattr(t.module, t.prior_sigma_name)
        values.append(part(t.mu, functional.softplus(t.rho), *prior).mean())
    return torch.stack(values).sum() / BATCHES


def _decay_of_rho(model: nn.Module) -> Tensor:
    return torch.stack([t.rho.square().mean() for layer in bayesian_layers(model) for t in layer.tensors]).sum()


def _gaussian(mu: Tensor, sigma: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (scale / sigma).log() + (sigma.square() + (mu - mean).square()) / (2 * scale.square()) - 0.5


def _in_mode(*, training: bool) -> Loss:
    return lambda model, batch: _term(model, batch) if model.training is training else torch.zeros(())


_KL_TERMS: dict[str, Loss] = {
    "0": lambda m, b: torch.zeros(()),
    "negative": lambda m, b: -_term(m, b),
    "detached": lambda m, b: _term(m, b).detach(),
    "in eval mode only": _in_mode(training=False),
    "in train mode only": _in_mode(training=True),
    "summed, by batches": lambda m, b: kl(m, convention="sum") / BATCHES,
    "by hand": lambda m, b: _by_hand(m, _gaussian),
    "without mu": lambda m, b: _by_hand(m, lambda mu, sigma, mean, scale: _gaussian(mean, sigma, mean, scale)),
    "mu detached": lambda m, b: _by_hand(m, lambda mu, *rest: _gaussian(mu.detach(), *rest)),
    "sigma detached": lambda m, b: _by_hand(m, lambda mu, sigma, *rest: _gaussian(mu, sigma.detach(), *rest)),
    "prior that follows mu": lambda m, b: _by_hand(m, lambda mu, sigma, _, scale: _gaussian(mu, sigma, mu, scale)),
    "beside weight decay on mu": lambda m, b: _term(m, b) + 1e-2 * _by_hand(m, lambda mu, *_: mu.square()),
    "beside weight decay on rho": lambda m, b: _term(m, b) + 1e-2 * _decay_of_rho(m),
}


def _by_examples(factor: float) -> Apply:
    """Share a summed KL among the examples, and say how many these are."""

    def apply(case: Case) -> None:
        case.loss = _kl(lambda m, b: factor * kl(m, convention="sum") / EXAMPLES)
        case.options = {"kl.loss": {"num_batches": None, "num_data": EXAMPLES}}

    return apply
