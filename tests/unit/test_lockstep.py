"""The own forward and the engine's take turns: equal outputs, one layer's weights at a time, nobody waits for ever."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from pytest_bnn import convert
from pytest_bnn.libraries.capture import LayerCall, capture
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.sampling.engine.lockstep import Lockstep
from pytest_bnn.sampling.engine.noise import make_noise
from pytest_bnn.sampling.engine.plan import Unsupported, make_plan
from pytest_bnn.sampling.engine.replica import Worker

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers, the second of which is called twice."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(6, 6), nn.Linear(6, 6), between

    def forward(self, x: Tensor) -> Tensor:
        once: Tensor = self.second(self.between(self.first(x)))
        twice: Tensor = self.second(self.between(once))
        return twice


def worker_of(model: nn.Module) -> Worker:
    with torch.no_grad(), capture(model) as calls:
        model(X)
    return Worker(model, make_plan(calls, None, channels_last=False), make_noise(0)[0])


def bayesian(between: Callable[[Tensor], Tensor] = torch.relu, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return convert(Net(between).eval(), moped_delta=0.5, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_both_compute_the_same_and_hold_one_layer(estimator: str) -> None:
    model = bayesian(type=estimator)
    alive: list[weakref.ref[Tensor]] = []
    with torch.no_grad(), Lockstep(worker_of(model), X) as engine:

        def told(call: LayerCall) -> None:
            assert not any(weight() is not None for weight in alive)
            alive.append(weakref.ref(call.functional[-1].weight))
            engine.take(call)

        with capture(model, told=told):
            wanted = output_tensor(model(X))
        found = engine.result()
    assert len(alive) == 3
    assert not engine.drew
    assert torch.allclose(wanted, found, atol=1e-6)
    assert not torch.allclose(wanted, output_tensor(model(X)), atol=1e-3)  # other noise gives something else


@pytest.mark.parametrize(
    "drawn", [lambda: torch.rand(()), numpy.random.rand, random.random], ids=["torch", "numpy", "Python"]
)
def test_random_numbers_beside_the_layers_are_seen(drawn: Callable[[], Any]) -> None:
    """Here those of the part between two layers."""
    model = bayesian(lambda x: x + drawn())
    with torch.no_grad(), Lockstep(worker_of(model), X) as engine, capture(model, told=engine.take):
        model(X)
    assert engine.drew


@pytest.mark.parametrize("skipped", [{1}, {2}, {1, 2}, {0}, {0, 1, 2}])
def test_calls_that_do_not_fit_are_refused(skipped: set[int]) -> None:
    """The engine's forward asks for a call that never comes, or for another one."""
    model, number = bayesian(), 0
    with torch.no_grad(), Lockstep(worker_of(model), X) as engine:

        def told(call: LayerCall) -> None:
            nonlocal number
            if number not in skipped:
                engine.take(call)
            number += 1

        with capture(model, told=told):
            model(X)
        with pytest.raises(Unsupported, match="does not always call the same layers"):
            engine.result()


def test_further_calls_are_refused() -> None:
    """The own forward goes on where the engine's has ended."""
    model = bayesian()
    with torch.no_grad(), Lockstep(worker_of(model), X) as engine, capture(model, told=engine.take):
        model(X)
        model(X)
        with pytest.raises(Unsupported, match="does not always call the same layers"):
            engine.result()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_end_in_the_middle_ends_both(error: type[BaseException], at: int) -> None:
    """No thread stays behind."""
    model = bayesian()
    before, number = threading.active_count(), 0

    def told(call: LayerCall) -> None:
        nonlocal number
        number += 1
        if number == at:
            raise error
        engine.take(call)

    with pytest.raises(error), torch.no_grad(), Lockstep(worker_of(model), X) as engine, capture(model, told=told):
        model(X)
    assert threading.active_count() == before


def test_what_the_engine_raises_is_raised_here() -> None:
    class Once:
        calls = 0

        def __call__(self, x: Tensor) -> Tensor:
            Once.calls += 1
            if Once.calls == 3:  # in turns: own, engine, engine
                raise ZeroDivisionError("only in the replica")
            return x

    model = bayesian(Once())
    worker = worker_of(model)
    Once.calls = 0
    with torch.no_grad(), Lockstep(worker, X) as engine, capture(model, told=engine.take):
        model(X)
        with pytest.raises(ZeroDivisionError, match="only in the replica"):
            engine.result()
    assert worker.given is None
