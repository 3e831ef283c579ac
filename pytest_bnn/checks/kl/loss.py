"""``kl.loss``: does a training loss contain the KL term, and with which weight?

With every eps at 0 a layer's weights are mu, so the data term has exactly no gradient to rho, and the loss's
gradient to rho is ``weight * dKL/drho``, element by element, whatever the loss looks like. The data term does not
depend on the prior either: moving the prior gives a second opinion that tells a missing term from a detached one.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks._objective import FINITE_DERIVATIVE, endless, is_finite, loss_of
from pytest_bnn.checks.check import Finding, accused, check
from pytest_bnn.checks.kl.present import MEAN, NOT_FINITE, SUM, not_finite
from pytest_bnn.checks.values import Count, Positive
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers, shifted_prior, zero_noise
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.records.evidence import Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject

#: Allowed relative error of the weight, its spread between tensors, and the part of a gradient that is not KL.
TOLERANCE = 1e-3

_PRIOR_SHIFT = 1e4

_FINITE_KL = (
    "take get_kl_loss(model) or pytest_bnn.kl(model), finite wherever sigma is above 0: torch.distributions' "
    "kl_divergence divides by the square of sigma, which overflows in float32 below 5e-20; where no sigma is so small, "
    f"{FINITE_DERIVATIVE}"
)


@check(
    claim="The training loss contains the KL term, with the weight that it should have.",
    needs=("loss", "images"),
    after="kl.present",
    either=("kl_weight", "num_batches"),
)
def loss(subject: Subject, *, kl_weight: Positive | None = None, num_batches: Count | None = None) -> Finding:
    """Measure whether a training loss contains the KL term with the weight that it should have.

    Fails where the term is missing, detached, negative, on some tensors only, or has another weight than the
    expected one; without an expected weight it reports the one found. Exact: no randomness.

    Args:
        subject: loss and images, at least; see `Subject`. The loss gets one batch of at most 32 images.
        kl_weight: The weight that the KL term should have, in the convention that the loss uses.
        num_batches: Expect 1 / num_batches.

    Raises:
        ValueError: Both expectations are given, or one is not above 0.
        InputError: The loss raised, or returned no scalar tensor.

    Source: the bound of Blundell et al. 2015, section 3.4, for the weight 1 / number of batches.
    """
    return _find(subject, 1 / num_batches if num_batches is not None else kl_weight)


measure_kl_loss, assert_kl_loss = loss.measure, loss.assert_


@dataclass(frozen=True, slots=True)
class _Fit:
    """The weight of dKL/drho in the loss's gradient to one rho, and the share of the gradient that is not it."""

    tensor: PosteriorTensor
    weight: float
    residual: float


def _find(subject: Subject, expected: float | None) -> Finding:
    tensors = tuple(tensor for layer in bayesian_layers(subject.model) for tensor in layer.tensors)
    if not tensors:
        return Finding(
            verdict=Verdict.FAIL,
            headline="there is no KL term that a loss could contain: the model has no Bayesian layer",
            remedy="convert the network first",
        )
    sick = not_finite(bayesian_layers(subject.model))
    if sick:
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"no loss can contain a finite KL term: {sick[0].path} {sick[0].finding}",
            layers=tuple(sick),
            remedy=NOT_FINITE,
        )
    frozen = [tensor.name for tensor in tensors if not tensor.rho.requires_grad]
    gradients, seen_by_prior = _probe(subject, tensors)
    lost = [tensor for tensor, gradient in zip(tensors, gradients, strict=True) if not is_finite(gradient)]
    if lost:
        return endless(lost, len(tensors), of="rho", remedy=_FINITE_KL)
    candidates = (_fit(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True))
    fits = [fit for fit in candidates if fit is not None]
    convention, weight, spread = _convention([fit for fit in fits if fit.weight != 0], expected)
    absent = [fit for fit in fits if fit.weight == 0]
    strangers = [fit for fit in fits if fit.residual > TOLERANCE]
    uneven = [f for f in fits if f.weight and abs(_in(convention, f) / weight - 1) > TOLERANCE] if weight else []
    problem, remedy = _judge(
        fits=len(fits), absent=len(absent), strangers=strangers, uneven=uneven, frozen=frozen,
        seen_by_prior=seen_by_prior, weight=weight, expected=expected,
    )  # fmt: skip
    offenders = [(f, "the loss has no gradient to its rho") for f in absent]
    offenders += [(f, f"{f.residual:.2g} of the gradient to its rho is not the KL term's") for f in strangers]
    offenders += [(f, f"the KL term has weight {_in(convention, f):.6g} here") for f in uneven]
    share = {SUM: "of the summed KL", MEAN: "of the mean per tensor"}[convention]
    headline = f"the KL term has weight {weight:.6g} {share}"
    headline += "" if expected is None else f" (expected {expected:.6g})"
    return Finding(
        verdict=Verdict.FAIL if problem else Verdict.PASS,
        headline=problem or headline,
        measurements=(
            Measurement(name="weight", value=weight, unit=share),
            Measurement(name="expected weight", value=expected),
            Measurement(name="convention", value=convention if weight else "none"),
            Measurement(name="spread of the weight over tensors", value=spread, unit="relative"),
            Measurement(
                name="largest residual", value=max((f.residual for f in fits), default=0.0), unit="of the gradient"
            ),
            Measurement(name="tensors without the term", value=len(absent) if weight else len(fits)),
            Measurement(name="seen by moving the prior", value=seen_by_prior),
        ),
        threshold=None
        if expected is None
        else Threshold(quantity="weight of the KL term", observed=weight, relation="==", allowed=expected),
        layers=tuple(accused(fit.tensor, f"{fit.tensor.role}: {words}") for fit, words in offenders),
        remedy=remedy,
        notes=_notes(problem, convention, weight, seen_by_prior, tensors),
    )


def _judge(
    *,
    fits: int,
    absent: int,
    strangers: list[_Fit],
    uneven: list[_Fit],
    frozen: list[str],
    seen_by_prior: bool,
    weight: float,
    expected: float | None,
) -> tuple[str, str]:
    """Give what is wrong, in words, and the remedy; two empty strings when nothing is."""
    add = "add weight * get_kl_loss(model) to the loss, with weight = 1 / number of batches"
    if absent == fits and not seen_by_prior:
        return "the KL term is missing from the loss", add
    if absent == fits:
        return "the KL term is in the loss but detached: no gradient reaches rho", (
            "keep the term in the graph: no .detach(), .item() or no_grad around get_kl_loss(model)"
        )
    if frozen:
        return f"rho is frozen in {len(frozen)} tensors, {frozen[0]} first: the loss cannot train their sigma", (
            "set requires_grad on every rho before training"
        )
    if absent:
        return f"the KL term is missing for {absent} of {fits} tensors", (
            "sum the KL term over every Bayesian layer: get_kl_loss(model) on the whole model"
        )
    if weight < 0:
        return f"the KL term has the negative weight {weight:.6g}: training drives the posterior away from the prior", (
            "add the KL term to a loss that is minimized; the ELBO, which is maximized, subtracts it"
        )
    if strangers:
        return f"something else than the KL term pulls on rho in {len(strangers)} of {fits} tensors", (
            "look for weight decay on rho inside the loss, a KL term toward another prior, or noise that the layers "
            "do not draw into their own buffers"
        )
    if uneven:
        return f"the KL term has another weight in {len(uneven)} of {fits} tensors", "weigh every layer's KL alike"
    if expected is not None and abs(weight / expected - 1) > TOLERANCE:
        return f"the KL term has weight {weight:.6g}, {weight / expected:.4g} times the expected {expected:.6g}", (
            "divide the KL term by the number of batches (or examples) that the data term is averaged over"
        )
    return "", ""


def _probe(subject: Subject, tensors: tuple[PosteriorTensor, ...]) -> tuple[list[Tensor | None], bool]:
    """Give the loss's gradients to every rho with every eps at 0, and whether the loss notices another prior."""
    model = subject.model
    with undisturbed(model, seed=subject.seed), zero_noise(model), torch.enable_grad():
        for tensor in tensors:
            tensor.rho.requires_grad_(True)
        value = loss_of(subject)
        gradients: list[Tensor | None] = [None] * len(tensors)
        if value.requires_grad:
            try:
                gradients = list(torch.autograd.grad(value, [t.rho for t in tensors], allow_unused=True))
            except RuntimeError as error:
                raise InputError(
                    f"the loss has no gradient that can be taken ({str(error).splitlines()[0]})",
                    fix="return the loss without calling backward() on it",
                ) from error
        with shifted_prior(model, _PRIOR_SHIFT):
            moved = float(loss_of(subject).detach()) - float(value.detach())
    return gradients, moved != 0


def _fit(tensor: PosteriorTensor, gradient: Tensor | None) -> _Fit | None:
    direction = tensor.kl_gradient()[1].flatten()
    usable = torch.isfinite(direction)
    direction = direction[usable]
    size = float(direction @ direction)
    if size == 0:
        return None
    if gradient is None or not bool(gradient.any()):
        return _Fit(tensor, 0.0, 0.0)
    found = gradient.detach().double().flatten()[usable]
    weight = float(found @ direction) / size
    return _Fit(tensor, weight, float((found - weight * direction).norm() / found.norm()))


def _in(convention: str, fit: _Fit) -> float:
    return fit.weight * fit.tensor.count if convention == MEAN else fit.weight


def _convention(fits: list[_Fit], expected: float | None) -> tuple[str, float, float]:
    """Give the convention under which the weights of most tensors agree, their median, and their spread.

    Tensors of one size agree under both conventions: there the expected weight decides, and MEAN without one.
    """
    best, least = (MEAN, 0.0, 0.0), (math.inf, False, 0.0)
    for convention in (MEAN, SUM):
        weights = [_in(convention, fit) for fit in fits]
        middle = statistics.median_low(weights) if weights else 0.0
        errors = [abs(w / middle - 1) for w in weights] if middle else [0.0]
        off = sum(error > TOLERANCE for error in errors)
        far = expected is not None and abs(middle / expected - 1) > TOLERANCE
        key = (off, far, statistics.median(errors) if off else 0.0)
        if key < least:
            best, least = (convention, middle, max(errors)), key
    return best


def _notes(
    problem: str, convention: str, weight: float, seen_by_prior: bool, tensors: tuple[PosteriorTensor, ...]
) -> tuple[str, ...]:
    notes = []
    if weight and not seen_by_prior:
        notes.append("the loss does not notice when the layers' prior moves: it keeps a prior of its own")
    if weight and convention == MEAN and not problem:
        counts = [tensor.count for tensor in tensors]
        notes.append(
            f"on the KL of an ELBO (the sum over weights) that is a weight of {weight / max(counts):.2g} in the "
            f"largest tensor and {weight / min(counts):.2g} in the smallest"
        )
    return tuple(notes)
