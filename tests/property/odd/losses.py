"""Sound training losses: data terms as people write them, and a KL term that is weighed to match."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from tests.property.odd.shapes import CLASSES, Meaning

#: How many batches an epoch has; a batch are the examples.
BATCHES = 30

PASSES, TEMPERATURE = 3, 4.0

#: One forward pass on the batch.
Run: TypeAlias = Callable[[], Any]

#: The parts of a data term: of the model's forward pass, the labels and the teacher's answer.
Term: TypeAlias = Callable[[Run, Tensor, Tensor], Iterator[Tensor]]


@dataclass(frozen=True, slots=True)
class DataTerm:
    """A data term.

    Attributes:
        parts: Gives the parts whose sum it is, one by one: each may be run backward before the next one is made.
        over: Whether it is a mean or a sum over the labels.
        together: Whether a part is made of several forward passes, so that they need noise of their own.
        several: Whether there is more than one forward pass.
    """

    parts: Term
    over: Literal["mean", "sum"] = "mean"
    together: bool = False
    several: bool = False


def _one(value: Callable[[Any, Tensor, Any], Tensor], over: Literal["mean", "sum"] = "mean") -> DataTerm:
    """Make a term of one pass."""

    def parts(run: Run, labels: Tensor, taught: Any) -> Iterator[Tensor]:
        yield value(run(), labels, taught)

    return DataTerm(parts, over)


def _each(value: Callable[[Any, Tensor, Any], Tensor]) -> DataTerm:
    """Make the mean of several passes' terms."""

    def parts(run: Run, labels: Tensor, taught: Any) -> Iterator[Tensor]:
        for _ in range(PASSES):
            yield value(run(), labels, taught) / PASSES

    return DataTerm(parts, several=True)


def _all(value: Callable[[Tensor, Tensor], Tensor]) -> DataTerm:
    """Make a term of several passes' outputs, stacked."""

    def parts(run: Run, labels: Tensor, _taught: Any) -> Iterator[Tensor]:
        yield value(torch.stack([run() for _ in range(PASSES)]), labels)

    return DataTerm(parts, together=True, several=True)


def cross_entropy(scores: Tensor, labels: Tensor, _taught: Any = None) -> Tensor:
    return functional.cross_entropy(scores, labels)


def weighted(scores: Tensor, labels: Tensor, _taught: Any) -> Tensor:
    return functional.cross_entropy(scores, labels, torch.tensor([1.0, 2.0, 0.5]).to(scores))


def softened(scores: Tensor, labels: Tensor, _taught: Any) -> Tensor:
    """Labels as shares, as raters who disagree give them."""
    of, beside = (functional.one_hot((labels + i) % CLASSES, CLASSES).movedim(-1, 1) for i in (0, 1))
    return functional.cross_entropy(scores, (0.8 * of + 0.2 * beside).to(scores))


def distilled(scores: Tensor, _labels: Tensor, taught: Tensor) -> Tensor:
    """From the teacher at a temperature, with its square: Hinton, Vinyals and Dean 2015, section 2."""
    student, target = (scores / TEMPERATURE).log_softmax(1), (taught / TEMPERATURE).softmax(1)
    shares = functional.kl_div(student, target, reduction="none").sum(1).mean()
    return TEMPERATURE**2 * shares


def taught_and_labelled(scores: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
    return 0.7 * distilled(scores, labels, taught) + 0.3 * cross_entropy(scores, labels)


def focal(scores: Tensor, labels: Tensor, _taught: Any) -> Tensor:
    """Lin et al. 2017, equation 4."""
    log = scores.log_softmax(1).gather(1, labels[:, None])
    return -((1 - log.exp()) ** 2 * log).mean()


def of_shares(shares: Tensor, labels: Tensor, _taught: Any = None) -> Tensor:
    return functional.nll_loss(shares.float().clamp_min(1e-6).log(), labels)


def taught_shares(shares: Tensor, _labels: Tensor, taught: Tensor) -> Tensor:
    return functional.kl_div(shares.float().clamp_min(1e-6).log(), taught.float(), reduction="batchmean")


def gaussian(output: Any, labels: Tensor, _taught: Any = None, reduction: str = "mean") -> Tensor:
    mean, log_variance = output
    return functional.gaussian_nll_loss(mean, labels, log_variance.exp(), reduction=reduction)


def of_fixed_noise(output: Tensor, labels: Tensor, _taught: Any) -> Tensor:
    value: Tensor = -Normal(output, 0.5).log_prob(labels).mean()
    return value


def squares(output: Tensor, labels: Tensor, _taught: Any = None) -> Tensor:
    return functional.mse_loss(output, labels)


def binary(scores: Tensor, labels: Tensor, _taught: Any = None) -> Tensor:
    return functional.binary_cross_entropy_with_logits(scores, labels)


TERMS: dict[Meaning, dict[str, DataTerm]] = {
    "scores": {
        "cross-entropy": _one(cross_entropy),
        "its sum": _one(lambda out, y, _: functional.cross_entropy(out, y, reduction="sum"), "sum"),
        "log_softmax": _one(lambda out, y, _: functional.nll_loss(out.log_softmax(1), y)),
        "smoothed labels": _one(lambda out, y, _: functional.cross_entropy(out, y, label_smoothing=0.1)),
        "class weights": _one(weighted),
        "soft targets": _one(softened),
        "distillation": _one(distilled),
        "distillation and labels": _one(taught_and_labelled),
        "focal": _one(focal),
        "mean of losses": _each(cross_entropy),
        "several distillations": _each(distilled),
        "mean scores": _all(lambda passes, y: cross_entropy(passes.mean(0), y)),
        "mean shares": _all(lambda passes, y: functional.nll_loss(passes.softmax(2).mean(0).log(), y)),
    },
    "shares": {
        "likelihood": _one(of_shares),
        "its sum": _one(lambda out, y, _: of_shares(out, y) * len(y), "sum"),
        "the teacher's shares": _one(taught_shares),
        "mean of losses": _each(of_shares),
        "mean shares": _all(lambda passes, y: of_shares(passes.mean(0), y)),
    },
    "sides": {
        "binary": _one(binary),
        "its sum": _one(lambda out, y, _: functional.binary_cross_entropy_with_logits(out, y, reduction="sum"), "sum"),
        "of shares": _one(lambda out, y, _: functional.binary_cross_entropy(out.sigmoid(), y)),
        "weight of ones": _one(
            lambda out, y, _: functional.binary_cross_entropy_with_logits(out, y, pos_weight=torch.full_like(y[0], 2.0))
        ),
        "mean of losses": _each(binary),
        "mean shares": _all(lambda passes, y: functional.binary_cross_entropy(passes.sigmoid().mean(0), y)),
    },
    "numbers": {
        "squares": _one(squares),
        "their sum": _one(lambda out, y, _: functional.mse_loss(out, y, reduction="sum"), "sum"),
        "Huber": _one(lambda out, y, _: functional.huber_loss(out, y)),
        "noise of one size": _one(of_fixed_noise),
        "the teacher's numbers": _one(lambda out, _, taught: functional.mse_loss(out, taught)),
        "mean of losses": _each(squares),
        "mean numbers": _all(lambda passes, y: squares(passes.mean(0), y)),
    },
    "variance": {
        "gaussian": _one(gaussian),
        "its sum": _one(lambda out, y, _: gaussian(out, y, reduction="sum"), "sum"),
        "mean of losses": _each(gaussian),
    },
}


def _by_modules(model: nn.Module) -> Tensor:
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "kl_loss")]
    parts: list[Tensor] = [layer.kl_loss() for layer in layers]
    return torch.stack([part.reshape(()) for part in parts]).sum()


def _summed(model: nn.Module) -> Tensor:
    """Return the KL over all weights, by torch's own formula."""
    total = torch.zeros(())
    for layer in [module for module in model.modules() if hasattr(module, "kl_loss")]:
        for mu, rho in [(n, n.replace("mu_", "rho_")) for n in ("mu_weight", "mu_kernel", "mu_bias")]:
            if getattr(layer, mu, None) is None:
                continue
            role = mu.removeprefix("mu_").replace("kernel", "weight")
            prior = Normal(getattr(layer, f"prior_{role}_mu"), getattr(layer, f"prior_{role}_sigma"))
            posterior = Normal(getattr(layer, mu), functional.softplus(getattr(layer, rho)))
            total = total + kl_divergence(posterior, prior).sum()
    return total


#: The KL terms, and of what they are to be a share beside a mean: of the batches, or of all labels.
KLS: dict[str, tuple[Callable[[nn.Module], Tensor], Literal["batches", "labels"]]] = {
    "get_kl_loss": (get_kl_loss, "batches"),
    "modules": (_by_modules, "batches"),
    "summed": (_summed, "labels"),
}


def weight_of(term: DataTerm, kl: str, labels: Tensor) -> float:
    """Return the weight of the KL term beside a data term on a batch."""
    share = 1 / (BATCHES if KLS[kl][1] == "batches" else BATCHES * labels.numel())
    return share * (labels.numel() if term.over == "sum" else 1)
