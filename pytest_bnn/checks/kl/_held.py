"""How the KL term holds the means: whether it pulls on them, and whether something else does."""

from __future__ import annotations

from pytest_bnn.checks.kl._judgement import Judgement
from pytest_bnn.checks.kl._mean import MeanFit
from pytest_bnn.checks.kl._reading import Reading
from pytest_bnn.libraries.cut import key_of
from pytest_bnn.records.evidence import Verdict

#: How far mu moves where the value of a KL term has to notice, in units in which its gradient is read off at 1.
_FAR = 100.0


def of_the_means(judgement: Judgement, reading: Reading) -> tuple[Verdict, str, str, list[tuple[MeanFit, str]]]:
    """Return what is wrong with how the KL holds the means, where its gradient to rho is as it should be."""
    means = reading.means
    loose = [mean for mean in means if not mean.reaches]
    of = f"{len(loose)} of {len(means)} tensors"
    if loose and (change := _noticed(judgement, loose, reading)):
        return (
            Verdict.WARN,
            f"the KL term's gradient does not reach mu in {of}: the term changes with mu, which is detached in it",
            "take mu into the term as it is, without .detach(); where the means are meant to be held by nothing, "
            "say so: --set kl.loss.severity=off",
            [(mean, f"mu is detached in the KL term (it changes by {change:.3g} when mu moves)") for mean in loose],
        )
    if loose:
        return (
            Verdict.FAIL,
            f"the KL term does not depend on mu in {of}: nothing pulls the means toward the prior",
            "add (mu - prior_mu)**2 / (2 * prior_sigma**2), or take "
            f"{judgement.layers[0].adapter.words.kl}; a prior that is mu itself is no prior: clone it",
            [(mean, "the loss beside the data does not depend on mu") for mean in loose],
        )
    if reading.of == "estimate":
        return Verdict.PASS, "", "", []
    # Toward a prior of the loss's own, rho and mu were judged together.
    bad = [mean for mean in means if not mean.like_the_prior] if reading.seen_by_prior else []
    if not bad:
        return Verdict.PASS, "", "", []
    return (
        Verdict.FAIL,
        f"something else than the KL term pulls on mu in {len(bad)} of {len(means)} tensors, "
        f"`{bad[0].tensor.name}` first",
        "look for weight decay (an L1 or L2 penalty) on mu inside the loss, or for mu used as a weight outside of its "
        "layer",
        [
            (mean, f"the pull on mu changes {mean.slope:.4g} times as much with mu as the KL term's does")
            for mean in bad
        ],
    )


def _noticed(judgement: Judgement, loose: list[MeanFit], reading: Reading) -> float:
    """Return how much the loss changes when mu moves far and the weights that the data meet do not; 0 for rounding."""
    after = judgement.run(mu_shift=_FAR, backward=False)
    weights = {key_of(fit.tensor): fit.weight for fit in reading.fits}
    expected = 0.0
    for tensor in (mean.tensor for mean in loose):
        apart = tensor.mu.detach().double() - tensor.prior_mu.detach().double()
        moved = (apart + after.moved[key_of(tensor)]) ** 2 - apart**2
        expected += weights[key_of(tensor)] * float((moved / (2 * tensor.prior_sigma.detach().double() ** 2)).sum())
    change = after.value - reading.first.value
    return change if abs(change) > 1e-2 * abs(expected) > 0 else 0.0
