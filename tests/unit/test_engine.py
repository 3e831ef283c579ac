"""The engine: the same passes however they are split, the library's distribution, and memory that does not grow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from pytest_bnn import convert
from pytest_bnn.conversion import Estimator
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import bayesian_layers, zero_sigma
from pytest_bnn.options import Settings, using
from pytest_bnn.sampling.bank import PassBank
from pytest_bnn.sampling.engine.handshake import shake_hands
from pytest_bnn.sampling.engine.run import Engine
from tests.samplers import IMAGES, ROWS, Convolutions, converted


def engine(model: nn.Module, threads: int = 1, seed: int = 3) -> Engine:
    with using(Settings(threads=threads)):
        return shake_hands(model, IMAGES, seed)


@pytest.fixture(params=get_args(Estimator))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return converted(Convolutions, request.param)


def test_passes_do_not_depend_on_threads_chunks_or_order(model: nn.Module) -> None:
    """Noise is a function of seed, pass, layer and position; only the last digits of sums may differ."""
    one, two = engine(model), engine(model, threads=2)
    assert (len(one.workers), len(two.workers)) == (1, 2)
    wanted = one.run(range(6), IMAGES, ROWS)
    scale = 1e-5 * float(wanted.abs().max())
    for chunk in (1, 2, 3, 7):
        for other in (one, two):
            other.chunk = chunk
            torch.testing.assert_close(other.run(range(6), IMAGES, ROWS), wanted, rtol=0, atol=scale)
    backwards = torch.cat([two.run(range(k, k + 1), IMAGES, ROWS) for k in (5, 3, 4, 0, 2, 1)])[[3, 5, 4, 1, 2, 0]]
    assert torch.equal(backwards, two.run(range(6), IMAGES, ROWS))
    some = torch.tensor([4, 0, 6])
    torch.testing.assert_close(two.run(range(6), IMAGES[some], some), wanted[:, some], rtol=0, atol=scale)


def test_draws_are_equal_to_the_bit(model: nn.Module) -> None:
    """Whichever worker draws, and whether for one layer or for a whole pass."""
    workers = [*engine(model).workers, *engine(model, threads=2).workers]
    for layers in zip(*(worker.plan.layers.values() for worker in workers), strict=True):
        for call in range(layers[0].calls):
            drawn = []
            for worker, layer in zip(workers, layers, strict=True):
                worker.start(11, ROWS)
                drawn += [worker.draw(layer, call), [w.clone() for w in worker.draw(layer, call, worker._buffer)]]
            assert all(torch.equal(a, b) for other in drawn[1:] for a, b in zip(drawn[0], other, strict=True))


@pytest.mark.parametrize("chunk", [7, 2])
def test_the_noise_of_some_layers_alone(model: nn.Module, chunk: int) -> None:
    """None at all is the network at its mean; a layer's own is that of the passes with all of it, and no other's."""
    made = engine(model, threads=2)
    made.chunk = chunk
    with zero_sigma(model), torch.no_grad():
        mean = model(IMAGES)
    silent = made.run(range(2), IMAGES, ROWS, noisy=())
    for outputs in silent:
        torch.testing.assert_close(outputs, mean, rtol=1e-4, atol=1e-5 * float(mean.abs().max()))
    everything = made.run(range(2), IMAGES, ROWS)
    paths = [layer.path for layer in bayesian_layers(model)]
    assert torch.equal(made.run(range(2), IMAGES, ROWS, noisy=paths), everything)
    # The last layer's noise moves the outputs by what it is, whatever its input: of layers before it none remains.
    alone = made.run(range(2), IMAGES, ROWS, noisy=["head"])
    assert not torch.allclose(alone, silent, atol=1e-3)
    assert not torch.allclose(alone, everything, atol=1e-3)
    assert torch.equal(made.run(range(2), IMAGES, ROWS), everything)


@pytest.mark.parametrize("sampler", ["own", "engine"])
def test_a_bank_draws_the_noise_of_some_layers_alone(sampler: str) -> None:
    """The spread that a layer alone makes is the same by both samplers: a linear head's, in closed form."""
    model: Any = converted(Convolutions)
    bank = PassBank(model, IMAGES, 0, sampler=sampler)
    found = bank.draw(0, 2000, noisy=["head"])
    inputs: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with zero_sigma(model), torch.no_grad():
        model(IMAGES)
    handle.remove()
    weight, bias = (tensor.sigma.double() for tensor in bayesian_layers(model)[-1].tensors)
    wanted = inputs[0].double().square() @ weight.square().T + bias.square()
    # 35 variances of 2,000 normal passes, each within sqrt(2 / 2000).
    assert float((found.double().var(0) / wanted - 1).abs().max()) < 6 * (2 / 2000) ** 0.5


@pytest.mark.parametrize(
    "estimator",
    [
        "Reparameterization",
        pytest.param("Flipout", marks=pytest.mark.nightly("ten thousand passes; test_engine_resnet18 has its moments")),
    ],
)
def test_logits_have_the_librarys_distribution(estimator: Any) -> None:
    """Kolmogorov and Smirnov's test of two samples, 10,000 passes of the engine and of the library's own forward."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        teacher = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).eval()
        bnn = convert(teacher, type=estimator, moped_delta=0.5)
        images = torch.randn(2, 1, 3, 3)
        ours = shake_hands(bnn, images, 0).run(range(10_000), images, torch.arange(2))
        with torch.no_grad():
            theirs = torch.stack([bnn(images) for _ in range(10_000)])
    statistics: dict[str, Callable[[Tensor], Tensor]] = {
        "logit": lambda passes: passes.flatten(1),
        "difference of two logits": lambda passes: passes[:, :, :1] - passes[:, :, 1:],
        "difference of two images": lambda passes: passes[:, 0] - passes[:, 1],
    }
    for name, of in statistics.items():
        for a, b in zip(of(ours).flatten(1).T, of(theirs).flatten(1).T, strict=True):
            assert scipy.stats.ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-6, name
    wide = (ours - ours.mean(0)) * 1.25 + ours.mean(0)
    assert scipy.stats.ks_2samp(wide[:, 0, 0].numpy(), theirs[:, 0, 0].numpy()).pvalue < 1e-6


def test_a_model_is_left_undisturbed(model: nn.Module) -> None:
    """Parameters, buffers, modes, hooks and the global random state, noise buffers included."""
    before = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    state = torch.get_rng_state()
    bank = PassBank(model, IMAGES, 0)
    bank.draw(0, 3)
    assert bank.sampler.startswith("engine (")
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert torch.equal(tensor.flatten().view(torch.uint8), before[name].flatten().view(torch.uint8)), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not model.training


def test_a_changed_model_is_looked_at_again() -> None:
    """A bank must never sample weights that the model no longer has."""
    model = converted(Convolutions)
    bank = PassBank(model, IMAGES, 0)
    first = bank.draw(0, 1)
    layer = bayesian_layers(model)[-1]
    with torch.no_grad():
        layer.tensors[0].mu.add_(1)
    moved = bank.draw(0, 1)
    assert bank.sampler.startswith("engine (")
    assert not torch.allclose(first, moved)
    torch.testing.assert_close(PassBank(model, IMAGES, 0).draw(0, 1), moved)
    model.head.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    bank.draw(0, 1)
    assert bank.sampler == "own forward (head (LinearReparameterization) has a forward hook)"


class Moody(nn.Module):
    """Calls its second layer from the pass on that its counter says: no handshake can foresee it."""

    def __init__(self, calm: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 64), nn.Linear(64, 64)
        self.left = [calm]

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        x = self.first(x)
        out: Tensor = self.second(x) if self.left[0] < 0 else x
        return out


def test_a_forward_that_changes_later_is_the_models_own_again() -> None:
    """The engine notices a layer that it did not plan, and hands over."""
    with torch.random.fork_rng(devices=[]):
        bank = PassBank(convert(Moody(40).eval()), torch.randn(3, 4), 0)
        found = bank.draw(0, 60)
    assert found.shape == (60, 3, 64)
    assert bank.sampler == "own forward (its forward does not always call the same layers: second)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.double(), "the images are float64"),
        (lambda m: m.half(), "the images are float16"),
        (lambda m: m.register_buffer("scale", torch.ones(2, dtype=torch.float64)), "scale is float64"),
        (lambda m: m.append(nn.LSTM(2, 2).eval()), None),
        (lambda m: m[1].train(), r"1 (Dropout) is in train mode"),
    ],
    ids=["float64", "float16", "a float64 buffer", "an LSTM that is not called", "dropout in train mode"],
)
def test_what_the_engine_does_not_take(change: Any, reason: str | None) -> None:
    """It says why; a whole model in train mode is judged in eval mode, as ever."""

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self[2](self[1](self[0](x)))
            return out

    model = convert(Net(nn.Linear(4, 40), nn.Dropout(0.5), nn.Linear(40, 3)).eval())
    change(model)
    dtype = next(model.parameters()).dtype
    bank = PassBank(model, torch.randn(3, 4, dtype=dtype), 0)
    bank.draw(0, 2)
    assert bank.sampler.startswith("engine (" if reason is None else f"own forward ({reason}"), bank.sampler


def test_the_choice_of_the_sampler() -> None:
    """``own`` never asks the engine; ``engine`` does not go on without it; the passes of ``own`` are as ever."""
    model = converted(Convolutions)
    with using(Settings(sampler="own")):
        bank = PassBank(model, IMAGES, 0)
        own = bank.draw(0, 2)
    assert bank.sampler == "own forward (chosen)"
    with using(Settings(sampler="engine")):
        assert not torch.allclose(PassBank(model, IMAGES, 0).draw(0, 2), own)
        model.head.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
        with pytest.raises(InputError, match="the sampling engine cannot be used: head "):
            PassBank(model, IMAGES, 0).draw(0, 2)


MEMORY = """
import resource, torch
from torch import nn
from pytest_bnn import convert
from pytest_bnn.sampling.engine.handshake import shake_hands

model = convert(nn.Sequential(nn.Linear(2000, 2000), nn.ReLU(), nn.Linear(2000, 4)).eval())
images = torch.randn(4, 2000)
engine = shake_hands(model, images, 0)
peaks = []
for passes in (4, 100):
    engine.run(range(passes), images, torch.arange(4))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0], 4 * 2000 * 2000 // 1024)
"""


def test_memory_is_flat_in_passes() -> None:
    """A hundred passes of 16 MB of weights take no more than four do, but for what the allocator keeps."""
    said = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    growth, weights = map(int, said.split())
    assert growth < weights / 2
