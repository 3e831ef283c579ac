"""``gradient.samples``: is the gradient of a loss that of the noise which its forward passes used?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.checks._objective import (
    FINITE_DERIVATIVE,
    Evaluation,
    evaluate,
    is_finite,
    key_of,
    loss_of,
    unproven,
    without_a_gradient,
)
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import NOTHING_BAYESIAN, Finding, LossError, not_applicable
from pytest_bnn.checks.gradient._buffers import own_buffers
from pytest_bnn.checks.kl._sick import not_finite
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor, bayesian_layers
from pytest_bnn.libraries.protocol import tensors_of
from pytest_bnn.libraries.registry import nobody_knows
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject

#: The data's part of a gradient must show where it is longer than the first share of the whole gradient; it is missing
#: where less than the second share of its own length is left.
_VISIBLE, _MISSING = 1e-4, 1e-2


@check(
    claim="The gradient of the training loss to mu and rho is that of the noise which each of its forward passes used.",
    needs=("loss", "images"),
    after="kl.loss",
)
def samples(subject: Subject) -> Finding:
    """Measure whether the gradient of the loss is that of the noise which its forward passes used.

    bayesian-torch's layers write their noise into a buffer that the next pass writes over, behind autograd's back:
    where a loss runs several passes before one backward, every pass's gradient to rho uses the noise of the last. The
    loss is evaluated twice with the same random numbers, as it is, and with a noise buffer of its own for every call of
    a layer. Both gradients must be equal to float tolerance: an identity, no statistics. A third evaluation, with
    every eps at 0, gives what is not the data's part of the gradient to rho, so that the data's part is compared by
    itself, however large the KL term is. In addition the data's part must be there: it is the gradient to the drawn
    weight times eps times sigmoid(rho).

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
        return not_applicable(nobody_knows(subject.model) or NOTHING_BAYESIAN)
    sick = not_finite(layers)
    if sick:
        return not_applicable(
            f"{sick[0].path} {sick[0].finding}: see kl.present, and load or train its weights again; no gradient is "
            "right there"
        )
    if why := unproven(subject):
        return not_applicable(f"{why}; the data's part of a gradient is what the silent noise leaves out")
    # First, so that a model which keeps noise from pass to pass does not repeat itself, and is not judged.
    silent = _silent(subject, layers)
    as_it_is = evaluate(subject, layers, keep=True)
    tensors = tensors_of(layers)
    lost = [t for t in tensors if not all(map(is_finite, as_it_is.gradients[key_of(t)]))]
    if silent is not None and not all(is_finite(to_rho) for _, to_rho in silent.gradients.values()):
        if any(not is_finite(silent.gradients[key_of(t)][1]) for t in lost):
            return not_applicable(
                "the loss's gradient to rho is NaN or infinite without any noise: see kl.loss, and give a loss that "
                "has a derivative there; the data's part of a gradient is what the silent noise leaves out"
            )
        silent = None
    if lost:
        return without_a_gradient(lost, len(tensors), of="mu or rho", remedy=FINITE_DERIVATIVE)
    if not any(g is not None for pair in as_it_is.gradients.values() for g in pair):
        return not_applicable(
            "no gradient of the loss reaches a mu or rho: see kl.loss, and compute the loss from outputs of the model "
            "that it is given, with their gradient; the claim is about these gradients"
        )
    if found := _not_differentiable(layers, silent):
        return found
    with own_buffers(layers):
        exact = evaluate(subject, layers)
    rows = [_compared(tensor, as_it_is, exact, silent) for tensor in tensors]
    bad = [row for row in rows if row.off > row.allowed]
    if bad and not _repeats_itself(subject, layers, as_it_is, silent):
        return not_applicable(
            "the loss gives another gradient each time, from the same seed: it keeps a state of its own, "
            "and gradients cannot be compared; give a loss that depends on the model and the batch alone"
        )
    if found := _drawn_again(layers, as_it_is):
        return found
    detached = [] if bad or silent is None else _detached(layers, as_it_is, silent)
    return _finding(subject, layers, as_it_is, rows, detached)


def _silent(subject: Subject, layers: tuple[BayesianLayer, ...]) -> Evaluation | None:
    """Evaluate without noise; None where the loss has no value there: a likelihood of the passes' spread has none."""
    try:
        return evaluate(subject, layers, silent=True)
    except (InputError, LossError):
        evaluate(subject, layers, backward=False)  # where it raises with noise too, that is the error
        return None


def _not_differentiable(layers: tuple[BayesianLayer, ...], silent: Evaluation | None) -> Finding | None:
    """Name the layers that draw weights by ``torch.normal`` of mu and sigma, through which no gradient comes."""
    if silent is None or not silent.cut:
        return None
    found = [layer for layer in layers if layer.path in silent.cut]
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"{len(found)} of {len(layers)} layers draw by torch.normal(mean, std), "
        f"{found[0].path or 'the model itself'} first: no gradient of the data comes through it to the mean or the std",
        layers=tuple(
            LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding="draws by torch.normal(mean, std)")
            for layer in found
        ),
        remedy="write mean + std * torch.randn_like(mean), or take rsample() of a torch.distributions.Normal",
    )


def _drawn_again(layers: tuple[BayesianLayer, ...], found: Evaluation) -> Finding | None:
    """Name the layers that were run again in the backward pass, by activation checkpointing, with other noise."""
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
                    finding=f"{tensor.role}: drawn anew when the layer ran again in the backward pass",
                )  # fmt: skip
    if not other:
        return None
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"{len(other)} of {len(layers)} layers run again in the backward pass with other noise than in the "
        f"forward pass, {next(iter(other)) or 'the model itself'} first: the gradient is that of another loss",
        measurements=(Measurement(name="layers drawn anew", value=len(other), note="in activation checkpointing"),),
        threshold=Threshold(quantity="layers drawn anew", observed=len(other), relation="==", allowed=0),
        layers=tuple(other.values()),
        remedy="call torch.utils.checkpoint.checkpoint with preserve_rng_state=True, its default",
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One tensor's gradients: how far they are from the exact ones, relative to these; rho's length and direction.

    To rho only the data's part counts, which is what noise has a part in; it may be lost in the rounding of the rest.
    """

    tensor: PosteriorTensor
    off: float
    allowed: float
    ratio: float
    cosine: float
    lost: bool


def _compared(tensor: PosteriorTensor, found: Evaluation, exact: Evaluation, silent: Evaluation | None) -> _Row:
    eps = torch.finfo(tensor.mu.dtype).eps
    calls = sum(call.layer.path == tensor.path for call in exact.calls)
    off, allowed, ratio, cosine, lost = 0.0, 100 * eps, 1.0, 1.0, False
    without = None if silent is None else silent.gradients[key_of(tensor)][1]
    of_rho = (torch.zeros_like(tensor.mu_parameter).double(), without)
    pairs = zip(found.gradients[key_of(tensor)], exact.gradients[key_of(tensor)], of_rho, strict=True)
    for one, other, rest in pairs:
        if one is None or other is None:
            off = max(off, float(one is not other))
            continue
        # The parts of the passes and the KL's are added one by one, each time rounded.
        rounding = 0.0 if rest is None else (calls + 1) * eps * float(rest.norm())
        one, other = (part if rest is None else part - rest for part in (one, other))
        size, apart = float(other.norm()), float((one - other).norm())
        if size:
            most = 100 * eps + rounding / size
            lost = most >= 1
            off, allowed = max((off, allowed), (apart / size, most), key=lambda pair: pair[0] / pair[1])
        else:
            off, lost = max(off, float(apart > rounding)), rest is not None
        ratio = float(one.norm()) / size if size else 1.0
        both = float(one.norm()) * size
        cosine = float((one * other).sum()) / both if both else 1.0
    return _Row(tensor, off, allowed, ratio, cosine, lost)


def _repeats_itself(
    subject: Subject, layers: tuple[BayesianLayer, ...], found: Evaluation, silent: Evaluation | None
) -> bool:
    again = evaluate(subject, layers)
    rows = [_compared(tensor, found, again, silent) for layer in layers for tensor in layer.tensors]
    return all(row.off <= row.allowed for row in rows)


def _detached(layers: tuple[BayesianLayer, ...], found: Evaluation, silent: Evaluation) -> list[PosteriorTensor]:
    """Give the tensors whose noise moves the loss although the data's part of the gradient to rho is missing."""
    data: dict[tuple[str, str], Tensor] = {}
    cut: set[tuple[str, str]] = set()
    for call in found.calls:
        for tensor, noise in call.noise():
            drawn = call.functional[-1].weight if tensor.role == "weight" else call.functional[-1].bias
            in_a_graph = output_tensor(call.output).requires_grad and tensor.rho_parameter.requires_grad
            if drawn is not None and in_a_graph and not drawn.requires_grad and bool(noise.any()):
                cut.add(key_of(tensor))
            if drawn is not None and drawn.retains_grad and drawn.grad is not None:
                per_sigma = noise.double() / tensor.sigma.double().clamp_min(1e-300)
                part = tensor.data_to_rho(drawn.grad, per_sigma)
                data[key_of(tensor)] = data.get(key_of(tensor), torch.zeros_like(part)) + part
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    if not data:
        return [tensor for tensor in tensors if key_of(tensor) in cut]
    for tensor in tensors:
        if key_of(tensor) in data and tensor.rho_parameter.requires_grad:
            part = data[key_of(tensor)]
            to_rho = found.gradients[key_of(tensor)][1]
            of_the_kl = silent.gradients[key_of(tensor)][1]
            whole = torch.zeros_like(part) if to_rho is None else to_rho
            of_the_data = whole if of_the_kl is None else whole - of_the_kl
            # Beside the KL's part the data's is rounded with it, in the dtype of the gradient.
            least = max(_VISIBLE, 10 * torch.finfo(tensor.rho_parameter.dtype).eps)
            beside = max(float(whole.norm()), 0.0 if of_the_kl is None else float(of_the_kl.norm()))
            visible = float(part.norm()) > least * beside and bool(torch.isfinite(part).all())
            if visible and float(of_the_data.norm()) < _MISSING * float(part.norm()):
                cut.add(key_of(tensor))
    return [tensor for tensor in tensors if key_of(tensor) in cut]


def _finding(
    subject: Subject,
    layers: tuple[BayesianLayer, ...],
    found: Evaluation,
    rows: list[_Row],
    detached: list[PosteriorTensor],
) -> Finding:
    most = max(Counter(call.layer.path for call in found.calls if not call.again).values(), default=0)
    worst = max(rows, key=lambda row: row.off / row.allowed)
    bad = sorted((row for row in rows if row.off > row.allowed), key=lambda row: -row.off / row.allowed)
    kinds = {layer.path: layer.kind for layer in layers}
    findings = [
        LayerFinding(
            path=row.tensor.path, kind=kinds[row.tensor.path], ok=False,
            finding=f"{row.tensor.role}: the gradient to rho has {row.ratio:.3g} times the length of the exact one, "
            f"and the cosine {row.cosine:.3g} with it",
        )
        for row in bad
    ] + [
        LayerFinding(
            path=tensor.path, kind=kinds[tensor.path], ok=False,
            finding=f"{tensor.role}: its noise moves the loss, and no gradient of the data reaches rho",
        )
        for tensor in detached
    ]  # fmt: skip
    lost = sum(row.lost for row in rows)
    share = f"{lost} of {len(rows)} tensors"
    notes = (f"of the data's part of the gradient to rho nothing is left beside the KL's in {share}",)
    times = f"{most} forward passes" if most != 1 else "one forward pass"
    headline = f"the gradients of {len(rows)} tensors are those of the noise used, with {times} before a backward pass"
    remedy = ""
    if bad:
        headline = f"{len(bad)} of {len(rows)} tensors get the gradient of other noise than was used, with {times}"
        remedy = (
            "give each call of a layer new noise buffers, from a forward pre-hook: for each eps buffer, "
            "layer._buffers[name] = torch.empty_like(layer._buffers[name])"
        )
        if _is_a_sum(subject):
            remedy = (
                "run one backward pass for each forward pass and let the gradients add up: (loss_k / K).backward() in "
                f"a loop; or {remedy}"
            )
        if most == 1:
            remedy = "give every layer a noise buffer of its own: another layer writes over it before the backward pass"
    elif detached:
        headline = (
            f"the data do not reach the rho of {len(detached)} of {len(rows)} tensors: sigma learns from the KL alone"
        )
        remedy = "keep the noise in the graph: w = mu + sigma * eps, with neither detach() nor .data on sigma"
    return Finding(
        verdict=Verdict.FAIL if findings else Verdict.PASS,
        headline=headline,
        measurements=(
            Measurement(name="forward passes of a loss", value=most, note="the most calls of one layer"),
            Measurement(
                name="largest distance to the exact gradient", value=worst.off, unit="of its length",
                note=worst.tensor.name,
            ),
            Measurement(name="length of that gradient to rho", value=worst.ratio, unit="of the exact one"),
            Measurement(name="cosine of that gradient to rho", value=worst.cosine, note="with the exact one"),
        ),
        threshold=Threshold(
            quantity="distance to the exact gradient", observed=worst.off, relation="<=", allowed=worst.allowed
        ),
        layers=tuple(findings),
        remedy=remedy,
        notes=notes if lost else (),
        samples=most,
    )  # fmt: skip


def _is_a_sum(subject: Subject) -> bool:
    """Say whether the loss is a sum over its forward passes: its gradient to one's outputs does not depend on others.

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
