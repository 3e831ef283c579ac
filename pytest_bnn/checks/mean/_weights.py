"""Are the weights the teacher's, to their own rounding? Outputs in half precision hide a layer that is a tenth off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bnn.checks.finding import Finding
from pytest_bnn.libraries.alignment import Alignment
from pytest_bnn.libraries.fingerprint import apart_from, equal_values
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers
from pytest_bnn.network.comparing import tolerance
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject


@dataclass(frozen=True, slots=True)
class Other:
    """A tensor that is not the teacher's: where, by how much of its norm, and what rounding would explain."""

    path: str
    kind: str
    name: str
    apart: float
    allowed: float


def other_weights(teacher: nn.Module, model: nn.Module, alignment: Alignment) -> tuple[Other, ...]:
    """Return the posterior means that differ from the teacher's weights and biases by more than rounding.

    Empty where a weight of the teacher need not be that of the model for both to compute the same: where a
    normalisation is folded into a weight (it has no counterpart with the same statistics and scales), layers lie
    elsewhere, and for layers of the teacher that are not torch's own, or have parts or hooks that change what they
    compute.
    """
    modules = dict(teacher.named_modules(remove_duplicate=False))
    norms = {path: module for path, module in modules.items() if _normalises(module)}
    own = dict(model.named_modules(remove_duplicate=False))
    if alignment.moved or not all(_is_kept(norm, own.get(alignment.paths.get(p, "\0"))) for p, norm in norms.items()):
        return ()
    places = alignment.teacher_paths()
    layers = {layer.path: layer for layer in bayesian_layers(model)}
    found = []
    for tensor, weight in alignment.pairs:
        original = modules.get(places.get(tensor.path, "\0"))
        if original is None or not _is_plain(original):
            continue
        found += _compared(tensor, weight)
        bias = original._parameters.get("bias")
        for other in layers[tensor.path].tensors:
            if other.role == "bias" and bias is not None and bias.shape == other.mu.shape:
                found += _compared(other, bias)
    return tuple(found)


def _compared(tensor: PosteriorTensor, weight: Tensor) -> list[Other]:
    mu, weight = tensor.mu.detach(), weight.detach().to(tensor.mu.device)
    if equal_values(mu, weight):
        return []
    apart, allowed = apart_from(mu, weight)
    if apart <= allowed:
        return []
    return [Other(tensor.path, type(tensor.module).__name__, tensor.role, apart, allowed)]


def _normalises(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)


def _is_kept(norm: nn.Module, counterpart: nn.Module | None) -> bool:
    """Return whether a normalisation is in the model as it is in the teacher: nothing of it is folded into weights."""
    if type(counterpart) is not type(norm):
        return False
    here, there = counterpart.state_dict(), norm.state_dict()
    return here.keys() == there.keys() and all(equal_values(here[k], there[k].to(here[k].device)) for k in there)


def _is_plain(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks
    own = type(module).__module__.startswith("torch.nn.modules.")
    return own and not hooks and next(module.children(), None) is None and "weight" in module._parameters


def hidden(
    subject: Subject, other: tuple[Other, ...], apart: float, allowed: float, aligned: tuple[Measurement, ...]
) -> Finding:
    """Say which weights are not the teacher's though the outputs are, to the tolerance of their dtype."""
    worst = max(other, key=lambda found: found.apart)
    coarse = allowed > tolerance(torch.empty(0))
    if coarse:
        why = f"the outputs, in {_dtype(subject)}, differ by {apart:.3g} and could not show it below {allowed:.3g}"
        remedy = "audit it in float32, too: model.float() and teacher.float() show what the rounding of outputs hides; "
    else:
        why = "the outputs on these images do not depend on it"
        remedy = "give images that reach that layer (an expert that is not chosen, a branch that is scaled by 0); "
    return Finding(
        verdict=Verdict.FAIL if coarse else Verdict.WARN,
        headline=f"the {worst.name} of {called(worst.path)} is not the teacher's: it differs by "
        f"{worst.apart:.3g} of its norm, where rounding explains {worst.allowed:.2g}; {why}",
        measurements=(
            Measurement(name="largest difference", value=apart, unit="of the teacher's largest output"),
            Measurement(name="largest difference of a weight", value=worst.apart, unit="of its norm", note=worst.path),
            *aligned,
        ),
        threshold=Threshold(
            quantity="relative difference of a weight", observed=worst.apart, relation="<=", allowed=worst.allowed
        ),
        layers=tuple(
            LayerFinding(
                path=found.path, kind=found.kind, ok=False,
                finding=f"its {found.name} differs from the teacher's by {found.apart:.3g} of its norm",
            )
            for found in other
        ),
        remedy=remedy + "convert again after the weights were changed, or say --stage finetuned where they were "
        "trained on purpose",
    )  # fmt: skip


def _dtype(subject: Subject) -> str:
    return str(subject.teacher_output().dtype).removeprefix("torch.")
