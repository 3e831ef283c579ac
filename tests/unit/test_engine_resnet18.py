"""What the engine's layers use in ResNet18, layer by layer: the posterior's moments, as the library's own layers do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_bnn import convert, digits, load_teacher
from pytest_bnn.sampling.engine.handshake import shake_hands
from pytest_bnn.sampling.engine.plan import Drawn
from pytest_bnn.sampling.engine.run import Engine

#: Chance that a test fails although all is well.
RATE = 1e-6

PASSES = 4


class _Weights(TorchFunctionMode):
    """Keeps the weights of convolutions and linear layers; under Flipout those of the second call of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.used: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.conv2d, functional.linear):
            self.used.append(args[1].detach().clone())
        return func(*args, **(kwargs or {}))


@contextmanager
def weights() -> Iterator[list[Tensor]]:
    with _Weights() as mode:
        yield mode.used


@pytest.fixture(scope="module", params=["Reparameterization", "Flipout"])
def engine(request: pytest.FixtureRequest) -> tuple[Engine, nn.Module, Tensor]:
    return made(request.param)


def made(estimator: Any) -> tuple[Engine, nn.Module, Tensor]:
    bnn = convert(load_teacher("digits").model, type=estimator, moped_delta=0.2)
    images = digits("held_out", 1)[0]
    return shake_hands(bnn, images, 5), bnn, images


def standardised(drawn: Drawn, used: Tensor) -> Tensor:
    """Undo BatchNorm's factor, and standardise by mu and sigma: all in float64, from the posterior itself."""
    part = (slice(None), slice(None), *drawn.part[2:]) if drawn.part else ()
    scale = torch.ones(len(used)) if drawn.scale is None else drawn.scale
    value = used.double() / scale.double().reshape(-1, *[1] * (used.ndim - 1))
    mu = drawn.tensor.mu.detach().double()[part] if drawn.center else 0.0
    return ((value - mu) / nn.functional.softplus(drawn.tensor.rho.detach().double()[part])).flatten()


def test_the_moments_of_every_layer_are_the_posteriors(engine: tuple[Engine, nn.Module, Tensor]) -> None:
    """Mean, variance, skewness and kurtosis of what all 21 layers used in four passes."""
    made, _, images = engine
    worker = made.workers[0]
    plans = list(worker.plan.layers.values())
    found: list[list[Tensor]] = [[] for _ in plans]
    for index in range(PASSES):
        with torch.no_grad(), weights() as used:
            worker.start(index, torch.arange(1))
            worker.model(images)
        calls = iter(used)
        for place, plan in enumerate(plans):
            if plan.flipout:
                next(calls)  # of the mean
            drawn = next(calls)
            while len(drawn) < len(plan.weight.tensor.mu):  # large layers are computed in parts
                drawn = torch.cat([drawn, next(calls)])
            found[place].append(standardised(plan.weight, drawn))
        assert next(calls, None) is None
    tests = 4 * len(plans)
    level = scipy.stats.norm.isf(RATE / tests / 2)
    for plan, draws in zip(plans, found, strict=True):
        z = torch.cat(draws)
        n = len(z)
        assert n == PASSES * plan.weight.size
        # Standard deviations of the first four moments of a standard normal sample, 1, sqrt(2), sqrt(15), sqrt(96).
        for power, mean, deviation in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            score = (float(z.pow(power).mean()) - mean) / (deviation / n) ** 0.5
            # Sums of fourth powers are not quite normal: a little room.
            assert abs(score) < 1.5 * level, (plan.layer.path, power, score)


@pytest.mark.nightly("sixty passes; every push has the moments of the weights that its layers use")
@pytest.mark.parametrize(
    "engine",
    [
        "Reparameterization",
        pytest.param("Flipout", marks=pytest.mark.nightly("sixty passes twice; every push has what its layers use")),
    ],
    indirect=True,
)
def test_the_outputs_of_every_layer_have_the_librarys_moments(engine: tuple[Engine, nn.Module, Tensor]) -> None:
    """Mean and spread of 21 layers' outputs over 60 passes, the engine's replica against the model's own forward."""
    made, bnn, images = engine
    worker, passes = made.workers[0], 60
    plans = worker.plan.layers

    def outputs(model: nn.Module, modules: list[nn.Module], run: Any) -> list[Tensor]:
        sums: list[list[Tensor]] = [[] for _ in modules]
        handles = [
            module.register_forward_hook(lambda _m, _i, out, at=at: sums[at].append(out.detach().flatten().double()))
            for at, module in enumerate(modules)
        ]
        with torch.no_grad():
            for index in range(passes):
                run(index)
        for handle in handles:
            handle.remove()
        return [torch.stack(values) for values in sums]

    # Behind BatchNorm, which the engine has folded in.
    paths = [path for path, module in bnn.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(paths) == len([plan for plan in plans.values() if plan.norm is not None]) == 20

    def engines(index: int) -> None:
        worker.start(index, torch.arange(1))
        worker.model(images)

    ours = outputs(worker.model, [worker.model.get_submodule(path) for path in paths], engines)
    theirs = outputs(bnn, [bnn.get_submodule(path) for path in paths], lambda _: bnn(images))
    for path, a, b in zip(paths, ours, theirs, strict=True):
        gap = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / passes).sqrt().clamp_min(1e-12)
        # The passes are independent, the outputs of a pass are not: each has its own test, by Bonferroni.
        level = scipy.stats.t.isf(RATE / 40 / gap.numel() / 2, passes - 1)
        assert float(gap.abs().max()) < level, path
        ratio = float(a.var(0).mean() / b.var(0).mean())
        assert 0.5 < ratio < 2, (path, ratio)
