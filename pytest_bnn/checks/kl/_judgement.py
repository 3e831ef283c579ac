"""What the evaluations of one loss say of its KL term, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pytest_bnn.checks._objective import (
    FINITE_DERIVATIVE,
    Evaluation,
    evaluate,
    is_finite,
    key_of,
    without_a_gradient,
)
from pytest_bnn.checks.finding import Finding, LossError, accused, not_applicable
from pytest_bnn.checks.kl._fits import (
    Fit,
    Weight,
    by_entropy,
    by_own_prior,
    by_prior,
    by_rho,
    in_convention,
    notes_on,
    tolerance_of,
    weight_of,
)
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.gaussian import PosteriorTensor
from pytest_bnn.libraries.posterior import counted_twice
from pytest_bnn.libraries.protocol import BayesianLayer, tensors_of
from pytest_bnn.records.evidence import Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject

_PRIOR_SHIFT = 1e4

_FINITE_KL = (
    "take get_kl_loss(model) or pytest_bnn.kl(model), finite wherever sigma is above 0: torch.distributions' "
    "kl_divergence divides by the square of sigma, which overflows in float32 below 5e-20; where no sigma is so small, "
    f"{FINITE_DERIVATIVE}"
)


class Judgement:
    """The evaluations of one loss, and what follows from them."""

    def __init__(self, subject: Subject, layers: tuple[BayesianLayer, ...], expected: float | None) -> None:
        self.subject, self.layers, self.expected = subject, layers, expected
        self.tensors = tensors_of(layers)
        self.conventions = tuple(dict.fromkeys(c for layer in layers for c in layer.adapter.conventions))
        self.tolerance = tolerance_of(*self.tensors)
        self.train = False
        self.frozen = [tensor.name for tensor in self.tensors if not tensor.rho_parameter.requires_grad]
        self.notes: list[str] = []

    def run(self, *, silent: bool = True, seed: int | None = None) -> Evaluation:
        return evaluate(self.subject, self.layers, silent=silent, train=self.train, free_rho=True, seed=seed)

    def run_moved(self, *, backward: bool = False) -> Evaluation:
        """Evaluate with another prior; its gradient is needed where the one to rho says nothing."""
        at_the_prior = all(tensor.sigma_is_the_prior() for tensor in self.tensors)
        return evaluate(
            self.subject, self.layers, silent=True, train=self.train, free_rho=True, prior_shift=_PRIOR_SHIFT,
            backward=backward or at_the_prior,
        )  # fmt: skip

    def _moved(self) -> Evaluation:
        try:
            return self.run_moved()
        except LossError:  # a loss that overflows has noticed
            return Evaluation(value=math.inf)

    def find(self) -> Finding:
        try:
            first = self.run()
            moved = self._moved()
        except (InputError, LossError) as error:
            if self._works_with_noise():
                return not_applicable(f"with every noise at 0 the loss has no value, with noise it has one: {error}")
            raise
        lost = [t for t in self.tensors if not is_finite(first.gradients[key_of(t)][1])]
        if lost:
            noisy = self.run(silent=False)
            if all(is_finite(noisy.gradients[key_of(t)][1]) for t in lost):
                return not_applicable(
                    "with every noise at 0 the loss has no finite gradient, and with noise it has one, as a standard "
                    "deviation over forward passes has: its KL weight cannot be read off"
                )
            return without_a_gradient(lost, len(self.tensors), of="rho", remedy=_FINITE_KL)
        seen_by_prior = moved.value != first.value
        fits = self._fits(first, moved)
        if fits and all(fit.weight == 0 for fit in fits) and not seen_by_prior and not self.train:
            self.train = True
            try:
                trained, shifted = self.run(), self._moved()
            except Exception:  # what it cannot do in train mode says nothing of the KL
                self.train = False
            else:
                of_training = self._fits(trained, shifted)
                self.train = any(fit.weight for fit in of_training)
                if self.train:
                    self.notes.append("the loss adds the KL term in train mode alone, and was judged there")
                    first, seen_by_prior, fits = trained, shifted.value != trained.value, of_training
        if not fits or (all(fit.weight == 0 for fit in fits) and fits[0].of == "prior"):
            return not_applicable(
                "every sigma is still the prior's, where the KL has no gradient to it, and the loss does not tell its "
                "weight by moving the prior: audit again after a step of training"
            )
        return self._judged(first, fits, seen_by_prior)

    def _works_with_noise(self) -> bool:
        try:
            self.run(silent=False)
        except (InputError, LossError):
            return False
        return True

    def _fits(self, first: Evaluation, moved: Evaluation) -> list[Fit]:
        found = [by_rho(tensor, first.gradients[key_of(tensor)][1]) for tensor in self.tensors]
        fits = [fit for fit in found if fit is not None]
        if fits:
            return fits
        return [
            by_prior(t, first.gradients[key_of(t)][0], moved.gradients.get(key_of(t), (None,))[0], _PRIOR_SHIFT)
            for t in self.tensors
        ]

    def _only_entropy(self, tensors: Sequence[PosteriorTensor], gradients: Sequence[Tensor | None]) -> float:
        """Give the weight of the negative entropy where nothing else pulls on rho, as in an estimated KL; else 0."""
        fits = [by_entropy(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True)]
        found = [fit for fit in fits if fit is not None and fit.residual <= fit.allowed and fit.weight]
        return found[0].weight if found and len(found) == len(fits) else 0.0

    def _flat(self) -> bool:
        """Say whether a KL term without a gradient gets one where the prior is far away."""
        try:
            far = self.run_moved(backward=True)
        except (InputError, LossError):
            return False
        return any(to_rho is not None and bool(to_rho.any()) for _, to_rho in far.gradients.values())

    def _toward_its_own_prior(self, first: Evaluation, fits: list[Fit]) -> list[Fit]:
        """Give the weights of a KL that the loss computes itself, toward another Gaussian prior than the layers'."""
        if not any(fit.residual > fit.allowed for fit in fits):
            return fits
        tensors = [fit.tensor for fit in fits]
        gradients = [first.gradients[key_of(tensor)][1] for tensor in tensors]
        if self._only_entropy(tensors, gradients):
            return fits
        found = by_own_prior(tensors, gradients)
        return found if len(found) == len(fits) else fits

    def _judged(self, first: Evaluation, fits: list[Fit], seen_by_prior: bool) -> Finding:
        total = sum(tensor.count for tensor in self.tensors)
        fits = fits if seen_by_prior else self._toward_its_own_prior(first, fits)
        found = weight_of([fit for fit in fits if fit.weight != 0], self.conventions, self.expected, total)
        expected = self.expected
        met = any(expected is not None and self._near(in_convention(found, fit, total), expected) for fit in fits)
        target = found.value if expected is None or not met else expected
        if self.expected is not None and any(
            self._near(in_convention(found, fit, total), self.expected) for fit in fits
        ):
            target = self.expected
        absent = [fit for fit in fits if fit.weight == 0]
        strangers = [fit for fit in fits if fit.residual > fit.allowed]
        weights = {id(fit): in_convention(found, fit, total) for fit in fits}
        uneven = [fit for fit in fits if fit.weight and target and not self._near(weights[id(fit)], target)]
        if uneven and target != self.expected:
            uneven, target = self._counted_by_calls(first, fits, weights) or (uneven, target)
        problem, remedy = self._problem(first, fits, absent, strangers, uneven, weights, target, found, seen_by_prior)
        if problem and (why := self._undecided(fits, strangers, found)):
            return not_applicable(why)
        if seen_by_prior and len(absent) == len(fits) and self._flat():
            return not_applicable(
                "the KL term has no gradient where the model is, and has one once the prior is moved away: the loss "
                "leaves it out below a bound, as free bits do; audit again where the KL is above that bound"
            )
        offenders = [(f, "the loss has no gradient to its rho") for f in absent]
        offenders += [(f, f"{f.residual:.2g} of the gradient to its rho is not the KL term's") for f in strangers]
        offenders += [(f, f"the KL term has weight {weights[id(f)]:.6g} here") for f in uneven]
        headline = f"the KL term has weight {found.value:.6g} {found.share}"
        headline += "" if self.expected is None else f" (expected {self.expected:.6g})"
        return Finding(
            verdict=Verdict.FAIL if problem else Verdict.PASS,
            headline=problem or headline,
            measurements=(
                Measurement(name="weight", value=found.value, unit=found.share),
                Measurement(name="expected weight", value=self.expected),
                Measurement(name="convention", value=found.convention if found.value else "none"),
                Measurement(name="spread of the weight over tensors", value=found.spread, unit="relative"),
                Measurement(
                    name="largest residual", value=max((f.residual for f in fits), default=0.0), unit="of the gradient"
                ),
                Measurement(name="tensors without the term", value=len(absent) if found.value else len(fits)),
                Measurement(name="seen by moving the prior", value=seen_by_prior),
            ),
            threshold=None
            if self.expected is None
            else Threshold(
                quantity="weight of the KL term", observed=found.value, relation="==", allowed=self.expected
            ),
            layers=tuple(accused(fit.tensor, f"{fit.tensor.role}: {words}") for fit, words in offenders),
            remedy=remedy,
            notes=(*self.notes, *notes_on(problem, found, seen_by_prior, fits)),
        )

    def _problem(
        self,
        first: Evaluation,
        fits: list[Fit],
        absent: list[Fit],
        strangers: list[Fit],
        uneven: list[Fit],
        weights: dict[int, float],
        target: float,
        found: Weight,
        seen_by_prior: bool,
    ) -> tuple[str, str]:
        """Give what is wrong, in words, and the remedy; two empty strings when nothing is."""
        kl = self.layers[0].adapter.words.kl
        if len(absent) == len(fits) and not seen_by_prior:
            if not first.called and not first.reached:
                return "the loss never called the model that it was given: it works on another one", (
                    "write the loss in terms of its first argument, the model, and not of one from outside"
                )
            return "the KL term is missing from the loss", (
                f"add weight * {kl} to the loss, with weight = 1 / number of batches"
            )
        if len(absent) == len(fits) and not first.reached:
            return "the loss has no gradient at all: what it returns is cut off from the model", (
                "compute the loss with gradients on: no no_grad or inference_mode around it, no .detach() or .item() "
                "of the whole"
            )
        if len(absent) == len(fits):
            return "the KL term is in the loss but detached: no gradient reaches rho", (
                f"keep the term in the graph: no .detach(), .item() or no_grad around {kl}"
            )
        if self.frozen:
            return (
                f"rho is frozen in {len(self.frozen)} tensors, {self.frozen[0]} first: the loss cannot train their "
                "sigma",
                "set requires_grad on every rho before training",
            )
        if absent:
            return f"the KL term is missing for {len(absent)} of {len(fits)} tensors", (
                f"sum the KL term over every Bayesian layer: {kl} on the whole model"
            )
        if found.value < 0:
            return (
                f"the KL term has the negative weight {found.value:.6g}: training drives the posterior away from the "
                "prior",
                "add the KL term to a loss that is minimized; the ELBO, which is maximized, subtracts it",
            )
        if strangers:
            return f"something else than the KL term pulls on rho in {len(strangers)} of {len(fits)} tensors", (
                "look for weight decay on rho inside the loss, or a KL term toward another prior"
            )
        if uneven:
            return self._uneven(first, uneven, len(fits), weights, target)
        if self.expected is not None and not self._near(found.value, self.expected):
            times = found.value / self.expected
            return (
                f"the KL term has weight {found.value:.6g}, {times:.4g} times the expected {self.expected:.6g}",
                "divide the KL term by the number of batches (or examples) that the data term is averaged over",
            )
        return "", ""

    def _uneven(
        self, first: Evaluation, uneven: list[Fit], fits: int, weights: dict[int, float], target: float
    ) -> tuple[str, str]:
        one = uneven[0]
        calls = _calls(first)
        headline = (
            f"the KL term has another weight in {len(uneven)} of {fits} tensors: {weights[id(one)]:.6g} in "
            f"{one.tensor.name}, {target:.6g} " + ("as expected" if target == self.expected else "in the others")
        )
        ratios = [(weights[id(fit)] / target, calls.get(fit.tensor.path, 0), fit.tensor.path) for fit in uneven]
        if all(number > 1 and self._near(ratio, number) for ratio, number, _ in ratios):
            return f"{headline}: it is added once for each of {ratios[0][1]} calls", (
                "add each layer's KL once, and not with each of its calls: pytest_bnn.kl(model), after the forward pass"
            )
        twice = counted_twice(self.subject.model)
        if all(path in twice and self._near(ratio, 2) for ratio, _, path in ratios):
            return f"{headline}: get_kl_loss counts it again for the layer around it", (
                "take pytest_bnn.kl(model), which counts each layer once"
            )
        return headline, "weigh every layer's KL alike"

    def _counted_by_calls(
        self, first: Evaluation, fits: list[Fit], weights: dict[int, float]
    ) -> tuple[list[Fit], float] | None:
        """Say which tensors count once for each call, where the numbers of calls explain every weight."""
        calls = _calls(first)
        each = {id(fit): weights[id(fit)] / max(1, calls.get(fit.tensor.path, 0)) for fit in fits}
        one = next(iter(each.values()))
        several = [fit for fit in fits if calls.get(fit.tensor.path, 0) > 1]
        if several and len(several) < len(fits) and all(self._near(value, one) for value in each.values()):
            return several, one
        return None

    def _undecided(self, fits: list[Fit], strangers: list[Fit], found: Weight) -> str:
        """Say why what was found does not show a fault: a loss that changes by itself, or estimates its KL."""
        again = self.run()
        for fit in fits:
            if fit.of != "rho":
                continue
            later = by_rho(fit.tensor, again.gradients[key_of(fit.tensor)][1])
            if later is not None and self._apart(later.weight, fit.weight):
                return (
                    f"the loss weighs the KL term differently from call to call ({fit.weight:.3g}, then "
                    f"{later.weight:.3g} of the sum over {fit.tensor.name}), with everything else the same: freeze its "
                    "schedule for the audit"
                )
        if not strangers:
            return ""
        gradients = [(fit.tensor, again.gradients[key_of(fit.tensor)][1]) for fit in fits]
        if weight := self._only_entropy(*zip(*gradients, strict=True)):
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
                return (
                    f"the gradient of the loss to the rho of {tensor.name} varies with the layers' noise silent: the "
                    "loss draws noise of its own around them"
                )
        return ""

    def _apart(self, one: float, other: float) -> bool:
        return abs(one - other) > self.tolerance * max(abs(one), abs(other))

    def _near(self, one: float, other: float) -> bool:
        return bool(other) and abs(one / other - 1) <= self.tolerance


def _calls(evaluation: Evaluation) -> dict[str, int]:
    found: dict[str, int] = {}
    for call in evaluation.calls:
        if not call.again:
            found[call.layer.path] = found.get(call.layer.path, 0) + 1
    return found
