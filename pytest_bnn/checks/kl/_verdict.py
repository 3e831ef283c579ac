"""What follows from what was read off a loss: the verdict of ``kl.loss``, in words."""

from __future__ import annotations

from pytest_bnn.checks._objective import FINITE_DERIVATIVE, Evaluation, unproven, without_a_gradient
from pytest_bnn.checks.finding import Finding, LossError, NoCutError, at_fault, not_applicable
from pytest_bnn.checks.kl._expected import of_the_weight
from pytest_bnn.checks.kl._fits import notes_on
from pytest_bnn.checks.kl._held import of_the_means
from pytest_bnn.checks.kl._judgement import Judgement, calls_of
from pytest_bnn.checks.kl._reading import Reading
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import counted_twice
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import Measurement, Threshold, Verdict

_FINITE_KL = (
    "take get_kl_loss(model) or pytest_bnn.kl(model), finite wherever sigma is above 0: torch.distributions' "
    "kl_divergence divides by the square of sigma, which overflows in float32 below 5e-20; where no sigma is so small, "
    f"{FINITE_DERIVATIVE}"
)


def judge(judgement: Judgement) -> Finding:
    """Judge a loss by its gradients in the cut; by those without noise where drawn weights cannot be seen."""
    first, why = _first(judgement)
    if first is None:
        return not_applicable(why)
    if lost := judgement.not_finite(first):
        if judgement.noise == "silent" and not judgement.not_finite(judgement.run(noise="drawn")):
            return not_applicable(
                "with every noise at 0 the loss has no finite gradient, and with noise it has one, as a standard "
                "deviation over forward passes has: its KL weight cannot be read off"
            )
        return without_a_gradient(lost, len(judgement.tensors), of="rho", remedy=_FINITE_KL)
    reading = judgement.read(first)
    reading, mode = _in_both_modes(judgement, reading)
    fits = reading.fits
    if not fits or (reading.missing and fits[0].of == "prior"):
        return not_applicable(
            "every sigma is still the prior's, where the KL has no gradient to it, and the loss does not tell its "
            "weight by moving the prior: audit again after a step of training"
        )
    return _judged(judgement, reading, mode)


def _first(judgement: Judgement) -> tuple[Evaluation | None, str]:
    """Evaluate the loss in the cut, or without noise where the drawn weights cannot all be seen and cut."""
    try:
        first = judgement.cut()
        if not first.not_cut:
            return first, ""
        closed = f"{called(first.not_cut[0])} does not show the weights that it draws"
    except NoCutError as error:
        closed = str(error)
    try:
        if why := unproven(judgement.subject):
            return None, (
                f"{closed}, and {why}; the weight of the KL term is read off where the drawn weights are cut off or "
                "silent"
            )
        judgement.noise = "silent"
        first = judgement.run()
        return (None, closed) if first.stepped else (first, "")
    except (InputError, LossError) as error:
        if judgement.noise == "silent" and judgement.works_with_noise():
            return None, f"with every noise at 0 the loss has no value, with noise it has one: {error}"
        raise


def _in_both_modes(judgement: Judgement, reading: Reading) -> tuple[Reading, str]:
    """Read in train mode too; where the KL's weight is another one there, that is what counts. Say what was found."""
    judgement.train = True
    try:
        trained = judgement.cut() if judgement.noise == "cut" else judgement.run()
        same = bool(judgement.not_finite(trained)) or _same(judgement, reading, trained)
        found = reading if same else judgement.read(trained)
    except Exception:  # what it cannot do in train mode says nothing of the KL
        found, same = reading, True
    judgement.train = False
    if same or (found.missing and reading.missing) or judgement.undecided(reading):
        return reading, ""
    judgement.train = True
    if reading.missing:
        return found, "the loss adds the KL term in train mode alone, and was judged there"
    if found.missing:
        return found, ""
    return found, (
        f"the KL term has weight {reading.found.value:.6g} in eval mode, and was judged in train mode, where training "
        "runs"
    )


def _same(judgement: Judgement, reading: Reading, trained: Evaluation) -> bool:
    """Return whether the gradients to rho are the same in train mode, so that nothing has to be read there."""
    for key in reading.first.gradients:
        one, other = reading.first.gradients.to_rho(key), trained.gradients.to_rho(key)
        if one is None or other is None:
            if one is not other and bool((one if other is None else other).any()):  # type: ignore[union-attr]
                return False
        elif float((one - other).norm()) > judgement.tolerance * float(one.norm()):
            return False
    return True


def _judged(judgement: Judgement, reading: Reading, mode: str) -> Finding:
    found, fits, expected = reading.found, reading.fits, judgement.expected
    problem, remedy = _problem(judgement, reading)
    verdict = Verdict.FAIL if problem else Verdict.PASS
    if problem and (why := judgement.undecided(reading)):
        return not_applicable(why)
    if reading.seen_by_prior and reading.missing and judgement.is_flat():
        return not_applicable(
            "the KL term has no gradient where the model is, and has one once the prior is moved away: the loss "
            "leaves it out below a bound, as free bits do; audit again where the KL is above that bound"
        )
    offenders = [(f, "the loss has no gradient to its rho") for f in reading.absent]
    offenders += [(f, f"{f.residual:.2g} of the gradient to its rho is not the KL term's") for f in reading.strangers]
    offenders += [(f, f"the KL term has weight {reading.weights[id(f)]:.6g} here") for f in reading.uneven]
    layers = [at_fault(fit.tensor, f"its {fit.tensor.role}: {words}") for fit, words in offenders]
    notes = [mode] if mode else []
    if not problem:
        verdict, problem, remedy, bad = of_the_means(judgement, reading)
        if problem and (why := judgement.undecided(reading)):
            return not_applicable(why)
        layers += [at_fault(mean.tensor, f"its {mean.tensor.role}: {words}") for mean, words in bad]
    notes += _notes_on_means(judgement, reading)
    headline = f"the KL term has weight {found.value:.6g} {found.share}"
    headline += "" if expected is None else f" (expected {expected:.6g})"
    return Finding(
        verdict=verdict,
        headline=problem or headline,
        measurements=(
            Measurement(name="weight", value=found.value, unit=found.share),
            Measurement(name="expected weight", value=expected),
            Measurement(name="convention", value=found.convention if found.value else "none"),
            Measurement(name="spread of the weight over tensors", value=found.spread, unit="relative"),
            Measurement(
                name="largest residual", value=max((f.residual for f in fits), default=0.0), unit="of the gradient"
            ),
            Measurement(name="tensors without the term", value=len(reading.absent) if found.value else len(fits)),
            Measurement(name="seen by moving the prior", value=reading.seen_by_prior),
        ),
        threshold=None
        if expected is None
        else Threshold(quantity="weight of the KL term", observed=found.value, relation="==", allowed=expected),
        layers=tuple(layers),
        remedy=remedy,
        notes=(*notes, *notes_on(problem, found, reading.seen_by_prior, fits)),
    )


def _problem(judgement: Judgement, reading: Reading) -> tuple[str, str]:
    """Return what is wrong with the gradient to rho, in words, and the remedy; empty strings when nothing is."""
    first, fits = reading.first, reading.fits
    kl = judgement.layers[0].adapter.words.kl
    if judgement.train and reading.missing:
        return (
            "the KL term is in the loss in eval mode and missing in train mode, where training runs",
            f"add weight * {kl} where model.training is True as well",
        )
    if reading.missing and not reading.seen_by_prior:
        if not first.called and not first.reached:
            return "the loss never called the model that it was given: it works on another one", (
                "write the loss in terms of its first argument, the model, and not of one from outside"
            )
        return "the KL term is missing from the loss", (
            f"add weight * {kl} to the loss, with weight = 1 / number of batches"
        )
    if reading.missing and not first.reached and not _reaches_data(first):
        return "the loss has no gradient at all: what it returns is cut off from the model", (
            "compute the loss with gradients on: no no_grad or inference_mode around it, no .detach() or .item() "
            "of the whole"
        )
    if reading.missing:
        return "the KL term is in the loss but detached: no gradient reaches rho", (
            f"keep the term in the graph: no .detach(), .item() or no_grad around {kl}"
        )
    frozen = [tensor.name for tensor in judgement.tensors if not tensor.rho_parameter.requires_grad]
    if frozen:
        return (
            f"rho is frozen in {len(frozen)} tensors, `{frozen[0]}` first: the loss cannot train their sigma",
            "set requires_grad on every rho before training",
        )
    if reading.absent:
        return f"the KL term is missing for {len(reading.absent)} of {len(fits)} tensors", (
            f"sum the KL term over every Bayesian layer: {kl} on the whole model"
        )
    value = reading.found.value
    if value < 0:
        return (
            f"the KL term has the negative weight {value:.6g}: training drives the posterior away from the prior",
            "add the KL term to a loss that is minimized; the ELBO, which is maximized, subtracts it",
        )
    if reading.strangers:
        return f"something else than the KL term pulls on rho in {len(reading.strangers)} of {len(fits)} tensors", (
            "look for weight decay on rho inside the loss, or a KL term toward another prior"
        )
    if reading.uneven:
        return _uneven(judgement, reading)
    return of_the_weight(judgement, reading)


def _reaches_data(first: Evaluation) -> bool:
    return bool(first.used.arrived)


def _uneven(judgement: Judgement, reading: Reading) -> tuple[str, str]:
    one, target = reading.uneven[0], reading.target
    calls = calls_of(reading.first)
    headline = (
        f"the KL term has another weight in {len(reading.uneven)} of {len(reading.fits)} tensors: "
        f"{reading.weights[id(one)]:.6g} in `{one.tensor.name}`, {target:.6g} "
        + ("as expected" if target == judgement.expected else "in the others")
    )
    ratios = [(reading.weights[id(f)] / target, calls.get(f.tensor.path, 0), f.tensor.path) for f in reading.uneven]
    twice = counted_twice(judgement.subject.model)
    if all(path in twice and judgement.near(ratio, 2) for ratio, _, path in ratios):
        return f"{headline}: get_kl_loss counts it again for the layer around it", (
            "take pytest_bnn.kl(model), which counts each layer once"
        )
    if all(number > 1 and judgement.near(ratio, number) for ratio, number, _ in ratios):
        return f"{headline}: it is added once for each of {ratios[0][1]} calls", (
            "add each layer's KL once, and not with each of its calls: pytest_bnn.kl(model), after the forward pass"
        )
    return headline, "weigh every layer's KL alike"


def _notes_on_means(judgement: Judgement, reading: Reading) -> list[str]:
    notes = []
    if reading.first.undrawn:
        name = reading.first.undrawn[0].name
        notes.append(f"the mu of `{name}` is used as it is, outside of its layer's own call: see layers.replaced")
    if reading.of == "estimate":
        notes.append("the loss estimates its KL term from the drawn weights, log q(w) - log p(w)")
    own = [mean for mean in reading.means if mean.reaches and not mean.like_the_prior]
    if reading.of == "own prior" or (own and reading.of == "closed form" and not reading.seen_by_prior):
        notes.append("the KL term is one to another prior than the layers'")
    if judgement.noise == "silent":
        notes.append("read off with the noise silent, since not every layer shows the weights that it draws")
    return notes
