"""What has to become of each kind of mutant, said beforehand; used by `benchmarks.mutation` and ``tests/faults``."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from benchmarks.mutators.case import EXTREMES, FACTORS, WEIGHTS


class Fate(enum.StrEnum):
    """What has to become of a mutant."""

    #: One of the named checks fails, or warns.
    KILLED = "killed"
    #: The same model, to the bit or in distribution: whoever accuses it is wrong.
    EQUIVALENT = "equivalent"
    #: Another model that a user may want; a check may fail if what comes out of it breaks a claim.
    CHOICE = "a choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The fate of a kind of mutant: which checks fail on it, or warn where it may be meant; why it survives."""

    fate: Fate
    by: tuple[str, ...] = ()
    warns: tuple[str, ...] = ()
    reason: str = ""


def _killed(*by: str, warns: tuple[str, ...] = (), survives: str = "") -> Expectation:
    return Expectation(fate=Fate.KILLED, by=by, warns=warns, reason=survives)


def _choice(reason: str) -> Expectation:
    return Expectation(fate=Fate.CHOICE, reason=reason)


def _equivalent(reason: str) -> Expectation:
    return Expectation(fate=Fate.EQUIVALENT, reason=reason)


_SIGMA = "how wide the posterior is, is the user's choice, unless the predictions suffer"
_PRIOR = "another sound prior: reported by `kl.present`, not judged"
_SAME_PRIOR = "all priors are the same, so nothing changes"
_TRAINED_NOISE = "noise may be tempered or annealed in training, and no claim is made about how wide it is there"
_HELD_NOISE = "noise may be held over several passes in training, and no claim is made about when it is drawn again"
_AS_CROSS_ENTROPY = (
    "where a network is sure of its classes, this is the pull of a cross-entropy, "
    "up to less than `loss.data` tells apart"
)
_SAME_LOSS = "the same loss, written in another way"
_SAME_OPTIMUM = "both terms alike, as a learning rate does"
_ANEW = "statistics may be estimated anew, for the noise or for other data"
_TUNED = "what has no posterior is fine-tuned, too"


def _of_kept(attribute: str, lost: Expectation, moved: Expectation) -> dict[tuple[str, str], Expectation]:
    """Say what becomes of a norm's tensor: where it was lost, and where it only moved."""
    found = {"at the constructor's start": lost}
    found |= {f"scaled by {factor}": moved for factor in FACTORS}
    found |= {"permuted": lost, "NaN": _killed("mean.equals_teacher", "noise.varies")}
    found |= {"aliased with the teacher": _killed("memory.separate")}
    if "running" not in attribute:
        found["permuted"] = moved
        found["frozen"] = _choice("norms may be kept while the posterior is trained")
    return {(attribute, mutation): expectation for mutation, expectation in found.items()}


#: What has to become of each kind of mutant, in the order of the table.
EXPECTED: dict[tuple[str, str], Expectation] = {
    **{("mu", f"scaled by {f}"): _killed("mean.equals_teacher") for f in FACTORS},
    ("mu", "swapped"): _killed("mean.equals_teacher"),
    ("mu", "permuted"): _killed("mean.equals_teacher"),
    ("mu", "NaN"): _killed("kl.present", "kl.loss", "mean.equals_teacher", "noise.varies"),
    ("mu", "aliased"): _killed("mean.equals_teacher", "memory.separate"),
    ("mu", "aliased with the teacher"): _killed("memory.separate"),
    ("mu", "frozen"): _choice("means may be kept while sigma is trained"),
    **{("sigma", f"scaled by {f}"): _choice(_SIGMA) for f in EXTREMES},
    ("sigma", "swapped"): _killed("posterior.start"),
    ("sigma", "permuted"): _killed("posterior.start"),
    ("sigma", "NaN"): _killed("kl.present", "kl.loss", "noise.varies"),
    ("sigma", "aliased"): _killed("kl.present", "memory.separate"),
    ("sigma", "frozen"): _killed("kl.present", "kl.loss"),
    **{("prior mean", f"scaled by {f}"): _choice(_PRIOR) for f in EXTREMES},
    ("prior mean", "swapped"): _equivalent(_SAME_PRIOR),
    ("prior mean", "NaN"): _killed("kl.present", "kl.loss"),
    ("prior mean", "aliased with mu"): _killed("memory.separate"),
    **{("prior sigma", f"scaled by {f}"): _choice(_PRIOR) for f in EXTREMES},
    ("prior sigma", "swapped"): _equivalent(_SAME_PRIOR),
    ("prior sigma", "NaN"): _killed("kl.present", "kl.loss"),
    **{("draw", f"scaled by {f}"): _killed("noise.posterior") for f in FACTORS},
    ("draw", "swapped"): _equivalent("two buffers of one shape change places; both are filled anew in each pass"),
    ("draw", "permuted"): _equivalent("permuted independent normal noise is independent normal noise"),
    ("draw", "NaN"): _killed("noise.posterior", "noise.varies", "noise.spread"),
    ("draw", "aliased"): _killed("noise.posterior"),
    ("draw", "aliased with the next pass"): _killed("noise.posterior"),
    ("draw", "buffer shared"): _killed("memory.separate", "gradient.samples"),
    ("draw", "frozen"): _killed("noise.posterior"),
    ("draw", "detached"): _killed("gradient.samples"),
    **{("KL", f"scaled by {f}"): _killed("kl.present", "kl.loss") for f in FACTORS},
    ("KL", "swapped"): _equivalent("the sum over layers is the same"),
    ("KL", "NaN"): _killed("kl.present"),
    ("KL", "aliased"): _killed("kl.present", "kl.loss"),
    ("KL", "frozen"): _killed("kl.present", "kl.loss"),
    ("KL", "detached"): _killed("kl.present", "kl.loss"),
    ("path", "swapped"): _killed("mean.equals_teacher"),
    ("path", "aliased"): _killed("mean.equals_teacher", "layers.replaced"),
    ("path", "frozen"): _killed("layers.replaced"),
    ("path", "detached"): _killed("layers.replaced"),
    # --- noise in train mode, and what else a forward does
    ("draw in train mode", "left out"): _killed("loss.data"),
    **{("draw in train mode", f"scaled by {f}"): _choice(_TRAINED_NOISE) for f in (*EXTREMES, 0.1)},
    ("draw in train mode", "frozen"): _choice(_HELD_NOISE),
    ("draw in train mode", "detached"): _killed("loss.data"),
    ("draws", "of a seeded generator"): _killed("noise.fresh"),
    ("draws", "of a generator of their own"): _equivalent("seeded from the system's entropy, it repeats nothing"),
    ("forward", "without gradient"): _killed("loss.data"),
    ("forward", "output detached"): _killed("loss.data"),
    ("forward", "mean of the batch added"): _killed("predictions.rows"),
    ("forward", "other path for one example"): _killed("predictions.rows"),
    ("forward", "seeds the generator"): _killed("noise.fresh", "noise.source"),
    ("forward", "puts the generator back"): _killed("noise.fresh", "noise.posterior"),
    ("forward", "seeds the generator on its way back"): _killed("noise.fresh"),
    ("kernel", "made deterministic"): _killed("layers.replaced"),
    ("kernel", "mu used undrawn"): _killed("layers.replaced", "noise.posterior"),
    ("kernel", "another one after it"): _killed("layers.replaced"),
    # --- the loss
    ("data term", "detached"): _killed("loss.data"),
    ("data term", "a number"): _killed("loss.data"),
    ("data term", "left out"): _killed("loss.data"),
    ("data term", "times 0"): _killed("loss.data"),
    ("data term", "of a copy"): _killed("loss.data"),
    ("data term", "at the mean"): _killed(warns=("loss.data",)),
    ("data term", "sign turned"): _killed("loss.data"),
    ("data term", "labels rolled"): _killed("loss.data"),
    ("data term", "images rolled"): _killed("loss.data"),
    ("data term", "one row for all"): _killed("loss.data"),
    ("data term", "scores for log-probabilities"): _killed("loss.data"),
    ("data term", "one score"): _killed("loss.data"),
    ("data term", "softmax twice"): _killed(warns=("loss.data",), survives=_AS_CROSS_ENTROPY),
    ("data term", "share of wrong answers"): _killed("loss.data"),
    ("data term", "of half the rows"): _choice("rows may be left out on purpose: hard ones, labelled ones"),
    ("data term", "rows in another order"): _equivalent(_SAME_LOSS),
    ("data term", "log_softmax and nll"): _equivalent(_SAME_LOSS),
    ("data term", "smoothed labels"): _choice("a method of its own"),
    **{("data term", f"scaled by {f}"): _killed("kl.loss") for f in WEIGHTS},
    **{("KL weight", f"scaled by {f}"): _killed("kl.loss") for f in WEIGHTS},
    ("KL weight", "0"): _killed("kl.loss"),
    ("KL weight", "negative"): _killed("kl.loss"),
    ("KL weight", "detached"): _killed("kl.loss"),
    ("KL weight", "in eval mode only"): _killed("kl.loss"),
    ("KL weight", "in train mode only"): _equivalent("the same where it is trained; in eval mode it only reports"),
    ("KL weight", "summed, by batches"): _killed("kl.loss"),
    ("KL weight", "summed, by examples"): _equivalent("the other convention, with its own declaration"),
    **{("KL weight", f"summed, by examples, scaled by {f}"): _killed("kl.loss") for f in WEIGHTS},
    ("KL weight", "by hand"): _equivalent(_SAME_LOSS),
    ("KL weight", "without mu"): _killed("kl.loss"),
    ("KL weight", "mu detached"): _killed(warns=("kl.loss",)),
    ("KL weight", "sigma detached"): _killed("kl.loss"),
    ("KL weight", "prior that follows mu"): _killed("kl.loss"),
    ("KL weight", "beside weight decay on mu"): _killed("kl.loss"),
    ("KL weight", "beside weight decay on rho"): _killed("kl.loss"),
    ("loss", "scaled by 10"): _equivalent(_SAME_OPTIMUM),
    ("loss", "scaled by 0.125"): _equivalent(_SAME_OPTIMUM),
    ("loss", "several passes"): _killed("gradient.samples"),
    ("loss", "a backward for each of several passes"): _equivalent("an estimate of the same loss by three draws"),
    ("loss", "teacher in train mode"): _killed("loss.data"),
    ("loss", "teacher in eval mode"): _choice("distillation is a method of its own"),
    # --- what has no posterior
    **_of_kept("norm's scale", _killed("mean.equals_teacher"), _killed("mean.equals_teacher")),
    **_of_kept("norm's shift", _killed("mean.equals_teacher"), _killed("mean.equals_teacher")),
    **_of_kept("running mean", _killed("mean.equals_teacher", "teacher.tensors"), _choice(_ANEW)),
    **_of_kept("running variance", _killed("mean.equals_teacher", "teacher.tensors"), _choice(_ANEW)),
    **_of_kept("trained norm's scale", _killed("teacher.tensors"), _choice(_TUNED)),
    **_of_kept("trained norm's shift", _killed("teacher.tensors"), _choice(_TUNED)),
    **_of_kept("trained running mean", _killed("teacher.tensors"), _choice(_ANEW)),
    **_of_kept("trained running variance", _killed("teacher.tensors"), _choice(_ANEW)),
    # --- the history
    ("start", "never loaded"): _killed("mean.equals_teacher"),
    ("start", "rho as constructed"): _choice(_SIGMA),
    ("start", "one sigma a tensor"): _choice(_SIGMA),
    ("start", "sigma scattered"): _choice(_SIGMA),
    ("start", "mu moved, sigma kept"): _killed("mean.equals_teacher"),
    ("start", "mu and sigma moved"): _choice("one layer may be fine-tuned alone"),
    ("stage", "told to be fine-tuned"): _killed("posterior.start"),
    ("stage", "told to be a conversion"): _equivalent("it is one"),
    ("stage", "never loaded"): _killed("mean.equals_teacher"),
    ("trained", "never loaded"): _killed("posterior.start", warns=("posterior.start",)),
    ("trained", "left as converted"): _choice("layers may be frozen"),
    ("trained", "sigma left as converted"): _killed(warns=("posterior.start",)),
    ("trained", "mu left as converted"): _choice("means may be kept while sigma is trained"),
    ("trained", "sigma of the new mu"): _choice("a sigma that is set by the trained mean"),
    ("trained", "sigma permuted"): _choice("a trained sigma may be anywhere"),
    ("trained", "mu permuted"): _killed("teacher.agreement"),
    ("trained stage", "told to be fine-tuned"): _equivalent("it is"),
    ("trained stage", "told to be a conversion"): _killed("posterior.start"),
    ("trained stage", "every sigma left as converted"): _killed(warns=("posterior.start",)),
    ("trained stage", "every mu left as converted"): _choice("means may be kept while sigma is trained"),
}
