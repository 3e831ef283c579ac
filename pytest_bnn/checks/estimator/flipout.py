"""``estimator.flipout``: are Flipout's signs drawn once for each example, and is its noise the posterior's?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.libraries.capture import capture
from pytest_bnn.libraries.gaussian import not_finite
from pytest_bnn.libraries.posterior import BayesianLayer, bayesian_layers, zero_sigma
from pytest_bnn.network.calling import forward, output_tensor
from pytest_bnn.network.graph import leaves_behind
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import Certainty, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.normal import ROUNDING, Sums
from pytest_bnn.subject import Subject

#: Calls of each layer by itself, on so many examples.
PASSES = 16
_IMAGES = 2


@check(
    claim="Flipout draws its signs once for each example and channel, and what it adds to an output has mean 0 and the "
    "posterior's variance.",
    needs=("images",),
    can=("draws", "mean_mode", "mean_field"),
    sampled=True,
    after="noise.posterior",
)
def flipout(subject: Subject, *, budget: Budget) -> Finding:
    """Measure whether Flipout's noise is that of the posterior, example by example.

    Signs that are drawn for each pixel or position average out where a layer's output is pooled: single outputs have
    the posterior's variance, pooled ones much less. That the signs are constant over positions is exact. Each layer is
    called by itself 16 times on its own input, and its outputs are pooled over positions: a linear function of the
    weights, so that mean and variance under the posterior are known in closed form. Layers with signs of each example
    must have that mean (z-test) and that variance (chi-square test); for the others the factor by which the pooled
    spread is wrong is the evidence of a warning: every convolution of bayesian-torch 0.5.0 draws its signs per pixel.

    Args:
        subject: images, at least; see `Subject`. Two of them are used.
        budget: Error rates; those in force when None.

    Source: Wen et al. 2018, "Flipout: efficient pseudo-independent weight perturbations on mini-batches", section 3.
    """
    return _find(subject, budget)


measure_estimator_flipout, assert_estimator_flipout = flipout.measure, flipout.assert_


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One layer: whether its signs are those of examples, its pooled deviations in units of the posterior's.

    ``slack`` is the mean, over the channels, of the most by which rounding moves a deviation; ``left_out`` counts the
    channels whose noise is that of rounding.
    """

    layer: BayesianLayer
    per_example: bool
    deviations: Tensor
    slack: float
    left_out: int

    @property
    def factor(self) -> float:
        """The pooled spread, relative to that of the posterior."""
        return float(self.deviations.square().mean().sqrt())

    @property
    def finite(self) -> bool:
        """Whether its noise holds neither NaN nor infinity."""
        return not_finite(self.deviations) == 0

    def p(self) -> tuple[float, str]:
        """Return the smaller p-value of mean 0 and variance 1, and what it means in words."""
        if not self.finite:
            return 0.0, "it is NaN or infinite"
        flat = self.deviations.flatten()
        sums = Sums(count=flat.numel(), total=float(flat.sum()), squares=float(flat.square().sum()), slack=self.slack)
        mean, variance = sums.mean_p(), sums.variance_p()
        if mean <= variance:
            return mean, f"its noise has the mean {float(flat.mean()):.3g} standard deviations, not 0"
        return variance, f"its pooled noise has {self.factor:.4g} times the spread of the posterior"


#: Why there is nothing to judge, and how there would be.
_NO_FLIPOUT = (
    "the model has no Flipout layer, and the claim is about the signs that such draw for each example: it applies to "
    "conversions with type='Flipout'"
)


def _find(subject: Subject, budget: Budget) -> Finding:
    found = bayesian_layers(subject.model)
    flipout = [layer for layer in found if layer.estimator == "Flipout"]
    if not flipout:
        return not_applicable(_NO_FLIPOUT)
    flipout = [la for la in flipout if not not_finite(*(values for t in la.tensors for values in (t.mu, t.sigma)))]
    if not flipout:
        return not_applicable(
            "every Flipout layer's posterior holds NaN or infinity: see kl.present, and load or train its weights "
            "again; the claim is about noise of a finite width"
        )
    with undisturbed(subject.model, seed=subject.seed):
        inputs = _inputs(subject, flipout)
        for parameter in subject.model.parameters():
            parameter.requires_grad_(True)
        calling = [layer for layer in flipout if layer.path in inputs]
        closed = [layer for layer in calling if not _has_a_gradient(layer, inputs[layer.path])]
        rows = [_row(layer, inputs[layer.path]) for layer in calling if layer not in closed]
    left_out = sum(row.left_out for row in rows)
    rows = [row for row in rows if row.deviations.numel()]
    notes = tuple(
        f"not judged: {called(layer.path)}, since its output has no gradient to its weights, which tells "
        "how wide its noise has to be; see loss.data"
        for layer in closed
    )
    if not rows:
        if closed:
            return not_applicable(notes[0].removeprefix("not judged: "))
        if left_out:
            return not_applicable(
                f"no Flipout layer with noise that shows is called: that of {left_out} output channels is below "
                f"{1 / ROUNDING:.0f} times their rounding; give a sigma that shows: audit it in a wider dtype "
                "(model.float()), or make it with convert(teacher, moped_delta=...) of a larger delta"
            )
        return not_applicable(
            "no Flipout layer with noise is called; give images on which the network runs through one, and a sigma "
            "that is not 0"
        )
    tested = [row for row in rows if row.per_example or not row.finite]
    wrong = [(row, *row.p()) for row in tested]
    smallest = min((p for _, p, _ in wrong), default=1.0)
    corrected = min(1.0, smallest * 2 * max(1, len(tested)))
    bad = [(row, words) for row, p, words in wrong if p * 2 * len(tested) < budget.alpha]
    scattered = sorted(
        (row for row in rows if not row.per_example and row.finite), key=lambda row: abs(math.log(row.factor or 1e-300))
    )[::-1]
    layers = [_says(row, words) for row, words in bad] + [
        _says(
            row,
            f"its signs are drawn for each position: pooled over positions its noise has {row.factor:.3g} times the "
            "posterior's spread",
        )
        for row in scattered
    ]
    return _finding(rows, bad, scattered, tuple(layers), corrected, budget, notes)


def _finding(
    rows: list[_Row],
    bad: list[tuple[_Row, str]],
    scattered: list[_Row],
    layers: tuple[LayerFinding, ...],
    corrected: float,
    budget: Budget,
    notes: tuple[str, ...],
) -> Finding:
    verdict, remedy = Verdict.PASS, ""
    headline = f"{len(rows)} Flipout layers draw signs for each example, and their noise is the posterior's"
    if scattered:
        verdict = Verdict.WARN
        factor = scattered[0].factor
        headline = (
            f"{len(scattered)} of {len(rows)} Flipout layers draw signs for each position: pooled, the noise of "
            f"{called(scattered[0].layer.path)} has {factor:.3g} times the spread of its posterior"
        )
        remedy = "convert with type='Reparameterization', whose noise is the posterior's after pooling too"
    threshold = Threshold(
        quantity="smallest p-value, corrected", observed=corrected, relation=">=", allowed=budget.alpha
    )
    if scattered and not bad:
        threshold = Threshold(
            quantity="layers with signs for each position", observed=len(scattered), relation="==", allowed=0
        )
    if bad:
        verdict = Verdict.FAIL
        headline = f"the noise of {called(bad[0][0].layer.path)} is not the posterior's: {bad[0][1]}"
        remedy = "add F(x * s, sigma * eps) * r to the mean output, with signs s and r and eps from N(0, 1), unscaled"
        if not bad[0][0].finite:
            remedy = "look for NaN in what the layer's forward draws: its mean output is finite"
    factors = torch.tensor([row.factor for row in rows])
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="Flipout layers", value=len(rows)),
            Measurement(name="signs for each example", value=len(rows) - len(scattered), unit="layers"),
            Measurement(name="smallest pooled spread", value=float(factors.min()), unit="of the posterior's"),
            Measurement(name="largest pooled spread", value=float(factors.max()), unit="of the posterior's"),
        ),
        threshold=threshold,
        layers=layers,
        remedy=remedy,
        notes=notes,
        samples=PASSES,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic="smallest p-value of mean 0 and variance 1 of the pooled noise, corrected",
            low=corrected,
        ),
    )


def _says(row: _Row, words: str) -> LayerFinding:
    return LayerFinding(path=row.layer.path, kind=row.layer.kind, ok=False, finding=words)


def _inputs(subject: Subject, layers: list[BayesianLayer]) -> dict[str, Tensor]:
    """Return the input of each layer's first call, in a pass at the posterior mean."""
    found: dict[str, Tensor] = {}
    handles = []
    for layer in layers:

        def take(_module: nn.Module, inputs: tuple[Any, ...], path: str = layer.path) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                found.setdefault(path, inputs[0].detach().clone())

        handles.append(layer.module.register_forward_pre_hook(take))
    try:
        with zero_sigma(subject.model):
            forward(subject.model, subject.require_images()[:_IMAGES])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _has_a_gradient(layer: BayesianLayer, x: Tensor) -> bool:
    """Say whether a layer's output depends on every mu by what autograd keeps: not where its forward cuts it off."""
    with torch.enable_grad(), zero_sigma(layer.module):
        reached = leaves_behind(output_tensor(layer.module(x)))
    return all(id(tensor.mu_parameter) in reached for tensor in layer.tensors)


def _row(layer: BayesianLayer, x: Tensor) -> _Row:
    with torch.no_grad(), capture(layer.module) as calls:
        outputs = torch.stack([output_tensor(layer.module(x)).double() for _ in range(PASSES)])
    per_example = all(_of_examples(sign, layer) for call in calls for sign in call.signs)
    with torch.no_grad(), zero_sigma(layer.module):
        mean = output_tensor(layer.module(x)).double()
    noise = torch.stack([_pooled(values - mean, layer)[0] for values in outputs])
    spread = _spread(layer, x[:1])
    rounding = torch.finfo(x.dtype).eps * _pooled(mean.abs(), layer)[0]
    noisy = spread > 0
    used = noisy & (rounding <= ROUNDING * spread)
    # What is added to a mean output is rounded by half a unit in its last place.
    slack = float((rounding / spread)[used].mean()) / 2 if bool(used.any()) else 0.0
    return _Row(layer, per_example, (noise / spread)[:, used], slack, int((noisy & ~used).sum()))


def _channel(layer: BayesianLayer) -> int:
    """Return the dimension of the channels: the last one of a linear layer, the second of a convolution."""
    return -1 if layer.tensors[0].mu.ndim == 2 else 1


def _of_examples(sign: Tensor, layer: BayesianLayer) -> bool:
    """Return whether signs are constant over all dimensions but the examples and the channels."""
    if sign.ndim <= 2:
        return True
    positions = sign.movedim(_channel(layer), 1).flatten(2)
    return bool((positions == positions[..., :1]).all())


def _pooled(values: Tensor, layer: BayesianLayer) -> Tensor:
    """Return the mean over positions: ``[examples, channels]``."""
    channels = values.movedim(_channel(layer), 1)
    return channels.flatten(2).mean(2) if channels.ndim > 2 else channels


def _spread(layer: BayesianLayer, x: Tensor) -> Tensor:
    """Return the standard deviation of one example's pooled output under the posterior, ``[channels]``, in closed form.

    The pooled output is linear in the weights, so its gradient to mu holds the coefficients; each weight has a part in
    one channel alone, so that one gradient of their sum has them all.
    """
    with torch.enable_grad():
        sigmas = [tensor.sigma.double() for tensor in layer.tensors]
        with zero_sigma(layer.module):
            outputs = _pooled(output_tensor(layer.module(x)), layer)[0]
            slopes = torch.autograd.grad(outputs.sum(), [tensor.mu_parameter for tensor in layer.tensors])
    squares = [(slope.double() * sigma).square() for slope, sigma in zip(slopes, sigmas, strict=True)]
    return torch.stack([_by_channel(part, layer) for part in squares]).sum(0).sqrt()


def _by_channel(squares: Tensor, layer: BayesianLayer) -> Tensor:
    """Sum over the weights of each output channel; transposed convolutions have it second, group by group."""
    if squares.ndim > 1 and any("ConvTranspose" in kind.__name__ for kind in type(layer.module).__mro__):
        groups: Any = layer.module.groups
        return squares.reshape(groups, len(squares) // groups, squares.shape[1], -1).sum((1, 3)).flatten()
    return squares.flatten(1).sum(1) if squares.ndim > 1 else squares
