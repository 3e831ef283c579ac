"""``noise.fresh``: is every draw new, and none the repetition of another?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import NOTHING_BAYESIAN, Finding, not_applicable
from pytest_bnn.checks.noise._builds import Builds, compare_builds
from pytest_bnn.checks.noise._passes import look_at_passes
from pytest_bnn.checks.noise._put_back import modules_that_put_back
from pytest_bnn.data.batch import Batch, Inputs
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import ForwardError, forward
from pytest_bnn.network.copies import Copies, last_copies, takes_their_mean
from pytest_bnn.network.isolation import seed_everything, undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.network.wrappers import eager
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject

#: Examples of a pass: a number that sizes inside of a network are seldom a multiple of.
_EXAMPLES = 5


@check(
    claim="No draw of the noise repeats another: the passes reset no random generator, another model of the same "
    "factory draws anew, and the samples of one call differ.",
    needs=("images",),
    can=("draws",),
    after="noise.posterior",
)
def fresh(subject: Subject) -> Finding:
    """Measure whether every draw of the noise is one of its own.

    A forward pass must not leave the global random generator in one and the same state wherever it was before, and a
    backward pass must not set it back, nor a module inside of the network that drew from it: draws that follow would
    be those of before. Where the factory is known that
    made the model, two more models of it, with the global generator seeded differently for each, must draw other
    noise; a factory whose first call took more than 10 s, or whose second more than 5 s, is not called again. Where
    the last Bayesian layer of a call gets several copies of each example, gives equal outputs for them under noise, and
    the network's outputs change equally with each of these, their mean is that of one draw, and not of several. Exact:
    draws are compared as they are. Not applicable where two passes in a row draw the same noise, which is
    noise.source's to say.

    Args:
        subject: images and, for other models, the factory; see `Subject`. Five images are used.
    """
    return _find(subject)


measure_noise_fresh, assert_noise_fresh = fresh.measure, fresh.assert_


def _find(subject: Subject) -> Finding:
    if not bayesian_layers(subject.model):
        return not_applicable(NOTHING_BAYESIAN)
    few = _few(subject)
    passes = look_at_passes(subject, few)
    if not passes.varies:
        return not_applicable("two passes in a row draw the same noise, so that no draw is anew: see noise.source")
    problems: list[str] = []
    layers: list[LayerFinding] = []
    remedies: list[str] = []
    if passes.resets:
        problems.append(
            "a forward pass resets the global random generator: it leaves it in the same state wherever it was before, "
            "so that all that is drawn afterwards repeats"
        )
        remedies.append("remove torch.manual_seed() and torch.set_rng_state() from the forward; seed once, outside")
    if passes.backward:
        problems.append(f"the backward pass repeats draws: {passes.backward}, so that the next pass draws them again")
        remedies.append(
            "let what runs layers again in the backward pass put the random state back afterwards, as "
            "torch.utils.checkpoint does"
        )
    kept = () if passes.resets else modules_that_put_back(subject, few, passes.unmoved)
    if kept:
        problems.append(
            f"the forward of {_first_of(kept)} puts back the global random generator from which it drew: what comes "
            "next draws the same numbers"
        )
        layers += [_at_fault(subject, path, "puts the generator back after its draw") for path in kept]
        remedies.append(
            "remove torch.random.fork_rng() and torch.set_rng_state() from the forward: a draw has to move the "
            "generator on; what must not move it draws from a generator of its own, seeded from entropy"
        )
    copies = _copies(subject, few)
    if copies is not None:
        path = next(layer.path for layer in bayesian_layers(subject.model) if layer.module is copies.module)
        problems.append(
            f"the {copies.number} samples of a call are one draw: {called(path)} gets {copies.number} "
            "copies of each example in one call, draws its weights once for all, and gives equal outputs"
        )
        layers.append(_at_fault(subject, path, f"gives equal outputs for {copies.number} copies of each example"))
        remedies.append(
            f"run {copies.number} passes for {copies.number} samples, each with a draw of its own, in place of one "
            "pass over a repeated batch or a vmap whose randomness is 'same'"
        )
    # What a reset repeats, other models repeat as well.
    builds = Builds(seeds={}, why=_RESETS) if passes.resets else compare_builds(subject, few)
    if builds.repeated:
        problems.append(_repeated(builds))
        layers += [_at_fault(subject, path, _draws_again(builds, path)) for path in builds.repeated]
        remedies.append(
            "let the layers draw from torch's global generator (generator=None), or seed their own from entropy: "
            "generator.seed()"
            if builds.seeds
            else "let the layers draw from torch's global generator, and keep no noise that was drawn from a fixed seed"
        )
    notes = [f"not judged: the backward pass: {passes.unjudged}"] if passes.unjudged else []
    notes += [f"not judged: whether another model draws other noise: {builds.why}"] if builds.why else []
    others = "" if builds.why else f", nor does another model of the factory in any of {builds.layers} layers"
    return Finding(
        verdict=Verdict.FAIL if problems else Verdict.PASS,
        headline=problems[0] if problems else f"no pass, no backward pass and no row of a call repeats a draw{others}",
        measurements=(
            Measurement(name="copies that share a draw", value=0 if copies is None else copies.number),
            Measurement(
                name="layers that repeat another model's draws", value=None if builds.why else len(builds.repeated)
            ),
        ),
        threshold=Threshold(quantity="ways in which draws repeat", observed=len(problems), relation="==", allowed=0),
        layers=tuple(layers),
        remedy="; ".join(remedies),
        notes=(*problems[1:], *notes),
    )


def _few(subject: Subject) -> Inputs:
    images = subject.require_images()
    count = min(_EXAMPLES, len(images))
    return images[torch.arange(count) * len(images) // count]


#: Why other models are not compared where the first thing that is wrong makes them repeat each other.
_RESETS = "where a forward pass resets the generator, each model repeats the others"


def _copies(subject: Subject, few: Inputs) -> Copies | None:
    """Return the copies of examples whose mean a call gives, where they share a draw."""
    distinct = _told_apart(subject, few)
    if distinct is None:
        return None
    model = subject.model

    def run() -> Tensor:
        seed_everything(subject.seed)
        return forward(model, distinct)

    modules = [layer.module for layer in bayesian_layers(model)]
    with eager(), undisturbed(model, seed=subject.seed), torch.no_grad():
        try:
            found = last_copies(modules, run, len(distinct))
            return found if found is not None and takes_their_mean(found, run, len(distinct)) else None
        except ForwardError:  # it takes no images that are moved
            return None


def _told_apart(subject: Subject, few: Inputs) -> Inputs | None:
    """Return examples whose parts differ, so that what is equal inside of a network are copies; None without any."""
    if len(few) < 2:
        return None
    if isinstance(few, Tensor) and few.is_floating_point():
        generator = torch.Generator().manual_seed(subject.seed)
        noise = torch.randn(few.shape, generator=generator, dtype=torch.float64)
        scale = float(few.double().std()) or 1.0
        return few + (0.1 * scale * noise).to(few)
    held = few.tensors if isinstance(few, Batch) else [few]
    telling = [t for t in held if t.ndim > 1 and bool((t.flatten(1) != t.flatten(1)[:, :1]).any())]
    return few if telling else None


def _repeated(builds: Builds) -> str:
    where = _first_of(builds.repeated)
    how = ""
    if builds.seeds:
        how = f", from generators of their own that start from fixed seeds ({next(iter(builds.seeds.values()))} first)"
    return f"two models of the factory draw the same noise in {where}, however the global generator is seeded{how}"


def _first_of(paths: Sequence[str]) -> str:
    first, others = called(paths[0]), len(paths) - 1
    return f"{first} and {others} more layer{'s' if others > 1 else ''}" if others else first


def _draws_again(builds: Builds, path: str) -> str:
    own = (
        f", with a generator of its own that starts from the seed {builds.seeds[path]}" if path in builds.seeds else ""
    )
    return f"draws what the same layer of another model draws{own}"


def _at_fault(subject: Subject, path: str, finding: str) -> LayerFinding:
    kind = next((layer.kind for layer in bayesian_layers(subject.model) if layer.path == path), "")
    return LayerFinding(path=path, kind=kind, ok=False, finding=finding)
