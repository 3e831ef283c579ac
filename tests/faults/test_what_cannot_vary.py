"""Outputs that no posterior could move are outside of a claim about noise; missing noise is still found beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.checks import measure_noise_source, measure_noise_spread, measure_noise_varies
from pytest_bnn.checks.noise._pairs import live_in, not_finite_in, spreads
from pytest_bnn.checks.noise._scale import scale_of, scales_of
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import Field
from pytest_bnn.records.evidence import Verdict

N = 12
INF = math.inf


class Net(nn.Module):
    """Two layers, and what is made of their output."""

    def __init__(self, end: Callable[[Tensor], Any] | None = None, *, bias: bool = True, outputs: int = 4) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.body, self.head = nn.Linear(10, 16, bias=bias), nn.Linear(16, outputs, bias=bias)
        self.end = end
        self.eval()

    def forward(self, x: Tensor) -> Any:
        y = self.head(torch.relu(self.body(x)))
        return y if self.end is None else self.end(y)


def images(rows: int = N) -> Tensor:
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(1))


def masked(value: float) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.cat([y, torch.full_like(y, value)], 1)


#: Healthy networks whose outputs hardly vary, or not everywhere, and the verdicts that are right.
HEALTHY: dict[str, tuple[Callable[[Tensor], Any] | None, tuple[Verdict, ...]]] = {
    "plain": (None, (Verdict.PASS,)),
    "saturated softmax": (lambda y: torch.softmax(1e4 * y, 1), (Verdict.NOT_APPLICABLE, Verdict.PASS)),
    "confident softmax": (lambda y: torch.softmax(60 * y, 1), (Verdict.NOT_APPLICABLE, Verdict.PASS)),
    "saturated sigmoid": (lambda y: torch.sigmoid(y.abs() + 200), (Verdict.NOT_APPLICABLE,)),
    "clamped": (lambda y: y.clamp(-1e-4, 1e-4), (Verdict.NOT_APPLICABLE, Verdict.PASS)),
    "masked": (masked(-1e9), (Verdict.PASS,)),
    "masked to nothing": (masked(-INF), (Verdict.PASS,)),
    "with an offset": (lambda y: y + 1e3, (Verdict.PASS,)),
    "dead for some": (lambda y: torch.relu(y - 0.5), (Verdict.PASS, Verdict.NOT_APPLICABLE)),
    "dead for all": (lambda y: torch.relu(y - 100), (Verdict.NOT_APPLICABLE,)),
    "constant": (lambda y: torch.ones_like(y), (Verdict.NOT_APPLICABLE,)),
    "classes": (lambda y: torch.nn.functional.one_hot(y.argmax(1), 4).float(), (Verdict.NOT_APPLICABLE, Verdict.PASS)),
    "two scales": (lambda y: (y, 1e6 * y), (Verdict.PASS,)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_networks_are_not_accused(name: str) -> None:
    """Not by the claim of variation, nor by that of the noise's source; what is left out has its reason."""
    end, verdicts = HEALTHY[name]
    model = convert(Net(end), moped_delta=0.1)
    varies = measure_noise_varies(model, images=images())
    assert varies.verdict in verdicts, varies.headline
    source = measure_noise_source(model, images=images())
    assert source.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE), source.headline
    for evidence in (varies, source):
        if evidence.verdict is Verdict.NOT_APPLICABLE:
            assert "The outputs cannot vary" in evidence.headline
            assert "--output" in evidence.headline


def cache(model: Any, *names: str) -> None:
    """Let layers use the same weights in every pass, drawn once: their noise is stale."""
    for name in names:
        layer = getattr(model, name)
        tensors = [t for found in bayesian_layers(layer) for t in found.tensors]
        # A weight, and a bias where there is one.
        drawn = [(t.mu + t.sigma * torch.randn_like(t.mu)).detach() for t in tensors]
        layer.forward = lambda x, return_kl=False, drawn=drawn: torch.nn.functional.linear(x, *drawn)


def collapse(model: Any, *names: str) -> None:
    with torch.no_grad():
        for name in names:
            for layer in bayesian_layers(getattr(model, name)):
                for tensor in layer.tensors:
                    tensor.rho.fill_(-40.0)


def reseed(model: Any) -> None:
    def seeded(_module: nn.Module, _inputs: Any) -> None:
        torch.manual_seed(0)

    model.register_forward_pre_hook(seeded)


def restore(model: Any) -> None:
    """Put the random generator back when a forward is done, as `torch.random.fork_rng` around it does."""
    before: list[Tensor] = []
    model.register_forward_pre_hook(lambda *_: before.append(torch.get_rng_state()))
    model.register_forward_hook(lambda *_: torch.set_rng_state(before.pop()))


FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "noise is cached": (lambda model: cache(model, "body", "head"), "cached or never drawn"),
    "sigma collapsed": (lambda model: collapse(model, "body", "head"), "sigma has collapsed"),
    "seeds in forward": (reseed, "seeds the random generator itself"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("ends", ["plain", "masked", "masked to nothing", "with an offset", "two scales"])
def test_missing_noise_is_found(name: str, ends: str) -> None:
    """With its cause, whatever the outputs look like."""
    break_, words = FAULTS[name]
    model = convert(Net(HEALTHY[ends][0]), moped_delta=0.1)
    break_(model)
    evidence = measure_noise_varies(model, images=images())
    assert evidence.verdict is Verdict.FAIL, evidence.headline
    assert words in evidence.headline


@pytest.mark.parametrize("how", ["Reparameterization", "Flipout"])
def test_a_generator_that_a_forward_puts_back_is_named(how: str) -> None:
    """Passes that are seeded one by one differ; two in a row do not, though nothing is cached."""
    model = convert(Net(), moped_delta=0.1, type=how)  # type: ignore[arg-type]
    restore(model)
    evidence = measure_noise_source(model, images=images())
    assert evidence.verdict is Verdict.FAIL, evidence.headline
    assert "puts the random generator back" in evidence.headline
    assert "cached" not in evidence.headline


def test_no_version_changes_where_outputs_do_not_vary() -> None:
    """What a posterior should do is computed with other values of mu: a backward pass that waits must not notice."""
    model = convert(Net(), moped_delta=0.1)
    collapse(model, "body", "head")
    before = [parameter._version for parameter in model.parameters()]
    assert measure_noise_varies(model, images=images()).verdict is Verdict.FAIL
    assert [parameter._version for parameter in model.parameters()] == before


@pytest.mark.parametrize("break_", [collapse, cache])
@pytest.mark.parametrize("layer", ["body", "head"])
def test_noise_in_one_layer_is_enough(break_: Callable[..., None], layer: str) -> None:
    """The claim is about outputs: they vary by the other layer's noise (who lacks it is for other checks to say)."""
    model = convert(Net(), moped_delta=0.1)
    break_(model, layer)
    assert measure_noise_varies(model, images=images()).verdict is Verdict.PASS


def test_a_blank_image_without_bias() -> None:
    """Zero times any weight is zero: that image is left out and counted; the others are judged."""
    x = images()
    x[3] = 0
    model = convert(Net(bias=False), moped_delta=0.1)
    evidence = measure_noise_varies(model, images=x)
    assert evidence.verdict is Verdict.PASS, evidence.headline
    assert "those of 1 images cannot vary under this posterior" in evidence.headline
    assert measure_noise_source(model, images=x).verdict is Verdict.PASS
    for break_, _ in FAULTS.values():
        broken = convert(Net(bias=False), moped_delta=0.1)
        break_(broken)
        assert measure_noise_varies(broken, images=x).verdict is Verdict.FAIL
    blank = measure_noise_varies(model, images=torch.zeros(3, 10))
    assert blank.verdict is Verdict.NOT_APPLICABLE


@pytest.mark.parametrize("delta", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, delta: float) -> None:
    """bfloat16 rounds to three digits: noise of that size is told from none."""
    model = convert(Net().to(dtype), moped_delta=delta)
    for measure in (measure_noise_varies, measure_noise_source):
        evidence = measure(model, images=images())
        assert evidence.verdict is Verdict.PASS, evidence.headline
    collapse(model, "body", "head")
    assert measure_noise_varies(model, images=images()).verdict is Verdict.FAIL


def test_each_output_has_its_own_scale() -> None:
    """The noise of one that is small beside the other is seen; it alone being silent is, where it is the only one."""
    found = scales_of(torch.tensor([[1.0, 1e6], [3.0, 3e6]]), (Field("a", (1,)), Field("b", (1,))))
    assert isinstance(found, Tensor)
    assert torch.allclose(found, math.sqrt(2) * torch.tensor([1, 1e6], dtype=torch.float64))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.small, self.large = nn.Linear(10, 2), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Any:
            return {"small": self.small(x), "large": 1e6 * self.large(x)}

    model: Any = convert(Two(), moped_delta=0.1)
    collapse(model, "large")
    assert measure_noise_varies(model, images=images()).verdict is Verdict.PASS
    assert measure_noise_spread(model, images=images()).verdict is not Verdict.ERROR


def test_what_is_finite() -> None:
    """NaN, infinity, a row of nothing but minus infinity, or one that comes and goes, are no mask."""
    fine = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = fine.clone()
    mask[:, :, 2] = -INF
    some = fine.clone()
    some[:, 1, 2] = -INF
    for sound in (fine, mask, some, torch.zeros(2, 3)):
        assert not_finite_in(sound) == 0
    assert bool(torch.isfinite(spreads(mask, scale_of(fine[0]))).all())
    assert torch.allclose(spreads(mask, 1.0), spreads(fine[:, :, [0, 1, 3]], 1.0) * math.sqrt(3 / 4))
    assert math.isfinite(float(scales_of(mask[0], (), live_in(mask))))
    for value in (INF, math.nan):
        sick = fine.clone()
        sick[:, 0, 1] = value
        assert not_finite_in(sick) == 6
    comes = fine.clone()
    comes[2, 0, 1] = -INF
    assert not_finite_in(comes) == 1
    whole = fine.clone()
    whole[:, 1] = -INF
    assert not_finite_in(whole) == 6
    assert not_finite_in(torch.full((4, 3), -INF)) == 4


@pytest.mark.parametrize("value", [INF, -INF, math.nan])
def test_weights_that_are_not_finite_are_found(value: float) -> None:
    """A mask is no excuse for them."""
    model = convert(Net(masked(-INF)), moped_delta=0.1)
    with torch.no_grad():
        bayesian_layers(model)[1].tensors[0].mu[0] = value
    evidence = measure_noise_varies(model, images=images())
    assert evidence.verdict is Verdict.FAIL
    assert "NaN or infinite" in evidence.headline
