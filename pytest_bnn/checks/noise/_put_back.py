"""Modules that draw from the global generator and put it back, so that what comes next draws the same numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.checks.noise._passes import generator_state
from pytest_bnn.data.batch import Inputs
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import forward
from pytest_bnn.network.isolation import seed_everything, undisturbed
from pytest_bnn.network.tree import tensors
from pytest_bnn.network.wrappers import eager
from pytest_bnn.subject import Subject

_Call = tuple[tuple[Any, ...], dict[str, Any]]


def modules_that_put_back(subject: Subject, few: Inputs) -> tuple[str, ...]:
    """Return the paths of modules inside of a model, the innermost, that draw and leave the generator as it was.

    What a module draws is known by calls of it alone, with what it got in a pass: of the same state its outputs are
    the same, and of another state others. So they are not where its noise was drawn before, is kept, or comes from a
    generator of its own.
    """
    model = subject.model
    found: list[str] = []
    with eager(), undisturbed(model, seed=subject.seed), torch.no_grad():
        calls = _calls_that_leave_the_state(model, few)
        for path in sorted(calls, key=lambda path: path.count("."), reverse=True):
            if any(other.startswith(f"{path}.") for other in found):
                continue  # it is only around one that does
            args, kwargs = calls[path]
            if _follows_the_state(model.get_submodule(path), args, kwargs, few, subject.seed):
                found.append(path)
    return tuple(path for path in calls if path in found)


def _calls_that_leave_the_state(model: nn.Module, few: Inputs) -> dict[str, _Call]:
    """Run a pass, and give the modules with Bayesian layers inside that left the state as it was, with a call each."""
    inner = [layer.path for layer in bayesian_layers(model)]
    before: dict[str, list[Tensor]] = {}
    found: dict[str, _Call] = {}
    handles = []

    def watch(path: str, module: nn.Module) -> None:
        def enter(*_: Any) -> None:
            before.setdefault(path, []).append(generator_state(few))

        def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
            if torch.equal(before[path].pop(), generator_state(few)):
                found[path] = args, kwargs

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))

    try:
        for path, module in model.named_modules():
            if path and any(layer == path or layer.startswith(f"{path}.") for layer in inner):
                watch(path, module)
        forward(model, few)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _follows_the_state(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], few: Inputs, seed: int
) -> bool:
    """Say whether a module's outputs are those of the state that it finds, and whether it leaves that state."""
    outputs: list[list[Tensor]] = []
    for each in (seed + 3, seed + 3, seed + 4):
        seed_everything(each)
        state = generator_state(few)
        try:
            outputs.append([tensor.clone() for tensor in tensors(module(*args, **kwargs))])
        except Exception:  # it cannot be called outside of a pass
            return False
        if not torch.equal(state, generator_state(few)):
            return False
    one, again, other = outputs
    return _same(one, again) and not _same(one, other)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
