"""``kl.present``: does the KL term exist, equal its closed form, and reach every mu and rho?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import BAYESIAN_LAYERS, Finding, at_fault, not_applicable
from pytest_bnn.checks.kl._sick import NOT_FINITE, TOO_FAR, all_zero, counted, not_finite, overflowing
from pytest_bnn.checks.kl._zeros import DEAD_SIGMA, zeros_of
from pytest_bnn.libraries import posterior
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers, is_bayesian
from pytest_bnn.libraries.protocol import Convention, tensors_of
from pytest_bnn.libraries.registry import adapters_of, clashes, has_kl
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.sampling.own import unwritten_by_kl
from pytest_bnn.subject import Subject

#: Allowed relative error of the KL and of its gradient; float32 sums over millions of weights are good to 1e-7.
TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3
_HALF_TOLERANCE = 5e-2

_ROLES: dict[Literal["mu", "rho"], int] = {"mu": 0, "rho": 1}

SUM: Convention = "sum"
MEAN: Convention = "mean per tensor"


@check(
    claim="The KL term exists, is finite and positive, equals the closed form from mu, sigma and prior, "
    "and its gradient reaches every mu and rho.",
    can=("mean_field", "divergence"),
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
    """The KL of some tensors in each convention, and which of these the library may use."""

    values: dict[Convention, float]
    usual: tuple[Convention, ...]

    def convention(self, kl: float, allowed: float) -> Convention | None:
        return next((c for c in self.usual if math.isclose(kl, self.values[c], rel_tol=allowed)), None)

    def __str__(self) -> str:
        return " or ".join(f"{self.values[convention]:.6g} ({convention})" for convention in self.usual)


def closed_form(layers: Sequence[BayesianLayer]) -> _ClosedForm:
    """Return the KL of some layers: summed, averaged over each tensor, averaged over all weights."""
    tensors = tensors_of(layers)
    sums = [tensor.kl_sum() for tensor in tensors]
    values: dict[Convention, float] = {
        "sum": sum(sums),
        "mean per tensor": sum(kl / tensor.count for kl, tensor in zip(sums, tensors, strict=True)),
        "mean over all weights": sum(sums) / max(1, sum(tensor.count for tensor in tensors)),
    }
    return _ClosedForm(values, layers[0].adapter.conventions)


def _find(subject: Subject) -> Finding:
    layers = bayesian_layers(subject.model)
    tensors = tensors_of(layers)
    frozen = [t.name for t in tensors if t.mu_parameter.requires_grad and not t.rho_parameter.requires_grad]
    own = _own_sum(subject.model)
    spared = unwritten_by_kl(subject.model) if own is None else ()
    with undisturbed(subject.model, seed=subject.seed, unwritten=spared), torch.enable_grad():
        for tensor in tensors:
            for parameter in (tensor.mu_parameter, tensor.rho_parameter):
                parameter.requires_grad_(True)
        try:
            kl = posterior.kl(subject.model) if own is None else own.kl_loss()  # type: ignore[operator]
        except posterior.KlError as error:
            if not layers or not all(layer.adapter.brings_own_kl(layer) for layer in layers):
                raise
            return not_applicable(
                f"the layers compute their KL by a kl_loss() of their own, which raised {error}: "
                "the claim is about its value; make it run without arguments"
            )
        if not layers:
            return _absent(subject)
        if kl is None:
            return not_applicable(
                f"the layers have no kl_loss(), {called(layers[0].path)} first: what the loss takes as "
                "their KL is judged by kl.loss alone"
            )
        gradients = _gradients(kl, tensors)
        value = float(kl.detach())
        sick = not_finite(layers)
    closed = closed_form(layers)
    allowed = TOLERANCE if kl.dtype in (torch.float32, torch.float64) else _HALF_TOLERANCE
    convention = closed.convention(value, allowed)
    measurements = _measurements(value, closed, convention, tensors, layers[0].adapter.words.kl)
    wrong = [] if convention or sick else _wrong_layers(layers, allowed)
    libraries = [adapter.name for adapter in adapters_of(subject.model)]
    if len(libraries) > 1 and not convention and not sick and not wrong:
        return not_applicable(
            f"the layers are of {' and '.join(libraries)}, which put a KL together in their own ways, so that there is "
            "no one sum to compare with; each layer's own is right, and the loss's is judged by kl.loss: "
            "pytest_bnn.kl(model) puts all together in one way"
        )
    if wrong and (kinds := _own_kinds(layers, wrong)):
        return not_applicable(
            f"{called(wrong[0].path)} computes its KL by the kl_loss() of {kinds[0]}, which is not that "
            f"of two Gaussians with the layer's prior ({wrong[0].finding}): for a prior of one's own there is no "
            "closed form to compare it with"
        )
    if not math.isfinite(value):
        far = overflowing(layers)
        culprits = sick or far or wrong
        limits = torch.finfo(kl.dtype)
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"the KL term is {value}"
            + (f": {called(culprits[0].path)} ({culprits[0].finding})" if culprits else ""),
            measurements=(*measurements, *counted(sick), *all_zero(tensors)),
            layers=tuple(culprits),
            remedy=NOT_FINITE
            if sick
            else TOO_FAR
            if far
            else f"compute it in float32: beyond {limits.max:g} a number of {limits.dtype} is infinite"
            if limits.bits < 32
            else "restore the layers' own kl_loss(): the KL of these mu, sigma and priors is finite",
        )
    if all(tensor.is_prior() for tensor in tensors) and abs(value) <= allowed:
        return not_applicable(
            f"every posterior is still its prior, so that the KL term is {value:.3g}, as it should, without a "
            "gradient: audit again after a step of training"
        )
    problems = _gradient_problems(tensors, gradients, convention)
    headline = f"the KL term is {value:.6g}, equal to the closed form ({convention})"
    remedy = ""
    twice = posterior.counted_twice(subject.model)
    if convention is None:
        headline = f"the KL term is {value:.6g}, and the closed form is {closed}"
        headline += f"; {len(twice)} layers are counted twice" if twice else ""
        remedy = "sum the KL over the innermost Bayesian layers only" if twice else "restore the layers' own kl_loss()"
    elif problems:
        headline = f"the KL term does not reach {len(problems)} of {2 * len(tensors)} tensors: {problems[0].finding}"
        remedy = "keep mu and rho in the graph: no .detach(), .data or no_grad around the KL term"
    elif frozen:
        headline = f"rho is frozen in {len(frozen)} of {len(tensors)} tensors whose mu is trained, `{frozen[0]}` first"
        remedy = "set requires_grad on rho too: with a frozen sigma the posterior cannot be learned"
    elif value <= 0:
        headline = f"the KL term is {value:.6g}, and a divergence between different distributions is above 0"
        remedy = "check the prior and the sign of the KL term"
    failed = convention is None or bool(problems) or bool(frozen) or value <= 0
    zeros = zeros_of(layers, subject.teacher)
    odd = zeros.dead or zeros.noisy
    if odd and not failed:
        headline += f"; {odd[0].finding} in {called(odd[0].path)}"
        remedy = zeros.remedy
    return Finding(
        verdict=Verdict.FAIL if failed else Verdict.WARN if odd else Verdict.PASS,
        headline=headline,
        measurements=measurements,
        threshold=Threshold(
            quantity="relative distance to the closed form",
            observed=min(abs(value / c - 1) if c else math.inf for c in (closed.values[c] for c in closed.usual)),
            relation="<=",
            allowed=allowed,
        ),
        layers=tuple(wrong + problems + zeros.dead + zeros.noisy),
        remedy=remedy,
        notes=(*_notes(convention, closed), *zeros.notes, *_calling_notes(subject.model, own)),
    )


def _own_sum(model: nn.Module) -> nn.Module | None:
    """Return the model itself where it brings a ``kl_loss()`` of its own that adds up its layers'.

    ``get_kl_loss`` would count each of them again.
    """
    if is_bayesian(model) or not has_kl(model) or not posterior.counted_twice(model):
        return None
    return model


def _own_kinds(layers: Sequence[BayesianLayer], wrong: list[LayerFinding]) -> list[str]:
    """Name the classes that bring a KL of their own, where all that are off do."""
    by_path = {layer.path: layer for layer in layers}
    off = [by_path[finding.path] for finding in wrong]
    return [type(layer.module).__name__ for layer in off] if all(la.adapter.brings_own_kl(la) for la in off) else []


def _calling_notes(model: nn.Module, own: nn.Module | None) -> list[str]:
    notes = []
    if own is not None:
        notes.append(
            "the model's own kl_loss() was judged; get_kl_loss(model) counts every layer again beside it: take the one "
            "or pytest_bnn.kl(model)"
        )
    if paths := clashes(model):
        notes.append(
            f"{called(paths[0])} has an attribute kl_loss that is no method without arguments, so that "
            "get_kl_loss(model) raises: rename it, or take pytest_bnn.kl(model)"
        )
    return notes


def _absent(subject: Subject) -> Finding:
    orphans = posterior.orphaned_posteriors(subject.model)
    return Finding(
        verdict=Verdict.FAIL,
        headline="there is no KL term: get_kl_loss finds no Bayesian layer"
        + (", only parameters that a traced model kept of them" if orphans else ""),
        measurements=(Measurement(name=BAYESIAN_LAYERS, value=0),),
        threshold=Threshold(quantity="Bayesian layers", observed=0, relation=">=", allowed=1),
        remedy="convert the network, and audit the converted model itself, not one derived from it",
    )


def _gradients(kl: Tensor, tensors: tuple[PosteriorTensor, ...]) -> list[Tensor | None]:
    wanted = [parameter for tensor in tensors for parameter in (tensor.mu_parameter, tensor.rho_parameter)]
    if not kl.requires_grad:
        return [None] * len(wanted)
    return list(torch.autograd.grad(kl, wanted, allow_unused=True))


def _gradient_problems(
    tensors: tuple[PosteriorTensor, ...], gradients: list[Tensor | None], convention: Convention | None
) -> list[LayerFinding]:
    found = []
    total = sum(tensor.count for tensor in tensors)
    for index, tensor in enumerate(tensors):
        for role, place in _ROLES.items():
            given, expected = gradients[2 * index + place], tensor.kl_gradient(role)
            size = float(expected.norm())
            at_the_prior = tensor.mu_is_the_prior if role == "mu" else tensor.sigma_is_the_prior
            if not math.isfinite(size) or size == 0 or at_the_prior():
                continue
            if given is None or not bool(given.any()):
                problem = f"no gradient reaches {role} of `{tensor.name}`"
            elif convention is None:
                continue
            else:
                scale = {"mean per tensor": tensor.count, "mean over all weights": total, "sum": 1}[convention]
                error = float(expected.sub_(given.double().mul_(scale)).norm()) / size
                allowed = GRADIENT_TOLERANCE if given.dtype in (torch.float32, torch.float64) else _HALF_TOLERANCE
                if error <= allowed:
                    continue
                problem = f"the gradient to {role} of `{tensor.name}` is off by {error:.2g} of its size"
            found.append(at_fault(tensor, problem))
    return found


def _wrong_layers(layers: Sequence[BayesianLayer], allowed: float) -> list[LayerFinding]:
    found = []
    for layer in layers:
        with torch.no_grad():
            value = float(layer.kl())
        closed = closed_form([layer])
        if closed.convention(value, allowed) is None and not math.isclose(value, closed.values["sum"], rel_tol=allowed):
            finding = f"its KL is {value:.6g}, and the closed form is {closed}"
            found.append(LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding=finding))
    return found


def _measurements(
    value: float, closed: _ClosedForm, convention: str | None, tensors: tuple[PosteriorTensor, ...], term: str
) -> tuple[Measurement, ...]:
    priors = {tuple(float(p.detach().double().mean()) for p in (t.prior_mu, t.prior_sigma)) for t in tensors}
    prior = ", ".join(f"N({mu:.4g}, {sigma:.4g}^2)" for mu, sigma in sorted(priors)[:3])
    return (
        Measurement(name="KL", value=value, unit="nats", note=f"as {term.split('(')[0]} gives it"),
        Measurement(name="convention", value=convention or "neither"),
        *(
            Measurement(name=f"closed form, {name}", value=closed.values[name], unit="nats")
            for name in sorted(closed.usual, key=lambda name: name != "sum")
        ),
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
    averaged = closed.values["mean per tensor"]
    if convention != "mean per tensor" or not averaged > 0:
        return ()
    return (
        f"bayesian-torch averages the KL over each tensor: it is {closed.values['sum'] / averaged:.3g} times smaller "
        "than the KL of an ELBO, and every weight of a small tensor counts more than one of a large tensor",
    )
