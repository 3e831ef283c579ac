"""The native sampler: the engine's passes in torch's own operations, and the model's own forward where it may not."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import scipy.stats
import torch
from bayesian_torch.layers import LinearReparameterization, LSTMReparameterization
from torch import Tensor, nn

import pytest_bnn
from pytest_bnn.conversion import Estimator
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import zero_sigma
from pytest_bnn.options import Settings, using
from pytest_bnn.sampling.bank import PassBank
from pytest_bnn.sampling.engine import handshake as of_engine
from pytest_bnn.sampling.engine.plan import Unsupported
from pytest_bnn.sampling.native.handshake import shake_hands
from tests.samplers import IMAGES, ROWS, Convolutions, converted


class Shared(nn.Sequential):
    """One module in two places."""

    def __init__(self) -> None:
        inner = nn.Linear(108, 108)
        super().__init__(nn.Flatten(), inner, nn.Tanh(), inner, nn.Linear(108, 4))


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(108, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 4))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", [Convolutions, Shared, Plain])
def test_passes_are_the_engines(kind: type[nn.Module]) -> None:
    """Pass k is the same by both, to rounding, at once and one after the other, and whatever images are beside."""
    model = converted(kind)
    native, engine = shake_hands(model, IMAGES, 3), of_engine.shake_hands(model, IMAGES, 3)
    assert native.vmaps, native.refused
    wanted = engine.run(range(2, 7), IMAGES, ROWS)
    close(native.run(range(2, 7), IMAGES, ROWS), wanted)
    some = torch.tensor([5, 0])
    close(native.run(range(2, 7), IMAGES[some], some), wanted[:, some])
    native.vmaps = False
    close(native.run(range(2, 7), IMAGES, ROWS), wanted)


@pytest.mark.parametrize("kind", [Convolutions, Plain])
@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_the_distribution_is_that_of_the_own_forward(kind: type[nn.Module], estimator: str) -> None:
    """Of single outputs, by scipy's Kolmogorov-Smirnov test of two samples."""
    model, passes = converted(kind, estimator), 400 if kind is Plain else 120
    native = PassBank(model, IMAGES[:2], 0, sampler="native").draw(0, passes)
    own = PassBank(model, IMAGES[:2], 0, sampler="own").draw(0, passes)
    for image in range(2):
        for output in range(2):
            found = scipy.stats.ks_2samp(native[:, image, output].numpy(), own[:, image, output].numpy())
            assert found.pvalue > 1e-6
    assert not torch.equal(native, own)


def test_passes_do_not_depend_on_how_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of passes and portions of images bound the memory; the noise is a function of seed, pass and layer."""
    for estimator in get_args(Estimator):
        native = shake_hands(converted(Convolutions, estimator), IMAGES, 3)
        wanted = native.run(range(6), IMAGES, ROWS)
        with monkeypatch.context() as patch:
            patch.setattr("pytest_bnn.sampling.native.run._PASSES_AT_ONCE", 4)
            patch.setattr("pytest_bnn.sampling.native.run._IMAGES_AT_ONCE", 3 * IMAGES[0].numel())
            assert native.at_once(7) == 4
            close(native.run(range(6), IMAGES, ROWS), wanted)
        close(torch.cat([native.run(range(k, k + 1), IMAGES, ROWS) for k in range(6)]), wanted)
        with monkeypatch.context() as patch:
            patch.setattr("pytest_bnn.sampling.native.run._WEIGHTS_AT_ONCE", 1)
            assert native.at_once(7) == 1


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_the_noise_of_some_layers_alone(estimator: str) -> None:
    """None at all is the network at its mean; a layer's own is the engine's where the estimator has no signs."""
    model = converted(Convolutions, estimator)
    native = shake_hands(model, IMAGES, 3)
    with zero_sigma(model), torch.no_grad():
        mean = model(IMAGES)
    for outputs in native.run(range(2), IMAGES, ROWS, noisy=()):
        close(outputs, mean)
    alone = native.run(range(2), IMAGES, ROWS, noisy=["head"])
    assert not torch.allclose(alone[0], mean, atol=1e-3)
    if estimator == "Reparameterization":
        close(alone, of_engine.shake_hands(model, IMAGES, 3).run(range(2), IMAGES, ROWS, noisy=["head"]))


def test_it_leaves_the_model_and_the_random_state_alone() -> None:
    """Neither the validation nor the passes write anything, gradients and noise buffers included."""
    model = converted(Convolutions)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    buffers = [buffer.clone() for buffer in model.buffers()]
    PassBank(model, IMAGES, 0, sampler="native").draw(0, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


class Decides(nn.Module):
    """Looks at a number: vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(108, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        out: Tensor = self.second(x if float(x.abs().max()) > 0 else -x)
        return out


def test_a_forward_that_vmap_does_not_take_runs_pass_by_pass() -> None:
    """With the same passes, and the reason in words."""
    bank = PassBank(converted(Decides), IMAGES, 3, sampler="native")
    found = bank.draw(0, 4)
    assert bank.sampler.startswith("native (Philox4x32-10 in torch on cpu, pass by pass: torch.func.vmap does not take")
    close(found, PassBank(converted(Decides), IMAGES, 3, sampler="engine").draw(0, 4))


class Remembers(nn.Module):
    """A Bayesian LSTM computes its gates by means of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = LSTMReparameterization(36, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x.flatten(2))[0][:, -1]
        return out


class Pairs(nn.Module):
    """A layer that was not converted returns its KL beside its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = LinearReparameterization(108, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x.flatten(1))[0]
        return out


class Asks(Pairs):
    """It is asked for its output alone, in words that no other layer takes."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x.flatten(1), return_kl=False)
        return out


class Leaks(nn.Module):
    """The images of a batch meet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(108, 64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x.flatten(1) - x.flatten(1).mean(0))
        return out


def _scaled(model: nn.Module) -> nn.Module:
    first: Any = model.get_submodule("1")
    layer: Any = type(first)

    class Louder(layer):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                self.rho_weight += 0.2
                out = super().forward(x)
                self.rho_weight -= 0.2
            return out

    Louder.__module__, Louder.__name__ = layer.__module__, layer.__name__
    first.__class__ = Louder
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Remembers().eval(), "returns more than one tensor, such as its KL beside its output"),
        (lambda: Pairs().eval(), r"^first \(LinearReparameterization\) returns more than one tensor, such as its KL"),
        (lambda: Asks().eval(), r"^first \(LinearReparameterization\) has a forward that no sampler stands in for"),
        (lambda: converted(Leaks), "depends on the images beside it"),
        (lambda: _scaled(converted(Plain)), "times its sigma|has a forward that no sampler stands in for"),
        (lambda: converted(Plain).double(), "the images are float64"),
        (lambda: Plain().eval(), "nothing in it is Bayesian"),
    ],
    ids=[
        "a recurrent layer",
        "a KL beside the output",
        "without a KL",
        "images that meet",
        "another sigma",
        "float64",
        "nothing Bayesian",
    ],
)
def test_it_is_not_used_where_it_did_not_repeat_the_own_forward(make: Any, reason: str) -> None:
    """The validation guards it as it guards the engine: an own forward that differs draws its own passes."""
    model = make()
    images = IMAGES.to(next(model.parameters()).dtype)
    with pytest.raises(Unsupported, match=reason):
        shake_hands(model, images, 0)
    with pytest.raises(InputError, match=r"the native sampler cannot be used: .*Leave the sampler at auto"):
        PassBank(model, images, 0, sampler="native").draw(0, 1)


def test_a_hook_and_a_mode_are_the_models_own() -> None:
    """What the engine does not try, the native sampler does not try either."""
    model = converted(Plain)
    handle = model.get_submodule("1").register_forward_hook(lambda *_: None)
    with pytest.raises(Unsupported, match="has a forward hook"):
        shake_hands(model, IMAGES, 0)
    handle.remove()
    model.get_submodule("3").train()
    with pytest.raises(Unsupported, match="is in train mode"):
        shake_hands(model, IMAGES, 0)


def test_the_setting_and_predict() -> None:
    """``native`` is asked for as ``engine`` is; fine-tuning then takes its own steps."""
    model = converted(Plain)
    with using(Settings(sampler="native")):
        found = pytest_bnn.predict(model, IMAGES, passes=8, seed=3)
        steps = pytest_bnn.finetune(converted(Plain), converted(Plain), IMAGES, steps=1, batch=4)
    assert found.sampler.startswith("native (")
    close(found.mean, pytest_bnn.predict(model, IMAGES, passes=8, seed=3, sampler="engine").mean)
    assert "draws passes, and trains nothing" in steps[0].trainer
