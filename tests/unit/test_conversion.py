"""convert() gives a faithful Bayesian copy or one error that names every obstacle; it never touches the original."""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn.conversion import Conversion, convert
from pytest_bnn.errors import ConversionError
from pytest_bnn.libraries.posterior import bayesian_layers, is_bayesian, zero_sigma

ESTIMATORS = ("Reparameterization", "Flipout")


def small_cnn(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A network with what a ResNet has: convolutions with and without bias, BatchNorm, depth, a head."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding="same", groups=4), nn.ReLU()),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert not any(is_bayesian(module) for module in model.modules())
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name


def parameter_of(model: nn.Module, path: str, role: str) -> Tensor:
    return dict(model.get_submodule(path).named_parameters())[role].detach()


def images(dtype: torch.dtype = torch.float32, size: int = 8) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_layer_has_its_own_weights_as_posterior_mean(estimator: Any, dtype: torch.dtype) -> None:
    """MOPED: mu = w to the last bit, sigma = delta * abs(w), prior as given. Double precision stays double."""
    teacher = small_cnn(dtype)
    converted = convert(teacher, type=estimator, moped_delta=0.25, prior_mu=0.5, prior_sigma=2.0)
    layers = bayesian_layers(converted)
    assert [(layer.path, layer.kind, layer.estimator) for layer in layers] == [
        ("0", "Conv2d", estimator),
        ("3.0", "Conv2d", estimator),
        ("6", "Linear", estimator),
    ]
    assert [len(layer.tensors) for layer in layers] == [1, 2, 2]
    for layer in layers:
        for tensor in layer.tensors:
            weight = parameter_of(teacher, layer.path, tensor.role)
            assert tensor.mu.dtype == tensor.rho.dtype == tensor.prior_mu.dtype == dtype
            assert torch.equal(tensor.mu, weight), tensor.name
            torch.testing.assert_close(tensor.sigma, 0.25 * weight.abs(), rtol=1e-5, atol=1e-12)
            assert torch.equal(tensor.prior_mu, torch.full_like(weight, 0.5))
            assert torch.equal(tensor.prior_sigma, torch.full_like(weight, 2.0))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_posterior_mean_is_the_teacher(estimator: Any, dtype: torch.dtype) -> None:
    """The identity behind the whole conversion, at the tolerance of the network's own precision."""
    teacher = small_cnn(dtype)
    converted = convert(teacher, type=estimator)
    with torch.no_grad(), zero_sigma(converted):
        torch.testing.assert_close(converted(images(dtype)), teacher(images(dtype)))


def test_bfloat16_stays_bfloat16() -> None:
    """Sixteen bits with float32's range: sigma is coarse there, but neither 0 nor infinite."""
    teacher = small_cnn(torch.bfloat16)
    converted = convert(teacher)
    for layer in bayesian_layers(converted):
        for tensor in layer.tensors:
            weight = parameter_of(teacher, layer.path, tensor.role)
            assert tensor.mu.dtype == torch.bfloat16
            assert torch.equal(tensor.mu, weight)
            # rho up to 16 in size, rounded at 2**-9 twice, moves sigma by at most 2**-4.
            torch.testing.assert_close(tensor.sigma.double(), 0.1 * weight.double().abs(), rtol=0.07, atol=0)
    assert converted(images(torch.bfloat16)).dtype == torch.bfloat16


def test_resnet18_converts_completely() -> None:
    """All 21 convolution and linear layers, and the mean mode equals the teacher's logits."""
    torch.manual_seed(0)
    teacher = torchvision.models.resnet18(num_classes=10).eval()
    before = snapshot(teacher)
    converted = convert(teacher)
    owners = [path for path, m in teacher.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(owners) == 21
    assert [layer.path for layer in bayesian_layers(converted)] == owners
    with torch.no_grad(), zero_sigma(converted):
        torch.testing.assert_close(converted(images(size=32)), teacher(images(size=32)), rtol=1e-4, atol=1e-4)
    assert_untouched(teacher, before)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding="valid", dilation=2), (2, 4, 9, 9)),
        (nn.Conv2d(4, 4, (3, 5), stride=(2, 1), padding=(1, 2), groups=2, bias=False), (2, 4, 9, 9)),
        (nn.Conv3d(2, 3, 3, padding=1), (1, 2, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2), (1, 4, 5, 5)),
        (nn.ConvTranspose3d(2, 2, 2), (1, 2, 3, 3, 3)),
        (nn.Linear(7, 3, bias=False), (2, 7)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_convertible_layer_keeps_its_geometry(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Stride, padding, dilation, groups and bias go through the library by hand; each could be lost."""
    teacher = nn.Sequential(layer)
    converted = convert(teacher)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), zero_sigma(converted):
        torch.testing.assert_close(converted(inputs), teacher(inputs))


def test_the_teacher_shares_no_storage_with_its_copy() -> None:
    """Shared storage makes training the copy change the teacher (FAULTS A5)."""
    teacher = small_cnn()
    before = snapshot(teacher)
    converted = convert(teacher)
    pointers = {t.untyped_storage().data_ptr() for t in teacher.state_dict().values()}
    tensors = [*converted.parameters(), *converted.buffers()]
    assert pointers.isdisjoint({t.untyped_storage().data_ptr() for t in tensors if t.numel()})
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(1)
    assert_untouched(teacher, before)
    distinct = {t.untyped_storage().data_ptr() for layer in bayesian_layers(converted) for t in (layer.tensors[0].mu,)}
    assert len(distinct) == 3


def test_frozen_parts_stay_frozen() -> None:
    """A backbone that was frozen before the conversion is not to be trained after it (FAULTS A21)."""
    teacher = small_cnn()
    teacher[0].weight.requires_grad_(False)
    teacher[1].bias.requires_grad_(False)
    teacher[6].bias.requires_grad_(False)
    converted = convert(teacher)
    wanted = {"0.weight": False, "3.0.weight": True, "3.0.bias": True, "6.weight": True, "6.bias": False}
    found = {
        tensor.name: (tensor.mu.requires_grad, tensor.rho.requires_grad)
        for layer in bayesian_layers(converted)
        for tensor in layer.tensors
    }
    assert found == {name: (value, value) for name, value in wanted.items()}
    batchnorm = converted.get_submodule("1")
    assert {n: p.requires_grad for n, p in batchnorm.named_parameters()} == {"weight": True, "bias": False}


def test_a_mix_of_train_and_eval_modes_survives() -> None:
    """Frozen BatchNorm inside a model in training is the usual case (FAULTS A21)."""
    teacher = small_cnn().train()
    teacher[1].eval()
    teacher[6].eval()
    converted = convert(teacher)
    modes = {path: module.training for path, module in teacher.named_modules()}
    assert {path: module.training for path, module in converted.named_modules()} == modes


def test_hooks_survive_and_fire() -> None:
    """Feature extraction by hooks works on the copy (FAULTS A21)."""
    teacher = small_cnn()
    fired: list[str] = []
    teacher[6].register_forward_hook(lambda m, i, o: fired.append("forward"))
    teacher[6].register_forward_hook(lambda m, a, k, o: fired.append("keywords"), with_kwargs=True)
    teacher[6].register_forward_pre_hook(lambda m, i: fired.append("pre"))
    convert(teacher)(images())
    assert sorted(fired) == ["forward", "keywords", "pre"]


def test_backward_hooks_survive_and_fire() -> None:
    """Attribution methods listen to gradients; a hook that is listed but silent is worse than one that is gone."""
    teacher = small_cnn()
    fired: list[str] = []
    teacher[6].register_full_backward_hook(lambda m, i, o: fired.append("backward"))
    teacher[6].register_full_backward_pre_hook(lambda m, o: fired.append("pre"))
    convert(teacher)(images()).sum().backward()
    assert sorted(fired) == ["backward", "pre"]


@pytest.mark.parametrize("moped_delta", [0.1, 1e6])
def test_moped_leaves_the_random_generators_alone(moped_delta: float) -> None:
    """With MOPED nothing is random, so a seeded test must run the same before and after, refusals included."""
    torch.manual_seed(1)
    numpy.random.seed(1)
    random.seed(1)
    model = small_cnn()
    before = (torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]
    if moped_delta < 1:
        convert(model, moped_delta=moped_delta)
    else:
        with pytest.raises(ConversionError):
            convert(model, moped_delta=moped_delta)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert numpy.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]


def test_without_moped_the_posterior_is_drawn_from_the_global_generator() -> None:
    """Like every initialisation in torch: the same seed gives the same network, another seed another one."""

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        converted = convert(
            nn.Sequential(nn.Linear(50, 40)), moped_enable=False, posterior_mu_init=0.5, posterior_rho_init=-5.0
        )
        tensor = bayesian_layers(converted)[0].tensors[0]
        return torch.stack([tensor.mu.detach(), tensor.rho.detach()])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    # 2000 normal draws of standard deviation .1: their mean stays within 6 of its own standard errors.
    assert float(drawn(1)[0].mean()) == pytest.approx(0.5, abs=6 * 0.1 / 2000**0.5)
    assert float(drawn(1)[1].mean()) == pytest.approx(-5.0, abs=6 * 0.1 / 2000**0.5)


def test_without_moped_large_weights_are_no_obstacle() -> None:
    """The weights are thrown away then, so no sigma can overflow."""
    assert len(bayesian_layers(convert(filled(1e6), moped_enable=False))) == 1


def test_a_slot_that_was_set_to_none_converts() -> None:
    """``model.downsample = None`` leaves a None among the children, which is legal and common."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.extra: nn.Module | None = nn.Identity()
            self.extra = None

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x)
            return out if self.extra is None else self.extra(out)

    model = Block()
    converted = convert(model)
    assert [layer.path for layer in bayesian_layers(converted)] == ["fc"]
    assert "extra" in converted._modules
    with torch.no_grad(), zero_sigma(converted):
        torch.testing.assert_close(converted(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_a_weight_of_exactly_zero_converts_with_no_noise() -> None:
    """Zero biases are how torchvision initialises; the conversion follows delta * abs(w) (the audit reports A6)."""
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.bias)
    bias = bayesian_layers(convert(nn.Sequential(layer)))[0].tensors[1]
    assert bias.role == "bias"
    assert float(bias.sigma.max()) < 1e-15
    assert bool(torch.isfinite(bias.rho).all())


class Overriding(nn.Linear):
    """A layer that may compute anything."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * functional.linear(x, self.weight, self.bias)


class Helpful(nn.Linear):
    """A layer with a method that the network around it may call."""

    def norm(self) -> Tensor:
        return self.weight.abs()


class OwnPadding(nn.Conv2d):
    """Inherits forward, and changes what forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x.flip(-1), weight, bias)


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Conv2d(nn.Module):
    """A user's own class with weights, whose name happens to be that of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def lora() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.lora = nn.Linear(2, 1)
    return nn.Sequential(layer)


def filled(value: float) -> nn.Module:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    return nn.Sequential(layer)


def tied_tensors() -> nn.Module:
    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 4))
    model[1].weight = model[0].weight
    return model


def referred(keep: Callable[[nn.Module], object]) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model.__dict__["keep"] = keep(model[0])
    return model


def attended(**given: Any) -> nn.Module:
    attention = nn.MultiheadAttention(4, 2, **given)
    attention.extra = nn.Identity()
    return nn.Sequential(attention)


def hooked_attention() -> nn.Module:
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj.register_forward_hook(lambda *_: None)
    return nn.Sequential(attention)


def instance_forward() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.__dict__["forward"] = lambda x: x
    return nn.Sequential(layer)


def masked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_buffer("mask", torch.ones(2))
    return nn.Sequential(layer)


OBSTACLES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "A7 overflow": (lambda: filled(1000.0), ["0 (Linear)", "1e+03", "moped_delta"]),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), ["on the meta device", "load its weights first"]),
    "A8 half": (lambda: nn.Sequential(nn.Linear(2, 2)).half(), ["0 (Linear)", "float16"]),
    "A13 nothing": (lambda: nn.Sequential(nn.ReLU()), ["no Linear or convolution"]),
    "A15 LoRA": (lora, ["0 (Linear)", "lora"]),
    "A16 forward": (lambda: nn.Sequential(Overriding(2, 2)), ["0 (Overriding)", "its own forward"]),
    "A16 method": (lambda: nn.Sequential(Helpful(2, 2)), ["0 (Helpful)", "its own norm"]),
    "A16 inner method": (lambda: nn.Sequential(OwnPadding(1, 1, 1)), ["0 (OwnPadding)", "its own _conv_forward"]),
    "A16 forward of the instance": (instance_forward, ["0 (Linear)", "attributes", "forward"]),
    "A16 attention's forward": (lambda: nn.Sequential(OwnAttention(4, 2)), ["0 (OwnAttention)", "its own forward"]),
    "A16 attention's child": (attended, ["0 (MultiheadAttention)", "out_proj, extra"]),
    "attention's dead hook": (hooked_attention, ["0 (MultiheadAttention) has hooks on its out_proj", "never calls"]),
    "A16 buffer": (masked, ["0 (Linear)", "further parameters or buffers (mask)"]),
    "A16 lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), ["0 (LazyLinear)", "lazy"]),
    "A16 cell": (lambda: nn.Sequential(nn.LSTMCell(2, 2)), ["0 (LSTMCell)", "recurrent"]),
    "A16 homonym": (lambda: nn.Sequential(nn.Linear(2, 2), Conv2d()), ["1 (Conv2d)", "by its name only"]),
    "A12 LSTM": (lambda: nn.Sequential(nn.LSTM(2, 2)), ["0 (LSTM)", "recurrent"]),
    "A17 tensor twice": (tied_tensors, ["0.weight", "1.weight", "shared by"]),
    "A17 own method": (
        lambda: referred(lambda layer: layer.extra_repr),
        ["keep keeps the method extra_repr of 0"],
    ),
    "A17 closure": (
        lambda: referred(lambda layer: lambda x: layer(x)),
        ["keep keeps a function that refers to 0", "stay deterministic"],
    ),
    "A17 weak reference": (lambda: referred(weakref.ref), ["keep keeps a weak reference to 0"]),
    "A17 parameter": (lambda: referred(lambda layer: [layer.weight]), ["keep", "second reference to 0.weight"]),
    "complex": (lambda: nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)), ["0 (Linear)", "real numbers"]),
    "NaN": (lambda: filled(float("nan")), ["0 (Linear)", "NaN"]),
    "twice": (lambda: convert(small_cnn()), ["already holds Bayesian layers"]),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_every_obstacle_is_named_and_nothing_is_touched(name: str) -> None:
    """The library raises midway or, worse, converts to something else; here the plan is made first."""
    make, wanted = OBSTACLES[name]
    model = make()
    modules = list(model.named_modules(remove_duplicate=False))
    types = [type(module) for _, module in modules]
    parameters = [(n, p, p._version) for n, p in model.named_parameters()]
    with pytest.raises(ConversionError, match="nothing was touched") as caught:
        convert(model, moped_delta=0.1)
    for words in wanted:
        assert words in str(caught.value)
    assert str(caught.value).endswith(f"{caught.value.fix}.".replace("replace", "Replace", 1))
    after = list(model.named_modules(remove_duplicate=False))
    assert [path for path, _ in after] == [path for path, _ in modules]
    assert all(one is other for (_, one), (_, other) in zip(after, modules, strict=True))
    assert [type(module) for _, module in after] == types
    assert all(
        p is q and p._version == v for (_, p, v), (_, q) in zip(parameters, model.named_parameters(), strict=True)
    )


def test_all_obstacles_are_listed_at_once() -> None:
    """One run, one list: nobody mends a network one error at a time."""
    model = nn.Sequential(
        OwnPadding(1, 1, 1), nn.Linear(2, 2), nn.Sequential(Overriding(2, 2), nn.LSTM(2, 2)), *filled(1e4).children()
    )
    with pytest.raises(ConversionError) as caught:
        convert(model)
    for words in ("0 (OwnPadding)", "2.0 (Overriding)", "2.1 (LSTM)", "3 (Linear)"):
        assert words in str(caught.value)
    assert "1 (Linear)" not in str(caught.value)
    assert "_flat_weights" not in str(caught.value)  # torch's own second list of an LSTM's weights


@pytest.mark.parametrize("name", ["prior_mu", "prior_sigma", "posterior_mu_init", "posterior_rho_init", "moped_delta"])
def test_numbers_are_numbers(name: str) -> None:
    """True is 1 and '0.1' is a string: both come from configuration files."""
    for value in ("0.1", None, True, torch.tensor(0.1)):
        with pytest.raises(TypeError, match=f"{name} must be a number"):
            Conversion(**{name: value})  # type: ignore[arg-type]
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            Conversion(**{name: number})  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{"prior_sigma": 0}, {"prior_sigma": -1.0}, {"moped_delta": 0.0}])
def test_widths_are_above_zero(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Conversion(**given)  # type: ignore[arg-type]


def test_options_are_checked_before_the_model() -> None:
    """A wrong option raises on a good model, and a model that is none is told apart."""
    model = small_cnn()
    before = snapshot(model)
    with pytest.raises(ValueError, match="'Reparameterization' or 'Flipout', not 'LRT'"):
        convert(model, type="LRT")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="moped_enable"):
        convert(model, moped_enable=1)  # type: ignore[arg-type]
    assert_untouched(model, before)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, not dict"):
        convert({})  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_a_conversion_is_repeatable(estimator: Any) -> None:
    """Two copies of one network are equal in all they hold, noise buffers included, and independent."""
    model = small_cnn()
    one, other = convert(model, type=estimator), convert(copy.deepcopy(model), type=estimator)
    held, repeated = ([*bnn.named_parameters(), *bnn.named_buffers()] for bnn in (one, other))
    assert any(name.endswith("eps_kernel") for name, _ in held)
    for (name, p), (_, q) in zip(held, repeated, strict=True):
        assert torch.equal(p, q), name
        assert p.data_ptr() != q.data_ptr()
