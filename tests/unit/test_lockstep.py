"""The own forward and the engine's take turns: equal outputs, one layer's weights at a time, nobody waits for ever."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from pytest_bnn import convert
from pytest_bnn.libraries.capture import LayerCall, capture
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.isolation import random_state, undisturbed
from pytest_bnn.options import Settings, using
from pytest_bnn.sampling.engine import lockstep
from pytest_bnn.sampling.engine.consumers import Consumers
from pytest_bnn.sampling.engine.handshake import shake_hands
from pytest_bnn.sampling.engine.lockstep import Lockstep, forward_without_numbers, may_take_turns
from pytest_bnn.sampling.engine.noise import make_noise
from pytest_bnn.sampling.engine.plan import Unsupported, make_plan
from pytest_bnn.sampling.engine.replica import Worker
from pytest_bnn.sampling.engine.run import Engine

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


class _State:
    """What both forwards see, however deep: a lock, what is kept for one thread, and whether somebody is inside."""

    def __init__(self) -> None:
        self.lock, self.again, self.local = threading.Lock(), threading.RLock(), threading.local()
        self.local.scale = 2.0
        self.inside = False
        self.calls = 0


class Locked(Net):
    def forward(self, x: Tensor) -> Tensor:
        with STATE.lock:
            return super().forward(x)


class LockedAgain(Net):
    def forward(self, x: Tensor) -> Tensor:
        with STATE.again:
            return super().forward(x)


class OfThread(Net):
    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = super().forward(x) * STATE.local.scale
        return scaled


class Inside(Net):
    def forward(self, x: Tensor) -> Tensor:
        assert not STATE.inside
        STATE.inside = True
        try:
            return super().forward(x)
        finally:
            STATE.inside = False


class Counts(Net):
    def forward(self, x: Tensor) -> Tensor:
        STATE.calls += 1
        before, out = STATE.calls, super().forward(x)
        return out if STATE.calls == before else 2 * out


STATE = _State()


@pytest.mark.parametrize("kind", [Locked, LockedAgain, OfThread, Inside, Counts])
def test_forwards_that_nobody_knows_do_not_run_in_turns(kind: type[Net], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that holds a lock would have the other wait for ever."""
    for name in ("FEW", "FEW_WITHOUT_SHAPES"):
        monkeypatch.setattr(lockstep, name, 0)
    torch.manual_seed(0)
    model = convert(kind().eval(), moped_delta=0.5)
    assert not may_take_turns(model, bayesian_layers(model))
    with using(Settings(threads=1)):
        assert isinstance(shake_hands(model, X, 0), Engine)


def chain(**options: object) -> nn.Module:
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    return convert(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 6)).eval(), **options)  # type: ignore[arg-type]


def convolutions(**options: object) -> nn.Module:
    torch.manual_seed(0)
    inner = (nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    return convert(nn.Sequential(*inner, nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)).eval(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
@pytest.mark.parametrize(("make", "x"), [(chain, X), (convolutions, torch.ones(2, 3, 5, 5))], ids=["chain", "conv"])
def test_in_turns_or_not_the_engine_is_the_same(
    make: Callable[..., nn.Module], x: Tensor, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared layer is called twice, a BatchNorm folded; the passes are equal to the bit."""
    model = make(type=estimator)
    taken: list[str] = []
    take = Lockstep.take

    def seen(self: Lockstep, call: LayerCall) -> None:
        taken.append(call.layer.path)
        take(self, call)

    monkeypatch.setattr(Lockstep, "take", seen)
    for name in ("FEW", "FEW_WITHOUT_SHAPES"):
        monkeypatch.setattr(lockstep, name, 0)
    states = random_state(), [tensor.clone() for tensor in model.state_dict().values()]
    turns = shake_hands(model, x, 3).run(range(2), x, torch.arange(2))
    assert taken
    assert random_state() == states[0]
    for tensor, before in zip(model.state_dict().values(), states[1], strict=True):
        assert torch.equal(tensor.nan_to_num(), before.nan_to_num())
    taken.clear()
    monkeypatch.setattr(lockstep, "FEW", 1 << 20)
    assert torch.equal(turns, shake_hands(model, x, 3).run(range(2), x, torch.arange(2)))
    assert not taken


@pytest.mark.parametrize("make", [chain, convolutions])
def test_shapes_alone_make_the_same_plan(make: Callable[[], nn.Module]) -> None:
    model = make()
    x = X if make is chain else torch.ones(2, 3, 5, 5)
    plans = []
    for run in (forward_without_numbers, lambda model, x: model(x)):
        before = random_state()
        with undisturbed(model, seed=0), torch.no_grad(), capture(model) as calls, Consumers(model, calls) as consumers:
            run(model, x)
            assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
        assert random_state() == before
        plan = make_plan(calls, consumers, channels_last=True)
        plans.append([
            (key, each.function, each.rest, each.keywords, each.calls, each.norm, each.taps, each.weight.shape)
            for key, each in plan.layers.items()
        ])  # fmt: skip
    assert plans[0] == plans[1]
    assert [each[5] is not None for each in plans[0]] == ([False, False] if make is chain else [True, False])


@pytest.mark.parametrize(
    "inside", [lambda: torch.autocast("cpu"), torch.inference_mode, lambda: torch.device("cpu")],
    ids=["autocast", "inference", "device"],
)  # fmt: skip
def test_what_is_in_force_for_one_thread_keeps_it_there(
    inside: Callable[[], AbstractContextManager[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FEW", "FEW_WITHOUT_SHAPES"):
        monkeypatch.setattr(lockstep, name, 0)
    model = chain()
    assert may_take_turns(model, bayesian_layers(model))
    with inside():
        assert not may_take_turns(model, bayesian_layers(model))


def test_a_function_from_elsewhere_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a module that works in threads of its own."""
    for name in ("FEW", "FEW_WITHOUT_SHAPES"):
        monkeypatch.setattr(lockstep, name, 0)
    for activation, known in ((nn.functional.relu, True), (lambda x: x.relu(), False)):
        model = convert(nn.TransformerEncoderLayer(8, 2, 16, activation=activation).eval())
        assert may_take_turns(model, bayesian_layers(model)) is known
    spread = nn.DataParallel(chain())
    assert not may_take_turns(spread, bayesian_layers(spread))


def test_an_interrupt_of_the_handshake_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each call of a layer in turn; the thread has ended, the model and the random state are as they were."""
    for name in ("FEW", "FEW_WITHOUT_SHAPES"):
        monkeypatch.setattr(lockstep, name, 0)
    model, take = chain(), Lockstep.take
    states = random_state(), [tensor.clone() for tensor in model.state_dict().values()]
    for at in range(1, 8):
        left = iter(range(at))

        def stopped(self: Lockstep, call: LayerCall, left: Iterator[int] = left) -> None:
            take(self, call)
            if next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(Lockstep, "take", stopped)
        threads = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            shake_hands(model, X, 0)
        assert threading.active_count() == threads
        assert random_state() == states[0]
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        for tensor, before in zip(model.state_dict().values(), states[1], strict=True):
            assert torch.equal(tensor.nan_to_num(), before.nan_to_num())
