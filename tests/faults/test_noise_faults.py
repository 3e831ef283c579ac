"""Noise that is not the posterior's, though outputs vary and vanish with sigma: only `noise.posterior` can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.audit.environment import torchvision
from pytest_bnn.checks import measure_noise_posterior, measure_noise_source, measure_noise_varies
from pytest_bnn.conversion import convert
from pytest_bnn.records.evidence import Verdict
from tests.around import plain

#: Fills a noise buffer in place, in place of ``normal_()``.
Fill = Callable[[Tensor], Tensor]


class _Filling(TorchFunctionMode):
    def __init__(self, fill: Fill) -> None:
        super().__init__()
        self.fill = fill

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.normal_:
            return self.fill(args[0])
        return func(*args, **(kwargs or {}))


def refill(layer: nn.Module, fill: Fill) -> None:
    """Let a layer of the library draw its noise by ``fill``."""
    kind = type(layer)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        with _Filling(fill):
            out: Tensor = kind.forward(self, x)
        return out

    layer.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def scaled(by: float) -> Fill:
    return lambda eps: eps.normal_().mul_(by)


def uniform(eps: Tensor) -> Tensor:
    return eps.uniform_(-(3**0.5), 3**0.5)


def kept_for(passes: int) -> Fill:
    """Draw anew only every so many calls, for each shape."""
    kept: dict[tuple[int, ...], tuple[int, Tensor]] = {}

    def fill(eps: Tensor) -> Tensor:
        calls, noise = kept.get(eps.shape, (0, eps))
        if calls % passes == 0:
            noise = torch.randn(eps.shape)
        kept[eps.shape] = (calls + 1, noise)
        return eps.copy_(noise)

    return fill


def lingering() -> Fill:
    """A third of the last noise stays: N(0, 1) in every pass, and no pass is new."""
    last: dict[tuple[int, ...], Tensor] = {}

    def fill(eps: Tensor) -> Tensor:
        fresh = torch.randn(eps.shape)
        last[eps.shape] = 0.3 * last[eps.shape] + (1 - 0.3**2) ** 0.5 * fresh if eps.shape in last else fresh
        return eps.copy_(last[eps.shape])

    return fill


def whole(model: nn.Module, fill: Fill) -> nn.Module:
    refill(model.get_submodule("block.conv1"), fill)
    return model


def shared(model: nn.Module) -> nn.Module:
    noise: dict[tuple[int, ...], Tensor] = {}

    def first(eps: Tensor) -> Tensor:
        noise[eps.shape] = eps.normal_().clone()
        return eps

    refill(model.get_submodule("block.conv1"), first)
    refill(model.get_submodule("block.conv2"), lambda eps: eps.copy_(noise[eps.shape]))
    return model


def follows(model: nn.Module, path: str, leader: str) -> nn.Module:
    """Let a layer use the noise that another one drew in the pass before."""
    drawn: dict[tuple[int, ...], Tensor] = {}
    before: dict[tuple[int, ...], Tensor] = {}
    kind: Any = type(model)

    def lead(eps: Tensor) -> Tensor:
        drawn[eps.shape] = eps.normal_().clone()
        return eps

    def forward(self: nn.Module, x: Tensor) -> Any:
        before.update(drawn)
        return kind.forward(self, x)

    refill(model.get_submodule(leader), lead)
    refill(
        model.get_submodule(path),
        lambda eps: eps.copy_(before[eps.shape]) if eps.shape in before else eps.normal_(),
    )
    model.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return model


def one_layer_only(model: nn.Module) -> nn.Module:
    for path in ("stem", "block.conv1", "block.conv2"):
        refill(model.get_submodule(path), lambda eps: eps.zero_())
    return model


FAULTS: dict[str, tuple[Callable[[nn.Module], nn.Module], tuple[str, ...]]] = {
    "halved": (lambda m: whole(m, scaled(0.5)), ("block.conv1.weight", "times the sigma", "unscaled")),
    "scaled": (lambda m: whole(m, scaled(10)), ("block.conv1.weight", "times the sigma")),
    "off by a tenth": (lambda m: whole(m, scaled(1.1)), ("block.conv1.weight", "times the sigma")),
    "uniform": (lambda m: whole(m, uniform), ("block.conv1.weight", "not Gaussian", "normal_()")),
    "shifted": (
        lambda m: whole(m, lambda eps: eps.normal_().add_(0.2)),
        ("block.conv1.weight", "has the mean", "sigma, not 0", "about mu"),
    ),
    "cached": (lambda m: whole(m, kept_for(10**9)), ("block.conv1.weight", "correlate", "no cache")),
    "reused every second pass": (lambda m: whole(m, kept_for(2)), ("block.conv1.weight", "correlate", "no cache")),
    "lingering": (lambda m: whole(m, lingering()), ("block.conv1.weight", "follow each other")),
    "shared by two layers": (shared, ("block.conv2.weight", "correlates with that of block.conv1.weight: 1")),
    "that of a later layer in the pass before": (
        lambda m: follows(m, "block.conv1", "block.conv2"),
        ("block.conv1.weight: its noise correlates with that of block.conv2.weight in the pass before: 1",),
    ),
    "that of an earlier layer in the pass before": (
        lambda m: follows(m, "block.conv2", "block.conv1"),
        ("block.conv2.weight: its noise correlates with that of block.conv1.weight in the pass before: 1",),
    ),
    "one layer only": (one_layer_only, ("stem", "block.conv1", "block.conv2", "makes no noise")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_noise_that_is_not_the_posteriors_is_found(
    name: str, teacher: nn.Module, estimator: str, batch: tuple[Tensor, Tensor]
) -> None:
    """Found and named; the layers that draw rightly are not accused; the other checks of noise see nothing."""
    inject, words = FAULTS[name]
    model = inject(convert(teacher, type=estimator))  # type: ignore[arg-type]
    found = measure_noise_posterior(model, images=batch[0])
    assert found.verdict is Verdict.FAIL
    said = found.explain(offenders=20)
    missing = [word for word in words if plain(word) not in plain(said)]
    assert not missing, said
    guilty = ("block.conv1", "block.conv2") if name != "one layer only" else ("stem", "block.conv1", "block.conv2")
    single = [layer for layer in found.layers if "together" not in layer.finding]
    assert {layer.path for layer in single} <= set(guilty), said
    if name != "cached":  # zero_sigma silences it, and each of two passes in a row has fresh noise elsewhere
        for measure in (measure_noise_varies, measure_noise_source):
            assert measure(model, images=batch[0]).verdict is Verdict.PASS


@pytest.mark.parametrize("by", [1.01, 0.99])
def test_one_percent_in_one_large_layer_is_found(estimator: str, by: float) -> None:
    """The stated effect: 420,000 weights suffice, with power .999; the layer beside it is not accused."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(700, 600), nn.ReLU(), nn.Linear(600, 700)).eval()
    model = convert(network, type=estimator)  # type: ignore[arg-type]
    healthy = measure_noise_posterior(model, images=torch.randn(2, 700))
    assert healthy.verdict is Verdict.PASS, healthy.explain()
    assert float(str(healthy["effect shown in every large tensor"])) < 0.01
    refill(model.get_submodule("2"), scaled(by))
    found = measure_noise_posterior(model, images=torch.randn(2, 700))
    assert found.verdict is Verdict.FAIL
    assert {layer.path for layer in found.layers} == {"2"}, found.explain()
    assert "`2.weight`: its noise has" in found.headline


def test_a_layer_that_does_not_show_its_weights_is_reported(teacher: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """What cannot be seen is neither right nor wrong, and the reader is told."""
    model = convert(teacher)
    head: Any = model.get_submodule("head")
    kind = type(head)

    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.mu_weight + 2 * torch.log1p(torch.exp(self.rho_weight)) * self.eps_weight.data.normal_()
        out: Tensor = x @ weight.T + self.mu_bias
        return out

    head.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    found = measure_noise_posterior(model, images=batch[0])
    assert found.verdict is Verdict.PASS
    assert "`head`: its call does not reveal its bias and weight" in found.explain()


def test_what_rounding_hides_is_left_out(estimator: str, batch: tuple[Tensor, Tensor], teacher: nn.Module) -> None:
    """Float32 cannot add noise of 1e-7 to a weight of 1: Reparameterization's noise is the grid's, Flipout's is not."""
    model = convert(teacher, type=estimator, moped_delta=1e-7)  # type: ignore[arg-type]
    found = measure_noise_posterior(model, images=batch[0])
    if estimator == "Flipout":
        assert found.verdict is Verdict.PASS, found.explain()
        assert found["share of weights left out"] == 0
    else:
        assert found.verdict is Verdict.NOT_APPLICABLE
        assert "rounding" in found.headline
    close = measure_noise_posterior(convert(teacher, moped_delta=3e-6), images=batch[0])
    assert close.verdict is Verdict.PASS, close.explain()


def test_half_precision_and_doubles_pass(estimator: str, teacher: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Coarse rounding is allowed for, not taken for a fault."""
    for dtype in (torch.float64, torch.bfloat16):
        model = convert(teacher, type=estimator).to(dtype)  # type: ignore[arg-type]
        found = measure_noise_posterior(model, images=batch[0])
        assert found.verdict is Verdict.PASS, found.explain()


def test_attention_that_ignores_a_bias_passes() -> None:
    """Swin V2 takes its key's bias for 0: those weights are out of use, and no silence is a fault there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = torchvision().models.swin_transformer.SwinTransformer(
            [2, 2], 12, [2], [2], [4, 4], num_classes=3,
            block=torchvision().models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=torchvision().models.swin_transformer.PatchMergingV2,
        ).eval()  # fmt: skip
        for name, parameter in teacher.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    for estimator in ("Reparameterization", "Flipout"):
        found = measure_noise_posterior(convert(teacher, type=estimator), images=torch.randn(2, 3, 16, 16))
        assert found.verdict is Verdict.PASS, found.explain()
        assert float(str(found["share of weights left out"])) > 0


@pytest.mark.nightly("twenty audits; every push has one seed of each network")
def test_another_seed_gives_the_same_verdict(teacher: nn.Module, estimator: str, batch: tuple[Tensor, Tensor]) -> None:
    """Twenty audits of a healthy network; at 1e-6 none may fail, and corrected p-values may not crowd near 0."""
    model = convert(teacher, type=estimator)  # type: ignore[arg-type]
    values = []
    for seed in range(20):
        found = measure_noise_posterior(model, images=batch[0], seed=seed)
        assert found.verdict is Verdict.PASS, found.explain()
        assert found.threshold is not None
        values.append(float(str(found.threshold.observed)))
    assert sum(value < 0.2 for value in values) < 14  # P(Binomial(20, 0.2) >= 14) = 2e-6
