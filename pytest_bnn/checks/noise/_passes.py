"""Passes of a model one after the other, with the random state around and inside of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.checks.noise._drawn import drawn
from pytest_bnn.checks.noise._put_back import Call, calls_that_leave_the_state, generator_state
from pytest_bnn.data.batch import Inputs, call
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import forward, output_fields
from pytest_bnn.network.isolation import seed_everything, undisturbed
from pytest_bnn.network.wrappers import eager
from pytest_bnn.subject import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """What passes in a row and a backward pass showed.

    Attributes:
        varies: Whether two passes in a row drew other noise.
        resets: Whether a forward pass leaves the global generator in the same state wherever it was before.
        backward: Why the backward pass repeats draws, in words; empty where it does not.
        unjudged: Why the backward pass was not judged, where it was not.
        unmoved: Modules around Bayesian layers that left the generator as they found it, by path, with a call.
    """

    varies: bool
    resets: bool
    backward: str = ""
    unjudged: str = ""
    unmoved: dict[str, Call] = field(default_factory=dict)


def look_at_passes(subject: Subject, few: Inputs) -> Passes:
    """Run two passes in a row from one seed, and one with its backward pass from another."""
    model = subject.model
    sigmas: dict[tuple[str, str], Tensor] = {}
    outputs: list[Tensor] = []

    def run() -> None:
        outputs.append(forward(model, few))

    with eager(), undisturbed(model, seed=subject.seed), torch.no_grad():
        first = drawn(model, run, sigmas)
        after = generator_state(few)
        with calls_that_leave_the_state(model, few) as unmoved:
            second = drawn(model, run, sigmas)
        varies = not torch.equal(*outputs) or len(first.repeats(second)) < len(first.noise)
    with eager(), undisturbed(model, seed=subject.seed + 1):
        before = generator_state(few)
        with _states(model, few) as inside:
            total, unjudged = _total(model, few)
        if unjudged:
            seed_everything(subject.seed + 1)
            forward(model, few)
        forwarded = generator_state(few)
        resets = torch.equal(after, forwarded) and not torch.equal(before, forwarded)
        backward = ""
        if total is not None and not resets:
            try:
                total.backward()
            except (Exception, SystemExit, GeneratorExit) as error:
                unjudged = f"it raised {type(error).__name__}: {error}"
            else:
                backward = _backward(subject, few, forwarded, inside)
    return Passes(varies=varies, resets=resets, backward=backward, unjudged=unjudged, unmoved=unmoved)


def _backward(subject: Subject, few: Inputs, forwarded: Tensor, inside: list[Tensor]) -> str:
    """Say how the backward pass that has just run repeats draws; empty where it does not."""
    state = generator_state(few)
    if torch.equal(state, forwarded):
        return ""
    if any(torch.equal(state, earlier) for earlier in inside):
        return "it sets the random generator back to where it was in the middle of the forward pass"
    seed_everything(subject.seed + 2)
    with torch.enable_grad():
        total, _ = _total(subject.model, few)
    if total is None or torch.equal(generator_state(few), forwarded):
        return ""
    total.backward()
    if torch.equal(generator_state(few), state):
        return "it leaves the random generator in the same state wherever it was before"
    return ""


def _total(model: nn.Module, few: Inputs) -> tuple[Tensor | None, str]:
    """Return the sum of a model's outputs with its graph, or why there is none."""
    try:
        with torch.enable_grad():
            output = call(model, few)
            found = [t for t in output_fields(output, len(few)).values() if t.requires_grad]
            if not found:
                return None, "its outputs have no gradient"
            return torch.stack([t.double().sum() for t in found]).sum(), ""
    except (Exception, SystemExit, GeneratorExit) as error:  # without gradients it ran
        return None, f"with gradients the forward raised {type(error).__name__}: {error}"


@contextmanager
def _states(model: nn.Module, few: Inputs) -> Iterator[list[Tensor]]:
    """Collect the states of the generator around the calls of the Bayesian layers."""
    found: list[Tensor] = []

    def see(*_: Any) -> None:
        found.append(generator_state(few))

    handles: list[Any] = []
    for layer in bayesian_layers(model):
        handles.append(layer.module.register_forward_pre_hook(see))
        handles.append(layer.module.register_forward_hook(see))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
