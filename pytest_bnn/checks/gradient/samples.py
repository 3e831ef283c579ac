"""``gradient.samples``: is the gradient of a loss that of the noise which its forward passes used?"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.checks._objective import (
    FINITE_DERIVATIVE,
    Evaluation,
    cut_of,
    evaluate,
    is_finite,
    loss_of,
    without_a_gradient,
)
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import NOTHING_BAYESIAN, Finding, LossError, not_applicable
from pytest_bnn.checks.gradient._buffers import own_buffers
from pytest_bnn.checks.gradient._differentiated import computes_with_gradients
from pytest_bnn.checks.gradient._identity import Row, beyond_rounding, rows_of, undifferentiated
from pytest_bnn.checks.kl._sick import not_finite
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.cut import key_of
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers
from pytest_bnn.libraries.protocol import tensors_of
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject

#: A distance to the exact gradient that no rounding of terms which cancel explains.
_FAR = 1e-2


@check(
    claim="The gradient of the training loss to mu and rho is that of the noise which each of its forward passes used.",
    needs=("loss", "images"),
    can=("mean_field", "used_weights"),
    after="kl.loss",
)
def samples(subject: Subject) -> Finding:
    """Measure whether the gradient of the loss is that of the noise which its forward passes used.

    bayesian-torch's layers write their noise into a buffer that the next pass writes over, behind autograd's back:
    where a loss runs several passes before one backward, every pass's gradient to rho uses the noise of the last. For a
    weight w = mu + sigma * eps the data's part of the gradient is dL/dw to mu, and dL/dw * eps * dsigma/drho to rho,
    summed over the draws; with Flipout mu has that of the mean's kernel and rho that of the perturbation's. What is not
    the data's part is what is left where the drawn weights are cut off. Both sides are read off one evaluation, so that
    a loss with a state of its own is judged too: an identity to float tolerance, no statistics.

    Args:
        subject: loss and images, at least; see `Subject`. The loss gets one batch, see `Subject.loss_batch`; it
            may call backward itself.

    Raises:
        InputError: The loss raised, or returned no scalar tensor.

    Source: Kingma and Welling 2014, section 2.3, for the gradient of a sample with its own noise.
    """
    return _find(subject)


measure_gradient_samples, assert_gradient_samples = samples.measure, samples.assert_


def _find(subject: Subject) -> Finding:
    layers = bayesian_layers(subject.model)
    if not layers:
        return not_applicable(NOTHING_BAYESIAN)
    sick = not_finite(layers)
    if sick:
        return not_applicable(
            f"{called(sick[0].path)} ({sick[0].finding}): see kl.present, and load or train its weights again; no "
            "gradient is right there"
        )
    left = cut_of(subject, layers)
    found = evaluate(subject, layers, keep_weights=True)
    tensors = tensors_of(layers)
    lost = [t for t in tensors if not all(map(is_finite, found.gradients[key_of(t)]))]
    if lost:
        if any(not all(map(is_finite, left.gradients[key_of(t)])) for t in lost):
            return not_applicable(
                "the loss's gradient to mu or rho is NaN or infinite beside the data's part, too: see kl.loss, and "
                "give a loss that has a derivative there"
            )
        return without_a_gradient(lost, len(tensors), of="mu or rho", remedy=FINITE_DERIVATIVE)
    if not any(g is not None for pair in found.gradients.values() for g in pair):
        return not_applicable(
            "no gradient of the loss reaches a mu or rho: see kl.loss, and compute the loss from outputs of the model "
            "that it is given, with their gradient; the claim is about these gradients"
        )
    cut_off = undifferentiated(found)
    rows = rows_of(found, left, tensors)
    if (cut_off or any(row.off > row.allowed for row in rows)) and (normal := _by_normal(subject, layers)):
        return normal
    if not rows and not cut_off:
        why = (
            f"{called(found.calls[0].layer.path)} draws in another way"
            if found.calls
            else "no layer is called in the loss"
        )
        return not_applicable(
            f"no layer shows the weight that it draws ({why}): the claim is about weights mu + sigma * eps that a "
            "convolution or linear call uses; see docs/checks/gradient.samples.md"
        )
    bad = [row for row in rows if row.off > row.allowed]
    if bad and _changes_by_itself(subject, layers, left):
        return not_applicable(
            "the loss keeps a state of its own: what it adds to the data's part changes from call to call, with "
            "everything else the same, and gradients cannot be compared; freeze its schedule for the audit"
        )
    if bad and computes_with_gradients(subject, layers):
        return not_applicable(
            "the loss takes gradients itself and computes with them (create_graph=True), as a gradient penalty does: "
            "its own gradient holds second derivatives, which the noise of its passes alone does not tell; give the "
            "loss without that term to judge the rest"
        )
    if bad and max(row.off for row in bad) < _FAR:
        third = evaluate(subject, layers, noise="cut", free_rho=True, times=1 / 3)
        kept = beyond_rounding(bad, left, third)
        rows = [row for row in rows if row not in bad or row in kept]
    if again := _drawn_again(layers, found):
        return again
    return _finding(subject, layers, found, left, rows, cut_off)


def _by_normal(subject: Subject, layers: tuple[BayesianLayer, ...]) -> Finding | None:
    """Name the layers that draw weights by ``torch.normal`` of mu and sigma, through which no gradient comes."""
    try:
        silent = evaluate(subject, layers, noise="silent", backward=False)
    except (InputError, LossError):
        return None
    found = [layer for layer in layers if layer.path in silent.by_normal]
    if not found:
        return None
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"{len(found)} of {len(layers)} layers draw by torch.normal(mean, std), "
        f"{called(found[0].path)} first: no gradient of the data comes through it to the mean or the std",
        layers=tuple(
            LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding="draws by torch.normal(mean, std)")
            for layer in found
        ),
        remedy="write mean + std * torch.randn_like(mean), or take rsample() of a torch.distributions.Normal",
    )


def _changes_by_itself(subject: Subject, layers: tuple[BayesianLayer, ...], left: Evaluation) -> bool:
    """Return whether the gradient beside the data's part is another one when it is taken again."""
    again = evaluate(subject, layers, noise="cut")
    for key, pair in left.gradients.items():
        for one, other in zip(pair, again.gradients[key], strict=True):
            if (one is None) != (other is None):
                return True
            if one is not None and other is not None and float((one - other).norm()) > 1e-3 * float(one.norm()):
                return True
    return False


def _same_with_own_buffers(subject: Subject, layers: tuple[BayesianLayer, ...], left: Evaluation) -> bool:
    """Return whether gradients are right once each call has noise buffers of its own: then sharing is the cause."""
    with own_buffers(layers):
        found = evaluate(subject, layers, keep_weights=True)
    return all(row.off <= row.allowed for row in rows_of(found, left, tensors_of(layers)))


def _drawn_again(layers: tuple[BayesianLayer, ...], found: Evaluation) -> Finding | None:
    """Name the layers that were run again in the backward pass, by activation checkpointing, with other noise."""
    if not any(call.again for call in found.calls):
        return None
    first: dict[tuple[str, str], list[Tensor]] = {}
    for call in found.calls:
        if not call.again:
            for tensor, noise in call.noise():
                first.setdefault(key_of(tensor), []).append(noise)
    other: dict[str, LayerFinding] = {}
    for call in found.calls:
        for tensor, noise in call.noise() if call.again else ():
            if not any(torch.equal(noise, before) for before in first.get(key_of(tensor), [noise])):
                other[tensor.path] = LayerFinding(
                    path=tensor.path, kind=call.layer.kind, ok=False,
                    finding=f"its {tensor.role}: it was drawn anew when the layer ran again in the backward pass",
                )  # fmt: skip
    if not other:
        return None
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"{len(other)} of {len(layers)} layers run again in the backward pass with other noise than in the "
        f"forward pass, {called(next(iter(other)))} first: the gradient is that of another loss",
        measurements=(Measurement(name="layers drawn anew", value=len(other), note="in activation checkpointing"),),
        threshold=Threshold(quantity="layers drawn anew", observed=len(other), relation="==", allowed=0),
        layers=tuple(other.values()),
        remedy="call torch.utils.checkpoint.checkpoint with preserve_rng_state=True, its default",
    )


def _finding(
    subject: Subject,
    layers: tuple[BayesianLayer, ...],
    found: Evaluation,
    left: Evaluation,
    rows: list[Row],
    cut_off: list[PosteriorTensor],
) -> Finding:
    most = max(Counter(call.layer.path for call in found.calls if not call.again).values(), default=0)
    bad = sorted((row for row in rows if row.off > row.allowed), key=lambda row: -row.off / row.allowed)
    detached = [*cut_off, *(row.tensor for row in bad if row.of == "rho" and row.missing and row.tensor not in cut_off)]
    bad = [row for row in bad if row.tensor not in detached]
    kinds = {layer.path: layer.kind for layer in layers}
    findings = [
        LayerFinding(
            path=row.tensor.path, kind=kinds[row.tensor.path], ok=False,
            finding=f"its {row.tensor.role}: the data's gradient to {row.of} has {row.ratio:.3g} times the length of "
            f"the exact one, and the cosine {row.cosine:.3g} with it",
        )
        for row in bad
    ] + [
        LayerFinding(
            path=tensor.path, kind=kinds[tensor.path], ok=False,
            finding=f"its {tensor.role}: its noise moves the loss, and no gradient of the data reaches rho",
        )
        for tensor in detached
    ]  # fmt: skip
    times = f"{most} forward passes" if most != 1 else "one forward pass"
    headline = f"the gradients of {len(rows)} tensors are those of the noise used, with {times} before a backward pass"
    remedy = ""
    if bad:
        headline, remedy = _of_other_noise(subject, layers, left, bad, len(rows), most)
    elif detached:
        headline = (
            f"the data do not reach the rho of {len(detached)} of {len(rows)} tensors: sigma learns from the KL alone"
        )
        remedy = "keep the noise in the graph: w = mu + sigma * eps, with neither detach() nor .data on sigma"
    worst = max(rows, key=lambda row: row.off / row.allowed, default=None)
    measured = [Measurement(name="forward passes of a loss", value=most, note="the most calls of one layer")]
    if worst is not None:
        measured += [
            Measurement(
                name="largest distance to the exact gradient", value=worst.off, unit="of its length",
                note=f"{worst.tensor.name}, to {worst.of}",
            ),
            Measurement(name=f"length of that gradient to {worst.of}", value=worst.ratio, unit="of the exact one"),
            Measurement(name=f"cosine of that gradient to {worst.of}", value=worst.cosine, note="with the exact one"),
        ]  # fmt: skip
    return Finding(
        verdict=Verdict.FAIL if findings else Verdict.PASS,
        headline=headline,
        measurements=tuple(measured),
        threshold=None
        if worst is None
        else Threshold(
            quantity="distance to the exact gradient", observed=worst.off, relation="<=", allowed=worst.allowed
        ),
        layers=tuple(findings),
        remedy=remedy,
        notes=_notes(layers, rows, found),
        samples=most,
    )


def _of_other_noise(
    subject: Subject, layers: tuple[BayesianLayer, ...], left: Evaluation, bad: list[Row], rows: int, most: int
) -> tuple[str, str]:
    """Say what is wrong with gradients that are not those of the noise used, and what to do about it."""
    if not _same_with_own_buffers(subject, layers, left):
        return (
            f"{len(bad)} of {rows} tensors get another gradient from the data than that of the weights that were "
            f"used, `{bad[0].tensor.name}` first"
        ), "look for what comes between mu, rho and the drawn weight: a detach(), .data, or a gradient of one's own"
    buffers = (
        "give each call of a layer new noise buffers, from a forward pre-hook: for each eps buffer, "
        "layer._buffers[name] = torch.empty_like(layer._buffers[name])"
    )
    times = f"{most} forward passes" if most != 1 else "one forward pass"
    headline = f"{len(bad)} of {rows} tensors get the gradient of other noise than was used, with {times}"
    if most == 1:
        return headline, (
            "give every layer a noise buffer of its own: another layer writes over it before the backward pass"
        )
    if _is_a_sum(subject):
        return headline, (
            "run one backward pass for each forward pass and let the gradients add up: (loss_k / K).backward() in "
            f"a loop; or {buffers}"
        )
    return headline, buffers


def _notes(layers: tuple[BayesianLayer, ...], rows: list[Row], found: Evaluation) -> tuple[str, ...]:
    notes = []
    lost = sum(row.lost for row in rows)
    if lost:
        notes.append(
            f"of the data's part of the gradient to rho nothing is left beside the KL's in {lost} of "
            f"{len(rows)} tensors"
        )
    judged = {key_of(row.tensor) for row in rows}
    called = {call.layer.path for call in found.calls}
    hidden = [t.name for t in tensors_of(layers) if key_of(t) not in judged and t.path in called]
    if hidden and rows:
        notes.append(
            f"not judged: {', '.join(hidden[:3])}"
            + (f" and {len(hidden) - 3} more" if len(hidden) > 3 else "")
            + ": no drawn weight with a gradient is seen there"
        )
    return tuple(notes)


def _is_a_sum(subject: Subject) -> bool:
    """Return whether the loss is a sum over its forward passes: its gradient to one's outputs depends on no other.

    A mean of outputs inside a logarithm, or their spread, is none: it cannot be run backward pass by pass.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output_tensor(output))

    try:
        with undisturbed(subject.model, seed=subject.seed), torch.enable_grad():
            subject.model.register_forward_hook(keep)
            value = loss_of(subject)
            (slope,) = torch.autograd.grad(value, outputs[0], create_graph=True)
            if len(outputs) < 2:
                return False
            if not slope.requires_grad:
                return True
            weights = torch.linspace(1, 2, slope.numel(), dtype=slope.dtype, device=slope.device).view_as(slope)
            mixed = torch.autograd.grad((slope * weights).sum(), outputs[1:], allow_unused=True)
    except Exception:  # not a loss that can be taken apart
        return False
    return not any(part is not None and bool(part.any()) for part in mixed)
