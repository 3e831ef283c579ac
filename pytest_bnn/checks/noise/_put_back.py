"""Modules that draw from the global generator and put it back, so that what comes next draws the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pytest_bnn.data.batch import Inputs, device_of
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.isolation import seed_everything, undisturbed
from pytest_bnn.network.tree import tensors
from pytest_bnn.network.wrappers import eager
from pytest_bnn.subject import Subject

#: What a module was called with.
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def generator_state(few: Inputs) -> Tensor:
    """Return the state of the global generator that a network draws from: its device's."""
    device = device_of(few)
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def calls_that_leave_the_state(model: nn.Module, few: Inputs) -> Iterator[dict[str, Call]]:
    """Collect, by path, the modules around Bayesian layers that leave the generator as they found it, with a call."""
    inner = [layer.path for layer in bayesian_layers(model)]
    before: dict[str, list[Tensor]] = {}
    found: dict[str, Call] = {}
    handles: list[Any] = []

    def watch(path: str, module: nn.Module) -> None:
        def enter(*_: Any) -> None:
            before.setdefault(path, []).append(generator_state(few))

        def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
            if before.get(path) and torch.equal(before[path].pop(), generator_state(few)):
                found[path] = args, kwargs

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))

    try:
        for path, module in model.named_modules():
            if path and any(layer == path or layer.startswith(f"{path}.") for layer in inner):
                watch(path, module)
        yield found
    finally:
        for handle in handles:
            handle.remove()


def modules_that_put_back(subject: Subject, few: Inputs, calls: Mapping[str, Call]) -> tuple[str, ...]:
    """Return the paths of the modules, the innermost, that draw from the generator and leave it as it was.

    What a module draws is known by calls of it alone, with what it got in a pass: of the same state its outputs are
    the same, and of another state others. So they are not where its noise was drawn before, is kept, or comes from a
    generator of its own.
    """
    if not calls:
        return ()
    model = subject.model
    found: list[str] = []
    with eager(), undisturbed(model, seed=subject.seed), torch.no_grad():
        for path in sorted(calls, key=lambda path: path.count("."), reverse=True):
            if any(other.startswith(f"{path}.") for other in found):
                continue  # it is only around one that does
            if _follows_the_state(model.get_submodule(path), calls[path], few, subject.seed):
                found.append(path)
    return tuple(path for path in calls if path in found)


def _follows_the_state(module: nn.Module, call: Call, few: Inputs, seed: int) -> bool:
    """Say whether a module's outputs are those of the state that it finds, and whether it leaves that state."""
    args, kwargs = call
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
