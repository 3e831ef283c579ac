"""How what has no posterior is broken: the scale and shift of a norm, and its running statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.mutators.case import FACTORS, Apply, Case, Ways, first_is_nan, times

_STATISTICS = ("running_mean", "running_var")

#: The divergence of running statistics from what they normalise that `teacher.tensors` allows, in nats.
_ALLOWED = 1


def norms_of(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Return path, name and attribute of each tensor that may be broken."""
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            yield path, "weight", "norm's scale"
            yield path, "bias", "norm's shift"
            yield path, "running_mean", "running mean"
            yield path, "running_var", "running variance"


def of_kept(path: str, name: str, attribute: str) -> Ways:
    """Return every way to break one tensor of a norm."""
    start = float(name in ("weight", "running_var"))
    yield attribute, "at the constructor's start", _changed(path, name, lambda value: torch.full_like(value, start))
    for factor in FACTORS:
        yield attribute, f"scaled by {factor}", _changed(path, name, times(factor))
    yield attribute, "permuted", _changed(path, name, lambda value: value.roll(1, 0))
    yield attribute, "NaN", _changed(path, name, lambda value: first_is_nan(value.clone()))
    yield attribute, "aliased with the teacher", lambda case: _alias(case, path, name)
    if name not in _STATISTICS:
        yield attribute, "frozen", lambda case: case.model.get_parameter(f"{path}.{name}").requires_grad_(False)


def shortfall(model: nn.Module, path: str, name: str) -> str:
    """Say by how little permuted statistics are off, where `teacher.tensors` allows that; empty where it does not."""
    if name not in _STATISTICS:
        return ""
    mean, variance = (model.get_submodule(path).get_buffer(one).double() for one in _STATISTICS)
    means = mean.roll(1, 0) if name == "running_mean" else mean
    variances = variance.roll(1, 0) if name == "running_var" else variance
    off = (variances / variance).log() + (variance + (mean - means).square()) / variances - 1
    nats = float(off.median()) / 2
    return f"`teacher.tensors` allows {_ALLOWED} nat, and this is {nats:.1g} off" if nats < _ALLOWED else ""


def _changed(path: str, name: str, change: Callable[[Tensor], Tensor]) -> Apply:
    def apply(case: Case) -> None:
        value = getattr(case.model.get_submodule(path), name)
        with torch.no_grad():
            value.copy_(change(value))

    return apply


def _alias(case: Case, path: str, name: str) -> None:
    module, source = case.model.get_submodule(path), case.teacher.get_submodule(path)
    if name in _STATISTICS:
        module._buffers[name] = source._buffers[name]
    else:
        module._parameters[name] = source._parameters[name]
