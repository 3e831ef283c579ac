"""The noise that a loss trains with: whether its layers draw in train mode as they do elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pytest_bnn.checks._objective import Evaluation, cut_of, evaluate
from pytest_bnn.libraries.capture import capture
from pytest_bnn.libraries.cut import Key, key_of
from pytest_bnn.libraries.posterior import BayesianLayer
from pytest_bnn.network.calling import forward
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.network.tree import mapped
from pytest_bnn.subject import Subject

#: Relative difference of two gradients that are the same, up to rounding.
_SAME = 1e-4

#: Rows of the pass that shows that the model draws.
_ROWS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is wrong with the noise in train mode.

    Attributes:
        layers: Those it is wrong in.
        finding: What is wrong with each.
        words: The same in a headline, after the number of layers.
        remedy: What to do.
        judged: Whether the loss ran in train mode.
        meant: Whether it may be meant.
        notes: What was not judged.
    """

    layers: tuple[BayesianLayer, ...] = ()
    finding: str = ""
    words: str = ""
    remedy: str = ""
    judged: bool = False
    meant: bool = False
    notes: tuple[str, ...] = ()

    def headline(self, of: int) -> str:
        """Say what is wrong, in how many ``of`` the layers."""
        first = called(self.layers[0].path)
        what = self.words.format(f"{len(self.layers)} of {of} layers")
        return f"{what}, {first} first: sigma {'does not see the data there' if self.meant else 'never sees the data'}"


_DRAW = (
    "let the forward draw in train mode as it does in eval mode: training is what the noise is for; where this is a "
    "warm-up of the means, say so: --set loss.data.severity=off"
)


def noise_in_training(subject: Subject, layers: tuple[BayesianLayer, ...], left: Evaluation) -> Training:
    """Judge the noise in train mode beside that in eval mode.

    Args:
        subject: With a loss and images.
        layers: The model's Bayesian layers.
        left: The cut in eval mode.
    """
    noisy = _noisy(left)
    drawn = noisy or _drawn_outside(subject, left)
    if not drawn:
        return Training()  # noise.source says so
    try:
        trained = cut_of(subject, layers, train=True)
    except Exception as error:  # what it cannot do in train mode says nothing of its noise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Training(notes=(f"the noise in train mode is not judged, since the loss does not run there: {why}",))
    wide = [layer for layer in layers if any(bool(t.sigma.any()) for t in layer.tensors)]
    if not noisy:
        return _at_the_mean(subject, wide, drawn, left, trained)
    called = trained.used.shown
    before = {key_of(tensor) for tensor in left.undrawn}
    at_mu = {tensor.path for tensor in trained.undrawn} - {path for path, _ in before}
    silent = {path for path, _ in noisy} - {path for path, _ in _noisy(trained)}
    if still := tuple(layer for layer in wide if layer.path in silent and layer.path in called | at_mu):
        return Training(
            layers=still,
            finding="it has no noise in train mode",
            words="in train mode {} compute with mu, without noise",
            remedy=_DRAW,
            judged=True,
        )
    lost = {path for path, _ in (noisy & _noisy(trained) & left.to_rho) - trained.to_rho}
    return Training(
        layers=tuple(layer for layer in wide if layer.path in lost),
        finding="no gradient of the data reaches rho in train mode",
        words="in train mode {} draw weights that no gradient to rho comes from",
        remedy="keep the noise in the graph in train mode, too: w = mu + sigma * eps, with neither detach() nor .data "
        "on sigma",
        judged=True,
    )


def _at_the_mean(
    subject: Subject, wide: list[BayesianLayer], drawn: set[Key], left: Evaluation, trained: Evaluation
) -> Training:
    """Say whether the loss takes the outputs at the posterior mean in both modes, of a model that draws by itself.

    Only where sigma is trained, and not by the data: a loss may be of the means alone, or know what sigma does to the
    outputs without a draw. Noise may also come in step by step, with none in the first one, which cannot be told.
    """
    if _noisy(trained):
        return Training(judged=True)
    shown = left.used.shown & trained.used.shown
    pulled = {path for (path, _), (_, to_rho) in left.gradients.items() if to_rho is not None and bool(to_rho.any())}
    at_mu = {path for path, _ in drawn} & shown & pulled
    if not at_mu or not _same_for_other_data(subject, tuple(wide), left):
        return Training(judged=True)
    return Training(
        layers=tuple(layer for layer in wide if layer.path in at_mu),
        finding="it has no noise in the loss",
        words="in the loss {} compute with mu, in eval and in train mode, and draw noise outside of it",
        remedy="take the data term from a pass of the model as it predicts, with noise; where this is meant, or is the "
        "first step of a schedule that lets noise in, say so: --set loss.data.severity=off",
        judged=True,
        meant=True,
    )


def _same_for_other_data(subject: Subject, layers: tuple[BayesianLayer, ...], left: Evaluation) -> bool:
    """Say whether the gradient to rho, beside the drawn weights, is the same for half of every number in the data."""
    halved = []

    def half(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        halved.append(leaf)
        return (leaf.detach() / 2).requires_grad_(leaf.requires_grad)

    try:
        batch = mapped(subject.loss_batch(), half)
        other = evaluate(subject, layers, noise="cut", free_rho=True, batch=batch)
    except Exception:  # it takes no such data
        return False
    if not halved:
        return False
    for key, (_, before) in left.gradients.items():
        after = other.gradients.get(key, (None, None))[1]
        if (before is None) != (after is None):
            return False
        if before is not None and after is not None and float((before - after).norm()) > _SAME * float(before.norm()):
            return False
    return True


def _noisy(found: Evaluation) -> set[Key]:
    return set(found.used.noisy)


def _drawn_outside(subject: Subject, left: Evaluation) -> set[Key]:
    """Return the tensors that have noise in a pass of the model by itself; nothing where the loss shows no call."""
    if not left.used.shown:
        return set()
    with undisturbed(subject.model, seed=subject.seed), torch.no_grad(), capture(subject.model) as calls:
        forward(subject.model, subject.require_images()[:_ROWS])
        return {key_of(tensor) for call in calls for tensor in call.noisy()}
