"""Which layers the data's gradient reaches, and whether it should: by what changes the loss's value."""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_bnn.checks._objective import Evaluation, evaluate
from pytest_bnn.checks.finding import Finding, LossError, not_applicable
from pytest_bnn.checks.loss._replaced import moves_with_the_outputs
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.cut import Key, key_of
from pytest_bnn.libraries.posterior import BayesianLayer
from pytest_bnn.libraries.protocol import tensors_of
from pytest_bnn.network.naming import called
from pytest_bnn.network.tree import tensors
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject


def arrived(left: Evaluation, layer: BayesianLayer) -> bool:
    """Return whether the loss is connected to what a layer drew, in any of its calls."""
    return layer.path in left.used.arrived


def unreached(subject: Subject, judged: list[BayesianLayer], left: Evaluation) -> Finding | None:
    """Name the layers whose weights change the loss while no gradient of it comes back to them."""
    lost = [layer for layer in judged if not arrived(left, layer)]
    if not lost:
        return None
    moved, repeats, _, _ = _pushed(subject, lost, left)
    if not repeats:
        return not_applicable(
            f"no gradient of the data comes to {called(lost[0].path)}, and the loss changes from call to "
            "call by itself, so that it cannot be told whether one should: freeze its state for the audit"
        )
    everywhere = len(lost) == len(judged)
    if not moved and not everywhere:
        return None  # an output that the loss does not use
    rows = tuple(
        LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding="no gradient of the data comes to it")
        for layer in lost
    )
    if not moved:
        headline = "the loss has no data term: it does not change with the outputs of the model"
        remedy = "add the data term, such as cross_entropy(model(inputs), labels), to the KL term"
    elif everywhere:
        headline = "the data term is in the loss but detached: no gradient of the data comes to any drawn weight"
        remedy = "keep the data term in the graph: no .item(), .detach() or no_grad on its way"
    else:
        headline = (
            f"the data term is cut off from {len(lost)} of {len(judged)} layers, {called(lost[0].path)} first: their "
            "weights change the loss, and no gradient of the data comes back; the KL term alone moves their mu and "
            "sigma"
        )
        remedy = (
            "run these layers with gradients (no no_grad or detach around them), or leave their KL out of the loss "
            "where they are meant to stay as they are"
        )
    return Finding(
        verdict=Verdict.FAIL,
        headline=headline,
        measurements=(Measurement(name="layers that the data do not reach", value=len(lost)),),
        threshold=Threshold(quantity="layers that the data do not reach", observed=len(lost), relation="==", allowed=0),
        layers=rows,
        remedy=remedy,
    )


def without_effect(subject: Subject, judged: list[BayesianLayer], left: Evaluation) -> Finding | None:
    """Find a loss that does not depend on the outputs, so that every gradient of the data is exactly 0."""
    paths = {layer.path for layer in judged}
    if not paths & left.used.arrived or paths & left.used.pulled:
        return None
    moved, repeats, before, after = _pushed(subject, judged, left)
    if moved or not repeats or not _differ(before, after):
        return None  # saturated, or an input from which nothing comes
    if moves_with_the_outputs(subject, judged, left):
        return None  # a hinge that is 0 on all that the network gives
    return Finding(
        verdict=Verdict.FAIL,
        headline="the loss does not change with the outputs of the model: the data's gradient is exactly 0 everywhere",
        measurements=(Measurement(name="layers that the data do not reach", value=len(judged)),),
        threshold=Threshold(
            quantity="layers that the data do not reach", observed=len(judged), relation="==", allowed=0
        ),
        remedy="look for what makes the data term constant: a softmax over a single score, a factor 0, a rounding or "
        "an argmax between outputs and loss",
    )


def _pushed(
    subject: Subject, layers: list[BayesianLayer], left: Evaluation
) -> tuple[bool, bool, list[Tensor], list[Tensor]]:
    """Evaluate the loss with other weights in some layers: whether it changes, and repeats itself; outputs of both."""
    try:
        again = evaluate(subject, layers, noise="cut", backward=False, free_rho=True)
        for times in (1.0, 10.0, -10.0, 100.0):  # what counts whole classes may need more
            push = _push(layers, times)
            pushed = evaluate(subject, layers, noise="cut", backward=False, free_rho=True, push=push)
            if pushed.value != again.value:
                break
    except (InputError, LossError):
        return True, True, [], []
    rounding = 1e-5 * max(abs(left.value), abs(again.value))
    repeats = abs(again.value - left.value) <= rounding
    moved = abs(pushed.value - again.value) > rounding
    return moved, repeats, _outputs(again), _outputs(pushed)


def _push(layers: list[BayesianLayer], times: float) -> dict[Key, Tensor]:
    generator = torch.Generator().manual_seed(2)
    found = {}
    for tensor in tensors_of(layers):
        mu = tensor.mu.detach()
        size = max(float(mu.double().square().mean().sqrt()), float(tensor.sigma.double().mean()), 1e-3)
        noise = torch.randn(mu.shape, generator=generator, dtype=torch.float64).to(mu.device)
        found[key_of(tensor)] = times * size * noise
    return found


def _outputs(found: Evaluation) -> list[Tensor]:
    return [leaf for call in found.outputs for leaf in tensors(call.output)]


def _differ(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) > 0 and any(
        a.shape == b.shape and not torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )
