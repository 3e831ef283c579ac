"""Two more models of the factory that made the audited one, and whether they draw the same noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bnn.checks.noise._drawn import drawn, own_generators
from pytest_bnn.data.batch import Inputs
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import ForwardError, forward
from pytest_bnn.network.isolation import preserved_random_state, seed_everything, undisturbed
from pytest_bnn.network.wrappers import eager
from pytest_bnn.subject import Subject, fitted

#: A factory whose last call took longer is not called again; the first call may have imported and loaded things.
FIRST_SECONDS, SECONDS = 10.0, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Builds:
    """What two more models of a factory showed.

    Attributes:
        repeated: The layers that drew the same noise in both.
        seeds: Of these, those with a generator of their own, each with the seed that it started from.
        layers: How many layers were compared.
        why: Why nothing is known, where nothing is.
    """

    repeated: tuple[str, ...] = ()
    seeds: dict[str, int]
    layers: int = 0
    why: str = ""


def compare_builds(subject: Subject, few: Inputs) -> Builds:
    """Make two models, under other global seeds before and after, and compare what they draw."""
    factory = subject.factory
    if factory is None:
        return _unknown(
            "no factory was given, which would make another model (--model MODULE:FACTORY, or factory= in Python)"
        )
    made: list[nn.Module] = []
    known = [*subject.model.modules()]
    for number in range(2):
        if factory.seconds is not None and factory.seconds > (SECONDS if number else FIRST_SECONDS):
            return _unknown(f"the factory takes {factory.seconds:.2g} s, and is not called again for that reason")
        with preserved_random_state():
            seed_everything(subject.seed + 101 + number)
            try:
                found = factory()
            except (Exception, SystemExit, GeneratorExit) as error:
                return _unknown(f"called once more, the factory raised {type(error).__name__}: {error}")
        if not isinstance(found, nn.Module):
            return _unknown(f"called once more, the factory returned {type(found).__name__}, and no network")
        if {id(module) for module in known} & {id(module) for module in found.modules()}:
            return _unknown("the factory returns the same network, or parts of it, each time")
        known += found.modules()
        made.append(found)
    return _compared(subject, few, made)


def _unknown(why: str) -> Builds:
    return Builds(seeds={}, why=why)


def _compared(subject: Subject, few: Inputs, made: list[nn.Module]) -> Builds:
    passes, seeds = [], {}
    for number, model in enumerate(made):
        run = _runner(model, fitted(few, model))
        sigmas: dict[tuple[str, str], Tensor] = {}
        try:
            with eager(), undisturbed(model, seed=subject.seed + 1009 * (number + 1)), torch.no_grad():
                passes.append([drawn(model, run, sigmas) for _ in range(2)])
                if number:
                    seeds = own_generators(model, run)
        except ForwardError as error:
            return _unknown(f"another model of the factory raised {error}")
    (first, second), (first_too, second_too) = passes
    # What one model repeats itself is another claim's.
    cached = set(first.repeats(second))
    again = set(second.repeats(second_too))
    repeated = [path for path in first.repeats(first_too) if path in again and path not in cached]
    layers = len(first.comparable(first_too))
    if not layers:
        return _unknown("no layer of another model reveals its noise")
    order = [layer.path for layer in bayesian_layers(made[0])]
    return Builds(
        repeated=tuple(sorted(repeated, key=order.index)),
        seeds={path: seed for path, seed in seeds.items() if path in repeated},
        layers=layers,
    )


def _runner(model: nn.Module, few: Inputs) -> Callable[[], Tensor]:
    return lambda: forward(model, few)
