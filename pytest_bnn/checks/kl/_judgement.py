"""What the evaluations of one loss say of its KL term."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pytest_bnn.checks._objective import Evaluation, Noise, cut_of, evaluate, is_finite
from pytest_bnn.checks.finding import LossError
from pytest_bnn.checks.kl._fits import (
    Fit,
    by_any_prior,
    by_entropy,
    by_own_prior,
    by_own_width,
    by_prior,
    by_rho,
    by_sample,
    in_convention,
    tolerance_of,
    weight_of,
)
from pytest_bnn.checks.kl._mean import MeanFit, of_the_mean
from pytest_bnn.checks.kl._reading import Declared, Reading
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.cut import key_of
from pytest_bnn.libraries.gaussian import PosteriorTensor
from pytest_bnn.libraries.posterior import counted_twice
from pytest_bnn.libraries.protocol import BayesianLayer, tensors_of
from pytest_bnn.subject import Subject

#: How far the layers' prior means move: so far that any KL to them notices.
PRIOR_SHIFT = 1e4

#: How far the means move, in units of sigma, where a curvature is read off.
_LITTLE = 1 / 32


class Judgement:
    """The evaluations of one loss, and what is read off them."""

    def __init__(self, subject: Subject, layers: tuple[BayesianLayer, ...], declared: Declared, noise: Noise) -> None:
        self.subject, self.layers, self.declared, self.noise = subject, layers, declared, noise
        self.expected = declared.weight
        self.tensors = tensors_of(layers)
        self.conventions = tuple(dict.fromkeys(c for layer in layers for c in layer.adapter.conventions))
        self.tolerance = tolerance_of(*self.tensors)
        self.total = sum(tensor.count for tensor in self.tensors)
        self.train = False

    def cut(self) -> Evaluation:
        """Return the evaluation in the cut, which other checks share."""
        return cut_of(self.subject, self.layers, train=self.train)

    def run(self, **options: Any) -> Evaluation:
        """Evaluate the loss anew, with every rho trained."""
        return evaluate(
            self.subject, self.layers, free_rho=True, **{"noise": self.noise, "train": self.train, **options}
        )

    def works_with_noise(self) -> bool:
        """Return whether the loss has a value as it is."""
        try:
            self.run(noise="drawn")
        except (InputError, LossError):
            return False
        return True

    def moved(self) -> Evaluation:
        """Evaluate with another prior; its gradient is needed where the one to rho says nothing."""
        at_the_prior = all(tensor.sigma_is_the_prior() for tensor in self.tensors)
        try:
            return self.run(prior_shift=PRIOR_SHIFT, backward=at_the_prior)
        except LossError:  # a loss that overflows has noticed
            return Evaluation(value=math.inf)

    def is_flat(self) -> bool:
        """Return whether a KL term without a gradient gets one where the prior is far away."""
        try:
            far = self.run(prior_shift=PRIOR_SHIFT)
        except (InputError, LossError):
            return False
        return any(to_rho is not None and bool(to_rho.any()) for _, to_rho in far.gradients.values())

    def read(self, first: Evaluation) -> Reading:
        """Read the KL's weight off an evaluation, and off what changes when priors and means move."""
        moved = self.moved()
        reading = Reading(first, self._fits(first, moved), moved.value != first.value)
        del moved
        strange = any(fit.residual > fit.allowed for fit in reading.fits)
        if strange and self.noise == "cut":
            self._estimated(reading)
        if strange and reading.of == "closed form" and not reading.seen_by_prior:
            self._of_another_normal(reading)
        if self.noise == "cut" and reading.of != "estimate" and not reading.seen_by_prior:
            self._of_any_prior(reading)
        fits = reading.fits
        reading.found = weight_of([f for f in fits if f.weight != 0], self.conventions, self.expected, self.total)
        reading.absent = [fit for fit in fits if fit.weight == 0]
        reading.strangers = [fit for fit in fits if fit.residual > fit.allowed]
        reading.weights = {id(fit): in_convention(reading.found, fit, self.total) for fit in fits}
        met = self.expected is not None and any(self.near(w, self.expected) for w in reading.weights.values())
        reading.target = self.expected if met and self.expected is not None else reading.found.value
        target = reading.target
        reading.uneven = [f for f in fits if f.weight and target and not self.near(reading.weights[id(f)], target)]
        if reading.uneven and target != self.expected:
            self._counted_by_calls(reading)
            self._counted_twice(reading)  # which is what several calls may look like
        if self.noise == "cut" and fits and not (reading.absent or reading.strangers) and fits[0].of == "rho":
            reading.means = self._means(reading)
        return reading

    def _fits(self, first: Evaluation, moved: Evaluation) -> list[Fit]:
        found = [by_rho(tensor, first.gradients.to_rho(key_of(tensor))) for tensor in self.tensors]
        fits = [fit for fit in found if fit is not None]
        if fits:
            return fits
        return [
            by_prior(t, first.gradients[key_of(t)][0], moved.gradients.get(key_of(t), (None,))[0], PRIOR_SHIFT)
            for t in self.tensors
        ]

    def _estimated(self, reading: Reading) -> None:
        """Take a KL for an estimate from the drawn weights where it is one in every tensor."""
        once = {path for path, number in calls_of(reading.first).items() if number == 1}
        if not any(fit.tensor.path in once for fit in reading.fits):
            return
        try:
            again = self.run(keep_weights=True)
        except (InputError, LossError):
            return
        drawn = drawn_once(again)
        found = [
            by_sample(fit.tensor, *again.gradients[key_of(fit.tensor)], drawn[key_of(fit.tensor)])
            for fit in reading.fits
            if key_of(fit.tensor) in drawn
        ]
        del again, drawn
        fits = [fit for fit in found if fit is not None and fit.weight and fit.residual <= fit.allowed]
        if len(fits) == len(reading.fits):
            reading.fits, reading.of = fits, "estimate"

    def _of_another_normal(self, reading: Reading) -> None:
        """Take a KL for one to another normal prior where it is that in every tensor."""
        tensors = [fit.tensor for fit in reading.fits]
        to_rho = [reading.first.gradients[key_of(tensor)][1] for tensor in tensors]
        if not self.only_entropy(tensors, to_rho):
            fits = by_own_prior(tensors, to_rho)
            if len(fits) == len(tensors):
                reading.fits, reading.of = fits, "own prior"

    def _of_any_prior(self, reading: Reading) -> None:
        """Where the loss uses no prior of the layers', weigh its KL without knowing which prior it is to."""
        tensors = [fit.tensor for fit in reading.fits]
        if any(tensor.mu.dtype.itemsize < 4 for tensor in tensors) or not any(fit.weight for fit in reading.fits):
            return
        try:
            after, before = self.run(mu_shift=_LITTLE), self.run(mu_shift=-_LITTLE)
        except (InputError, LossError):
            return
        fits: list[Fit | None] = []
        own: Fit | None = None
        for tensor in tensors:
            key = key_of(tensor)
            later, earlier = after.gradients.to_mu(key), before.gradients.to_mu(key)
            if later is None or earlier is None or not (bool(later.any()) or bool(earlier.any())):
                return  # nothing holds mu, which is said by itself
            moved = after.moved[key] - before.moved[key]
            fit = by_any_prior(tensor, reading.first.gradients.to_rho(key), later - earlier, moved)
            if fit is not None and fit.residual > fit.allowed:
                fit = by_own_width(tensor, *reading.first.gradients[key]) or fit
                own = own or (fit if fit.of == "rho" and fit.at_most is None else None)
            fits.append(fit)
        if own is not None:  # one or two numbers have a width of their own with any weight
            fits = [
                replace(own, tensor=tensor) if tensor.count < 3 else f for tensor, f in zip(tensors, fits, strict=True)
            ]
        found = [fit for fit in fits if fit is not None]
        if len(found) == len(tensors):
            of_the_layers = reading.of == "closed form" and all(fit.residual <= fit.allowed for fit in reading.fits)
            reading.fits, reading.of = found, "closed form" if of_the_layers else "own prior"

    def _means(self, reading: Reading) -> list[MeanFit]:
        if any(tensor.mu.dtype.itemsize < 4 for tensor in self.tensors):
            return []
        try:
            after = self.run(mu_shift=1.0)
        except (InputError, LossError):
            return []
        direct = {key_of(tensor) for tensor in reading.first.undrawn}
        weights = {key_of(fit.tensor): fit.weight for fit in reading.fits}
        return [
            of_the_mean(
                t, reading.first.gradients.to_mu(key_of(t)), after.gradients.to_mu(key_of(t)), after.moved[key_of(t)],
                weights[key_of(t)],
            )
            for t in self.tensors
            if t.mu_parameter.requires_grad and key_of(t) not in direct and key_of(t) in weights
        ]  # fmt: skip

    def only_entropy(self, tensors: Sequence[PosteriorTensor], gradients: Sequence[Tensor | None]) -> float:
        """Return the weight of the negative entropy where nothing else pulls on rho, as in an estimated KL; else 0."""
        fits = [by_entropy(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True)]
        found = [fit for fit in fits if fit is not None and fit.residual <= fit.allowed and fit.weight]
        return found[0].weight if found and len(found) == len(fits) else 0.0

    def _counted_by_calls(self, reading: Reading) -> None:
        """Say which tensors count once for each call, where the numbers of calls explain every weight."""
        calls = calls_of(reading.first)
        fits = reading.fits
        each = {id(fit): reading.weights[id(fit)] / max(1, calls.get(fit.tensor.path, 0)) for fit in fits}
        one = next(iter(each.values()))
        several = [fit for fit in fits if calls.get(fit.tensor.path, 0) > 1]
        if several and len(several) < len(fits) and all(self.near(value, one) for value in each.values()):
            reading.uneven, reading.target = several, one

    def _counted_twice(self, reading: Reading) -> None:
        """Name the tensors that `counted_twice` explains, also where they are the most."""
        twice = counted_twice(self.subject.model)
        double = [fit for fit in reading.fits if fit.tensor.path in twice]
        once = [reading.weights[id(fit)] for fit in reading.fits if fit.tensor.path not in twice]
        if once and double and all(self.near(reading.weights[id(f)], 2 * one) for f in double for one in once):
            reading.uneven, reading.target = double, once[0]

    def undecided(self, reading: Reading) -> str:
        """Say why what was found does not show a fault: a loss that changes by itself, or estimates its KL."""
        again = self.run()
        for fit in reading.fits:
            if fit.of != "rho" or reading.of == "estimate":
                continue
            now = by_rho(fit.tensor, reading.first.gradients.to_rho(key_of(fit.tensor)))
            later = by_rho(fit.tensor, again.gradients.to_rho(key_of(fit.tensor)))
            if now is not None and later is not None and self.apart(later.weight, now.weight):
                return (
                    f"the loss weighs the KL term differently from call to call ({now.weight:.3g}, then "
                    f"{later.weight:.3g} of the sum over `{fit.tensor.name}`), with everything else the same: freeze "
                    "its schedule for the audit"
                )
        for mean in reading.means:
            one, other = reading.first.gradients[key_of(mean.tensor)][0], again.gradients[key_of(mean.tensor)][0]
            if (
                one is not None
                and other is not None
                and float((one - other).norm()) > self.tolerance * float(one.norm())
            ):
                return (
                    f"the loss's pull on the mu of `{mean.tensor.name}` beside the data's changes from call to call, "
                    "with everything else the same: freeze the state that the loss keeps for the audit"
                )
        if not reading.strangers:
            return ""
        gradients = [(fit.tensor, again.gradients[key_of(fit.tensor)][1]) for fit in reading.fits]
        if self.noise == "silent" and (weight := self.only_entropy(*zip(*gradients, strict=True))):
            return (
                "the loss estimates its KL term from the drawn weights, log q(w) - log p(w): without noise only the "
                f"entropy in it is seen, with weight {weight:.6g}; take the closed form to have it judged"
            )
        elsewhere = self.run(seed=self.subject.seed + 1)
        for tensor, gradient in gradients:
            other = elsewhere.gradients[key_of(tensor)][1]
            if gradient is None or other is None:
                continue
            if float((gradient - other).norm()) > self.tolerance * float(gradient.norm()):
                if self.noise == "cut":
                    return (
                        f"the loss's pull on the rho of `{tensor.name}` beside the data's varies with the noise: it "
                        "estimates its KL term from draws, in a way that cannot be weighed; take the closed form to "
                        "have it judged"
                    )
                return (
                    f"the gradient of the loss to the rho of `{tensor.name}` varies with the layers' noise silent: the "
                    "loss draws noise of its own around them"
                )
        return ""

    def apart(self, one: float, other: float) -> bool:
        """Return whether two weights differ by more than rounding."""
        return abs(one - other) > self.tolerance * max(abs(one), abs(other))

    def near(self, one: float, other: float) -> bool:
        """Return whether a weight is another one, up to rounding."""
        return bool(other) and abs(one / other - 1) <= self.tolerance

    def not_finite(self, found: Evaluation) -> list[PosteriorTensor]:
        """Return the tensors to whose rho the gradient is NaN or infinite."""
        return [t for t in self.tensors if not is_finite(found.gradients.to_rho(key_of(t)))]


def calls_of(evaluation: Evaluation) -> dict[str, int]:
    """Count the calls of each layer, by path; what a backward pass runs again does not count."""
    found: dict[str, int] = {}
    for call in evaluation.calls:
        if not call.again:
            found[call.layer.path] = found.get(call.layer.path, 0) + 1
    return found


def drawn_once(evaluation: Evaluation) -> dict[tuple[str, str], Tensor]:
    """Return the noise of each tensor that was drawn once, ``w - mu``."""
    calls = calls_of(evaluation)
    return {
        key_of(tensor): noise
        for call in evaluation.calls
        if not call.again and calls[call.layer.path] == 1
        for tensor, noise in call.noise()
    }
