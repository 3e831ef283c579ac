"""``noise.posterior``: are the weights that a forward pass really uses draws of the posterior?"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import NOTHING_BAYESIAN, Finding, at_fault, not_applicable
from pytest_bnn.checks.noise._draws import TensorDraws
from pytest_bnn.checks.noise._hypotheses import FAMILIES, independence, marginals, number_of_tests
from pytest_bnn.checks.values import FewPasses
from pytest_bnn.libraries.capture import LayerCall, capture
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import forward
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.sampling.own import undisturbed_passes
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.normal import ROUNDING, Sums, draws_needed, effect
from pytest_bnn.subject import Subject

#: The relative error of sigma that is looked for.
TARGET = 0.01
MAX_PASSES = 32

#: Fewer would miss noise that is drawn anew only now and then.
MIN_PASSES = 4

#: Images of a pass: two, so that a BatchNorm in train mode runs. The draws do not depend on them.
_IMAGES = 2


@check(
    claim="The weights that a forward pass uses are draws of the posterior, N(mu, sigma^2), independent of each other: "
    "within a tensor, between layers and between passes.",
    needs=("images",),
    can=("draws", "mean_field", "used_weights"),
    sampled=True,
    after="noise.spread",
)
def posterior(subject: Subject, *, max_passes: FewPasses = MAX_PASSES, budget: Budget) -> Finding:
    """Measure whether the weights that a forward pass uses are draws of the posterior.

    The weights are seen at the functional call, such as ``F.conv2d``, in passes that nobody seeds. Standardised by mu
    and sigma they must be N(0, 1) in mean (z-test), variance (chi-square test) and shape (Kolmogorov-Smirnov test),
    independent from draw to draw and from layer to layer, within a pass and from one pass to the next, and within the
    tensor from block to block and from row to row (tests of correlation), tensor by tensor, and the small tensors
    pooled as well. All tests are exact; together they fail a
    sound model with a probability of at most the budget's ``alpha`` (Bonferroni). Enough passes are drawn to see a
    sigma that is off by 1 % with a probability of ``1 - beta``; the evidence says what the passes could show.

    Args:
        subject: images, at least; see `Subject`. Two of them are used.
        max_passes: The most passes, at least 2.
        budget: Error rates; those in force when None.

    Source: the tests of a normal sample with known mean and variance, as in Lehmann and Romano 2005; for correlations,
    Fisher 1915.
    """
    return _find(subject, max_passes, budget)


measure_noise_posterior, assert_noise_posterior = posterior.measure, posterior.assert_


#: How to meet the premise where sigma is too small to be seen beside mu.
_HOW = (
    "; audit it in a wider dtype (model.float()), or make it with convert(teacher, moped_delta=...) of a larger delta"
)


@dataclass(slots=True, eq=False)
class _Drawing:
    """The draws of all layers, pass by pass."""

    subject: Subject
    draws: dict[tuple[str, str], TensorDraws]
    hidden: dict[str, str]
    passes: int = 0

    def next_pass(self) -> None:
        images = self.subject.require_images()[:_IMAGES]
        with capture(self.subject.model, told=self._take):
            forward(self.subject.model, images)
        self.passes += 1

    def _take(self, call: LayerCall) -> None:
        seen = call.noise()
        missing = {t.role for t in call.layer.tensors} - {tensor.role for tensor, _ in seen}
        if missing:
            self.hidden[call.layer.path] = f"its call does not reveal its {' and '.join(sorted(missing))}"
        call.functional.clear()
        while seen:
            tensor, noise = seen.pop(0)
            key = (tensor.path, tensor.role)
            if key not in self.draws:
                about_mu = call.layer.estimator != "Flipout"
                self.draws[key] = TensorDraws.of(tensor, noise, about_mu=about_mu)
            self.draws[key].take(noise, self.passes)


def _find(subject: Subject, max_passes: int, budget: Budget) -> Finding:
    layers = bayesian_layers(subject.model)
    if not layers:
        return not_applicable(NOTHING_BAYESIAN)
    drawing = _Drawing(subject, {}, {})
    with undisturbed_passes(subject.model, seed=subject.seed):
        drawing.next_pass()
        seen = [t for t in drawing.draws.values() if t.count]
        level = budget.alpha / FAMILIES / (len(seen) + 1)
        enough = draws_needed(TARGET, level, 1 - budget.beta)
        small = [t for t in seen if MIN_PASSES * t.count < enough]
        wanted = -(-enough // max(1, sum(t.count for t in small))) if small else MIN_PASSES
        while drawing.passes < min(max_passes, max(MIN_PASSES, wanted)):
            drawing.next_pass()
    hidden = [*drawing.hidden.items()]
    known = {path for path, _ in drawing.draws} | drawing.hidden.keys()
    hidden += [(layer.path, "it is not called") for layer in layers if layer.path not in known]
    notes = [f"not judged: {called(path)}: {why}" for path, why in hidden[:3]]
    if len(hidden) > 3:
        more = "1 more layer is" if len(hidden) == 4 else f"{len(hidden) - 3} more layers are"
        notes.append(f"{more} not judged for such reasons")
    left_out = sum(t.left_out for t in drawing.draws.values())
    share = left_out / max(1, sum(t.tensor.count for t in drawing.draws.values()))
    if left_out:
        notes.append(
            f"left out: {left_out} weights ({100 * share:.3g} %) whose sigma is below {1 / ROUNDING:.0f} times mu's "
            "rounding, is not finite, or that the forward puts out of use"
        )
    if not seen:
        why = f" ({notes[0]})" if notes else ""
        return not_applicable(
            f"no layer's noise can be seen{why}: the claim needs a layer that the forward calls, and that draws its "
            f"weights itself with a sigma above their rounding{_HOW if left_out else ''}"
        )
    notes += _unseen(small, enough, level, 1 - budget.beta)
    return _judged(drawing, seen, small, level, share, tuple(notes), budget)


def _judged(
    drawing: _Drawing,
    seen: list[TensorDraws],
    small: list[TensorDraws],
    level: float,
    share: float,
    notes: tuple[str, ...],
    budget: Budget,
) -> Finding:
    power = 1 - budget.beta
    tests = [*independence(seen, budget.alpha)]
    dependent = {id(t) for test in tests if test.p < budget.alpha for t in test.about}
    # Mean, variance and shape over passes take independent draws for granted.
    sound = [t for t in seen if id(t) not in dependent]
    tests += marginals(sound, small, len(seen) + 1)
    tests.sort(key=lambda test: test.p)
    bad = [test for test in tests if test.p < budget.alpha]
    pooled = sum((t.sums for t in seen), Sums())
    widest = max(seen, key=lambda t: abs(t.sums.scale - 1) * t.sums.count**0.5 if t.sums.count else 0)
    headline = (
        bad[0].words
        if bad
        else (
            f"{pooled.count:,} draws of {len(seen)} tensors in {drawing.passes} passes are the posterior's: sigma is "
            f"{pooled.scale:.5f} of the posterior's"
        )
    )
    small_sums = sum((t.sums for t in small), Sums())
    large = [effect(t.sums.count, level, power, t.slack) for t in seen if t not in small and t.sums.count]
    return Finding(
        verdict=Verdict.FAIL if bad else Verdict.PASS,
        headline=headline,
        measurements=(
            Measurement(name="draws", value=pooled.count),
            Measurement(name="sigma used", value=pooled.scale, unit="of the posterior's"),
            Measurement(
                name="sigma farthest off", value=widest.sums.scale, unit="of the posterior's", note=widest.tensor.name
            ),
            Measurement(name="tests", value=number_of_tests(seen)),
            Measurement(
                name="effect shown in every large tensor", value=max(large) if large else None, unit="of sigma",
                note=f"power {power:.6g}, {len(large)} tensors",
            ),
            Measurement(
                name="effect shown in the small tensors together",
                value=effect(small_sums.count, level, power, small_sums.slack) if small_sums.count else None,
                unit="of sigma", note=f"power {power:.6g}, {len(small)} tensors",
            ),
            Measurement(name="share of weights left out", value=share),
        ),
        threshold=Threshold(
            quantity="smallest p-value, corrected", observed=tests[0].p if tests else 1.0,
            relation=">=", allowed=budget.alpha,
        ),
        layers=tuple(
            at_fault(t.tensor, test.words)
            for test in bad
            for t in test.about[:1]
        ),
        remedy=bad[0].remedy if bad else "",
        notes=notes,
        samples=drawing.passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic=f"smallest of {number_of_tests(seen)} p-values of N(0, 1) and of independence, corrected",
            low=tests[0].p if tests else None,
        ),
    )  # fmt: skip


def _unseen(small: list[TensorDraws], enough: int, level: float, power: float) -> list[str]:
    """Say what cannot be shown of single small tensors."""
    blind = [t for t in small if t.sums.count < enough and t.sums.count]
    if not blind:
        return []
    worst = min(blind, key=lambda t: t.sums.count)
    shown = effect(worst.sums.count, level, power, worst.slack)
    return [
        f"{len(blind)} tensors are too small to show a sigma that is off by {100 * TARGET:.0f} % one by one: "
        f"`{worst.tensor.name}` ({worst.tensor.count}) shows {100 * shown:.3g} %, and {100 * TARGET:.0f} % would take "
        f"{-(-enough // worst.count):,} passes"
    ]
