"""``kl.present``: does the KL term exist, equal its closed form, and reach every mu and rho?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks.check import Finding, accused, check
from pytest_bnn.libraries import posterior
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject

#: Allowed relative error of the KL and of its gradient; float32 sums over millions of weights are good to 1e-7.
TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
_HALF_TOLERANCE = 5e-2

#: A sigma below this is dead: its gradient is below 1e-8 of a weight's, so no training moves it (docs/faults.md, A6).
DEAD_SIGMA = 1e-8

#: Share of dead sigma in a tensor from which it is worth a warning; a few in a million weights never matter.
DEAD_SHARE = 1e-3

#: What to do where `not_finite` found something.
NOT_FINITE = (
    "sigma must be finite and above 0: an infinite rho comes from moped_delta * abs(weight) above 88, "
    "a sigma of 0 from collapse or half precision; the prior's sigma must be above 0"
)

SUM, MEAN = "sum", "mean per tensor"


@check(
    claim="The KL term exists, is finite and positive, equals the closed form from mu, sigma and prior, "
    "and its gradient reaches every mu and rho.",
    after="estimator.flipout",
)
def present(subject: Subject) -> Finding:
    """Measure whether the KL term exists and is right.

    Compares what ``get_kl_loss`` gives with the closed form for Gaussians in float64, under both conventions in
    use (the sum over all weights, or bayesian-torch's mean over each tensor, summed over tensors), and its
    gradient with the closed form's, tensor by tensor. The verdict is ``warn`` where more than a thousandth of a
    tensor's sigma are dead. Exact: no randomness.

    Args:
        subject: the model alone; see `Subject`.
    """
    return _find(subject)


measure_kl_present, assert_kl_present = present.measure, present.assert_


@dataclass(frozen=True, slots=True)
class _ClosedForm:
    total: float
    averaged: float

    def convention(self, kl: float, allowed: float) -> str | None:
        for name, value in ((MEAN, self.averaged), (SUM, self.total)):
            if math.isclose(kl, value, rel_tol=allowed):
                return name
        return None


def closed_form(tensors: tuple[PosteriorTensor, ...]) -> _ClosedForm:
    """Give the KL of some tensors, summed over weights and, in bayesian-torch's convention, averaged per tensor."""
    sums = [tensor.kl_sum() for tensor in tensors]
    return _ClosedForm(sum(sums), sum(kl / tensor.count for kl, tensor in zip(sums, tensors, strict=True)))


def _find(subject: Subject) -> Finding:
    layers = bayesian_layers(subject.model)
    tensors = tuple(tensor for layer in layers for tensor in layer.tensors)
    frozen = [t.name for t in tensors if t.mu.requires_grad and not t.rho.requires_grad]
    with undisturbed(subject.model, seed=subject.seed), torch.enable_grad():
        for tensor in tensors:
            for parameter in (tensor.mu, tensor.rho):
                parameter.requires_grad_(True)
        kl = posterior.kl(subject.model)
        if kl is None or not layers:
            return _absent(subject)
        gradients = _gradients(kl, tensors)
        value = float(kl.detach())
        sick = not_finite(layers)
    closed = closed_form(tensors)
    allowed = TOLERANCE if kl.dtype in (torch.float32, torch.float64) else _HALF_TOLERANCE
    convention = closed.convention(value, allowed)
    measurements = _measurements(value, closed, convention, tensors)
    if not math.isfinite(value):
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"the KL term is {value}" + (f": {sick[0].path} {sick[0].finding}" if sick else ""),
            measurements=measurements,
            layers=tuple(sick),
            remedy=NOT_FINITE,
        )
    wrong = [] if convention else _wrong_layers(layers, allowed)
    problems = _gradient_problems(tensors, gradients, convention)
    headline = f"KL {value:.6g}, equal to the closed form ({convention})"
    remedy = ""
    twice = posterior.counted_twice(subject.model)
    if convention is None:
        headline = (
            f"KL {value:.6g} is neither the closed form's sum {closed.total:.6g} "
            f"nor its mean per tensor {closed.averaged:.6g}"
        )
        headline += f"; {len(twice)} layers are counted twice" if twice else ""
        remedy = "sum the KL over the innermost Bayesian layers only" if twice else "restore the layers' own kl_loss()"
    elif problems:
        headline = f"the KL term does not reach {len(problems)} of {2 * len(tensors)} tensors: {problems[0].finding}"
        remedy = "keep mu and rho in the graph: no .detach(), .data or no_grad around the KL term"
    elif frozen:
        headline = f"rho is frozen in {len(frozen)} of {len(tensors)} tensors whose mu is trained, {frozen[0]} first"
        remedy = "set requires_grad on rho too: with a frozen sigma the posterior cannot be learned"
    elif value <= 0:
        headline = f"the KL term is {value:.6g}, and a divergence between different distributions is above 0"
        remedy = "check the prior and the sign of the KL term"
    dead = _dead(tensors)
    failed = convention is None or bool(problems) or bool(frozen) or value <= 0
    if dead and not failed:
        headline += f"; {dead[0].finding} in {dead[0].path}"
        remedy = "move weights that are exactly 0 away from it before a MOPED conversion, or set rho there by hand"
    return Finding(
        verdict=Verdict.FAIL if failed else Verdict.WARN if dead else Verdict.PASS,
        headline=headline,
        measurements=measurements,
        threshold=Threshold(
            quantity="relative distance to the closed form",
            observed=min(abs(value / c - 1) if c else math.inf for c in (closed.averaged, closed.total)),
            relation="<=",
            allowed=allowed,
        ),
        layers=tuple(wrong + problems + dead),
        remedy=remedy,
        notes=_notes(convention, closed),
    )


def _absent(subject: Subject) -> Finding:
    orphans = posterior.orphaned_posteriors(subject.model)
    return Finding(
        verdict=Verdict.FAIL,
        headline="there is no KL term: get_kl_loss finds no Bayesian layer"
        + (", only parameters that a traced model kept of them" if orphans else ""),
        threshold=Threshold(quantity="Bayesian layers", observed=0, relation=">=", allowed=1),
        remedy="convert the network, and audit the converted model itself, not one derived from it",
    )


def _gradients(kl: Tensor, tensors: tuple[PosteriorTensor, ...]) -> list[Tensor | None]:
    wanted = [parameter for tensor in tensors for parameter in (tensor.mu, tensor.rho)]
    if not kl.requires_grad:
        return [None] * len(wanted)
    return list(torch.autograd.grad(kl, wanted, allow_unused=True))


def _gradient_problems(
    tensors: tuple[PosteriorTensor, ...], gradients: list[Tensor | None], convention: str | None
) -> list[LayerFinding]:
    found = []
    for index, tensor in enumerate(tensors):
        for role, given, expected in zip(
            ("mu", "rho"), gradients[2 * index : 2 * index + 2], tensor.kl_gradient(), strict=True
        ):
            size = float(expected.norm())
            if not math.isfinite(size) or size == 0:
                continue
            if given is None or not bool(given.any()):
                problem = f"no gradient reaches {role} of {tensor.name}"
            elif convention is None:
                continue
            else:
                scale = tensor.count if convention == MEAN else 1
                error = float((given.double() * scale - expected).norm()) / size
                allowed = GRADIENT_TOLERANCE if given.dtype in (torch.float32, torch.float64) else _HALF_TOLERANCE
                if error <= allowed:
                    continue
                problem = f"the gradient to {role} of {tensor.name} is off by {error:.2g} of its size"
            found.append(accused(tensor, problem))
    return found


def _wrong_layers(layers: tuple[BayesianLayer, ...], allowed: float) -> list[LayerFinding]:
    found = []
    for layer in layers:
        with torch.no_grad():
            value = float(layer.kl())
        closed = closed_form(layer.tensors)
        if closed.convention(value, allowed) is None:
            finding = f"KL {value:.6g}; closed form {closed.averaged:.6g} (mean per tensor) or {closed.total:.6g} (sum)"
            found.append(LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding=finding))
    return found


def not_finite(layers: tuple[BayesianLayer, ...]) -> list[LayerFinding]:
    """Name every tensor of a posterior or prior for which no finite KL exists, and why."""
    found = []
    for layer in layers:
        for tensor in layer.tensors:
            checks = (
                ("mu", ~torch.isfinite(tensor.mu), "NaN or infinite"),
                ("sigma", ~torch.isfinite(tensor.sigma), "NaN or infinite"),
                ("sigma", tensor.sigma <= 0, "0"),
                ("prior sigma", ~(tensor.prior_sigma > 0), "not above 0"),
                ("prior mu", ~torch.isfinite(tensor.prior_mu), "NaN or infinite"),
            )
            for what, bad, problem in checks:
                if bool(bad.any()):
                    finding = f"{tensor.role}: {what} is {problem} in {int(bad.sum()):,} of {tensor.count:,} places"
                    found.append(LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding=finding))
                    break
    return found


def _dead(tensors: tuple[PosteriorTensor, ...]) -> list[LayerFinding]:
    found = []
    for tensor in tensors:
        dead = int((tensor.sigma < DEAD_SIGMA).sum())
        if dead > DEAD_SHARE * tensor.count:
            finding = f"{dead:,} of {tensor.count:,} sigma of the {tensor.role} are dead (below {DEAD_SIGMA:g})"
            found.append(accused(tensor, finding))
    return found


def _measurements(
    value: float, closed: _ClosedForm, convention: str | None, tensors: tuple[PosteriorTensor, ...]
) -> tuple[Measurement, ...]:
    priors = {(float(t.prior_mu.double().mean()), float(t.prior_sigma.double().mean())) for t in tensors}
    prior = ", ".join(f"N({mu:.4g}, {sigma:.4g}^2)" for mu, sigma in sorted(priors)[:3])
    return (
        Measurement(name="KL", value=value, unit="nats", note="as get_kl_loss gives it"),
        Measurement(name="convention", value=convention or "neither"),
        Measurement(name="closed form, sum", value=closed.total, unit="nats"),
        Measurement(name="closed form, mean per tensor", value=closed.averaged, unit="nats"),
        Measurement(
            name="dead sigma",
            value=sum(int((t.sigma < DEAD_SIGMA).sum()) for t in tensors),
            note=f"below {DEAD_SIGMA:g}; no training moves them",
        ),
        Measurement(
            name="prior", value=prior, note="mean over each tensor; of every layer" if len(priors) == 1 else ""
        ),
    )


def _notes(convention: str | None, closed: _ClosedForm) -> tuple[str, ...]:
    if convention != MEAN or not closed.averaged > 0:
        return ()
    return (
        f"bayesian-torch averages the KL over each tensor: it is {closed.total / closed.averaged:.3g} times smaller "
        "than the KL of an ELBO, and every weight of a small tensor counts more than one of a large tensor",
    )
