"""What dnn_to_bnn converts wrongly, convert() mends: the teacher at the posterior mean, noise, and one KL term."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import bayesian_torch.layers as library
import pytest
import torch
import torchvision
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from pytest_bnn.conversion import Conversion, convert
from pytest_bnn.errors import ConversionError
from pytest_bnn.libraries.posterior import bayesian_layers, counted_twice, kl, watched_noise, zero_sigma

ESTIMATORS = ("Reparameterization", "Flipout")


@pytest.fixture(params=ESTIMATORS)
def estimator(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def with_trained_looking(model: nn.Module) -> nn.Module:
    """Move every parameter away from 0, where torch starts biases of attention."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def assert_is_teacher_at_its_mean(teacher: nn.Module, converted: nn.Module, *inputs: Any, **options: Any) -> Any:
    """The identity behind a conversion, and that sigma is what varies; give the outputs at the mean."""
    with torch.no_grad():
        expected = teacher(*inputs, **options)
        with zero_sigma(converted):
            found = converted(*inputs, **options)
        torch.testing.assert_close(found, expected)
        first, second = converted(*inputs, **options), converted(*inputs, **options)
    first, second = (x[0] if isinstance(x, tuple) else x for x in (first, second))
    assert not torch.allclose(first, second)
    return found


def assert_kl_is_counted_once(converted: nn.Module) -> None:
    """get_kl_loss walks all modules; the mean of each tensor's closed form, each once, is what it must give."""
    found = kl(converted)
    assert found is not None
    tensors = [tensor for layer in bayesian_layers(converted) for tensor in layer.tensors]
    assert float(found.detach()) == pytest.approx(sum(t.kl_sum() / t.count for t in tensors), rel=1e-5)
    assert counted_twice(converted) == ()


# --- Equal to the library where the library is right ---------------------------------------------------------------


def parameters(estimator: str, *, moped: bool) -> dict[str, Any]:
    given = Conversion(type=estimator, moped_enable=moped)  # type: ignore[arg-type]
    return {name: getattr(given, name) for name in Conversion.__dataclass_fields__}


@pytest.mark.parametrize("moped", [True, False], ids=["moped", "random"])
def test_resnet18_is_the_librarys_to_the_bit(estimator: Any, moped: bool) -> None:
    """Types, parameters, priors and attributes; without MOPED also what is drawn, from the same seed."""
    teacher = torchvision.models.resnet18(num_classes=10)
    reference = copy.deepcopy(teacher)
    torch.manual_seed(7)
    dnn_to_bnn(reference, parameters(estimator, moped=moped))
    torch.manual_seed(7)
    converted = convert(teacher, type=estimator, moped_enable=moped)
    assert [type(m) for m in converted.modules()] == [type(m) for m in reference.modules()]
    for (name, p), (_, q) in zip(converted.named_parameters(), reference.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    for (name, one), (_, other) in zip(converted.named_buffers(), reference.named_buffers(), strict=True):
        assert "eps" in name or torch.equal(one, other), name  # eps is whatever was in memory
        assert one.shape == other.shape, name
    for (path, ours), (_, theirs) in zip(converted.named_modules(), reference.named_modules(), strict=True):
        assert ours.__dict__.keys() == theirs.__dict__.keys(), path
        for name, value in ours.__dict__.items():
            if not name.startswith("_") or name == "_dnn_to_bnn_flag":
                assert value == theirs.__dict__[name] or callable(value), (path, name)


def test_equal_seeds_give_the_librarys_outputs(estimator: Any) -> None:
    """A mended transposed convolution without anything to mend is the library's, draw by draw."""
    teacher = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2))
    reference = copy.deepcopy(teacher)
    dnn_to_bnn(reference, parameters(estimator, moped=True))
    converted, x = convert(teacher, type=estimator), torch.randn(2, 4, 5, 5)
    torch.manual_seed(3)
    expected = reference(x)
    torch.manual_seed(3)
    assert torch.equal(converted(x), expected)


# --- Layers --------------------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 7, 7)),
    "reflect, uneven": (
        lambda: nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=2, padding_mode="reflect"),
        (2, 4, 7, 7),
    ),
    "replicate, same": (lambda: nn.Conv2d(4, 6, 4, padding="same", padding_mode="replicate"), (2, 4, 7, 7)),
    "circular 1d": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), (2, 4, 9)),
    "replicate 3d": (lambda: nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate"), (1, 2, 4, 4, 4)),
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 12)),
    "1d without bias": (lambda: nn.Conv1d(4, 6, 3, bias=False, padding="same"), (2, 4, 12)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 6)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=(1, 0)), (2, 4, 5, 5)),
    "transposed 2d, groups": (lambda: nn.ConvTranspose2d(4, 6, 3, dilation=2, groups=2, bias=False), (2, 4, 5, 5)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 3, stride=2, output_padding=1), (1, 2, 3, 3, 3)),
    "no dynamic quantization": (
        lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(4, 3),
        (2, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("root", [True, False], ids=["itself", "inside"])
def test_layers(name: str, root: bool, estimator: Any) -> None:
    """A14, A18, A19, A20, and what the library's Flipout has wrong; also where the layer is the whole model."""
    make, shape = LAYERS[name]
    layer = with_trained_looking(make())
    teacher = layer if root else nn.Sequential(layer)
    converted = convert(teacher, type=estimator, moped_delta=0.3)
    (made,) = bayesian_layers(converted)
    kinds = [c.__name__ for c in type(layer).__mro__ if c.__module__.startswith("torch.nn")]
    assert made.kind in kinds
    assert made.estimator == estimator
    assert isinstance(made.module, getattr(library, made.kind + estimator))
    assert made.weights == sum(p.numel() for p in teacher.parameters())
    for tensor in made.tensors:
        assert tensor.mu.shape == tensor.prior_mu.shape == tensor.prior_sigma.shape
    assert_is_teacher_at_its_mean(teacher, converted, torch.randn(shape))
    assert_kl_is_counted_once(converted)


@pytest.mark.parametrize("name", LAYERS)
def test_the_spread_of_the_outputs_is_the_posteriors(name: str, estimator: Any) -> None:
    """Noise of the right size: Var y = Conv(x^2, sigma^2), whatever the padding; both estimators share it."""
    make, shape = LAYERS[name]
    teacher = with_trained_looking(make()).double()
    converted = convert(teacher, type=estimator, moped_delta=0.3)
    squared = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in squared.parameters():
            parameter.copy_((0.3 * parameter) ** 2)
        x = torch.randn(shape, dtype=torch.float64)
        draws = torch.stack([converted(x) for _ in range(600)])
        found, expected = draws.var(0).mean(), squared(x**2).mean()
    # 600 draws: a single variance has a relative error of sqrt(2/599) = 0.058; few weights correlate all outputs.
    assert float(found) == pytest.approx(float(expected), rel=6 * 0.058)


def test_an_output_size_that_is_asked_for_is_given(estimator: Any) -> None:
    """Decoders pass the size of the encoder's map; the library's layers would take it for something else."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.up(self.down(x), output_size=x.shape)
            return out

    teacher = Decoder().eval()
    for size in (7, 8):
        found = assert_is_teacher_at_its_mean(teacher, convert(teacher, type=estimator), torch.randn(2, 3, size, size))
        assert found.shape[-1] == size


class Labelled(nn.Linear):
    """Adds attributes and nothing else."""

    rank = 3

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.label = ["head"]


def test_a_subclass_that_adds_attributes_keeps_them(estimator: Any) -> None:
    """The network around it may read them."""
    teacher = nn.Sequential(Labelled(4, 3)).eval()
    converted: Any = convert(teacher, type=estimator)
    assert type(converted[0]) is getattr(library, f"Linear{estimator}")
    assert (converted[0].label, converted[0].rank) == (["head"], 3)
    assert converted[0].label is not teacher[0].label
    assert_is_teacher_at_its_mean(teacher, converted, torch.randn(2, 4))


class ConvScale(nn.Module):
    """Named like a layer, without weights that could be learned."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(3))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_class_without_weights_is_left_alone_whatever_its_name() -> None:
    """Nothing in it could be Bayesian; the library would replace it."""
    teacher = nn.Sequential(nn.Linear(4, 3), ConvScale()).eval()
    converted: Any = convert(teacher)
    assert type(converted[1]) is ConvScale
    assert_is_teacher_at_its_mean(teacher, converted, torch.randn(2, 4))


def test_float64_keeps_its_prior() -> None:
    """0.1 in float32 is another number."""
    (layer,) = bayesian_layers(convert(nn.Linear(2, 2).double(), prior_sigma=0.1, prior_mu=0.3))
    assert layer.tensors[0].prior_sigma.unique().tolist() == [0.1]
    assert layer.tensors[1].prior_mu.unique().tolist() == [0.3]


# --- Weights that are made anew before every forward -----------------------------------------------------------------

BAKED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "old weight norm": lambda layer: nn.utils.weight_norm(layer),
    "old spectral norm": lambda layer: nn.utils.spectral_norm(layer),
    "pruning": lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    "biased pruning": lambda layer: nn.utils.prune.random_unstructured(layer, "bias", 1),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", BAKED)
def test_the_current_weight_is_baked_in(name: str, estimator: Any) -> None:
    """A15: the posterior mean is what the layer computes with, and nothing is left that would make it anew."""
    teacher = nn.Sequential(BAKED[name](nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    teacher(torch.randn(2, 3, 5, 5))
    teacher.eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    converted: Any = convert(teacher, type=estimator, moped_delta=0.2)
    assert [layer.kind for layer in bayesian_layers(converted)] == ["Conv2d", "Linear"]
    assert not converted[0]._modules
    assert not converted[0]._forward_pre_hooks
    assert_is_teacher_at_its_mean(teacher, converted, torch.randn(2, 3, 5, 5))
    assert_kl_is_counted_once(converted)
    assert teacher.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_baking_in_train_mode_does_not_move_the_teacher() -> None:
    """Reading a spectral norm's weight in train mode iterates its buffers."""
    teacher = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))).train()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert convert(teacher).training
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_what_is_frozen_stays_frozen_when_baked() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    for parameter in layer.parametrizations.parameters():
        parameter.requires_grad_(False)
    weight, bias = bayesian_layers(convert(nn.Sequential(layer)))[0].tensors
    assert not weight.mu.requires_grad
    assert not weight.rho.requires_grad
    assert bias.mu.requires_grad


# --- Sharing and references -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 2])
def test_a_module_at_several_places_is_one_bayesian_layer(depth: int, estimator: Any) -> None:
    """A17: 20 parameters stay 20 (times mu and rho), and the KL counts them once."""
    shared: nn.Module = nn.Linear(4, 4)
    for _ in range(depth):
        shared = nn.Sequential(shared)
    teacher = nn.Sequential(shared, nn.Tanh(), shared).eval()
    converted: Any = convert(teacher, type=estimator)
    assert converted[0] is converted[2]
    assert len(bayesian_layers(converted)) == 1
    assert sum(p.numel() for p in converted.parameters()) == 2 * 20
    assert_is_teacher_at_its_mean(teacher, converted, torch.randn(2, 4))
    assert_kl_is_counted_once(converted)


class Referring(nn.Module):
    """Calls its layer only through what else refers to it."""

    def __init__(self, keep: Callable[[nn.Module], Any], use: Callable[[Any], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.__dict__["kept"] = keep(self.layer)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.__dict__["kept"])(x)


REFERENCES: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], Any]]] = {
    "attribute": (lambda layer: layer, lambda kept: kept),
    "list": (lambda layer: [layer], lambda kept: kept[0]),
    "nested": (lambda layer: {"a": [(layer,)]}, lambda kept: kept["a"][0][0]),
    "set": (lambda layer: {layer}, lambda kept: next(iter(kept))),
    "bound forward": (lambda layer: layer.forward, lambda kept: kept),
    "bound forward in a list": (lambda layer: [layer.forward], lambda kept: kept[0]),
    "bound call": (lambda layer: layer.__call__, lambda kept: kept),
    "partial": (lambda layer: partial(layer), lambda kept: kept),
    "partial of forward": (lambda layer: partial(layer.forward), lambda kept: kept),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_references_point_to_the_bayesian_layer(name: str, estimator: Any) -> None:
    """A17: what is called is what has the KL term, not an old layer that nobody sees."""
    teacher = Referring(*REFERENCES[name]).eval()
    converted = convert(teacher, type=estimator)
    assert_is_teacher_at_its_mean(teacher, converted, torch.randn(2, 4))
    with watched_noise(converted) as drawn, torch.no_grad():
        converted(torch.randn(2, 4))
    assert drawn == {"layer"}
    kept = teacher.__dict__["kept"]
    assert kept.__self__ is teacher.layer if isinstance(kept, MethodType) else True


# --- Attention --------------------------------------------------------------------------------------------------------

ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other sizes": {"kdim": 6, "vdim": 10},
    "appended": {"add_bias_kv": True, "add_zero_attn": True},
}


class Attending(nn.Module):
    """Gives the output and, where asked, the weights."""

    def __init__(self, attention: nn.MultiheadAttention, **options: Any) -> None:
        super().__init__()
        self.attention, self.options = attention, options

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        out, weights = self.attention(*inputs, **self.options)
        return out, torch.zeros(()) if weights is None else weights


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"average_attn_weights": False}, {"need_weights": False}], ids=["averaged", "by head", "none"]
)
@pytest.mark.parametrize("masks", ["none", "bool", "float", "3d", "padding", "both", "causal"])
def test_attention_is_torchs_at_its_mean(name: str, options: dict[str, Any], masks: str, estimator: Any) -> None:
    """A16: the four projections become layers that are called, and every option of torch's gives what torch gives."""
    settings = ATTENTIONS[name]
    attention = nn.MultiheadAttention(8, 2, **settings)
    heads, targets, sources, batch = 2, 5, 5 if masks == "causal" else 7, 3
    lower = torch.ones(targets, sources).triu(1).bool()
    padding = torch.arange(sources).expand(batch, -1) > torch.tensor([[sources], [sources - 2], [0]])
    given: Any = {
        "none": {},
        "bool": {"attn_mask": lower},
        "float": {"attn_mask": torch.randn(targets, sources)},
        "3d": {"attn_mask": torch.randn(batch * heads, targets, sources)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": torch.randn(targets, sources), "key_padding_mask": padding.float() * -3},
        "causal": {"attn_mask": lower, "is_causal": True},
    }[masks]
    teacher = with_trained_looking(Attending(attention, **options, **given))
    converted = convert(teacher, type=estimator)
    sizes = ((targets, 8), (sources, settings.get("kdim", 8)), (sources, settings.get("vdim", 8)))
    inputs = [torch.randn(batch, *size) for size in sizes]
    if not settings.get("batch_first"):
        inputs = [x.transpose(0, 1) for x in inputs]
    assert_is_teacher_at_its_mean(teacher, converted, *inputs)


def test_attention_without_a_batch(estimator: Any) -> None:
    teacher = with_trained_looking(Attending(nn.MultiheadAttention(8, 2)))
    assert_is_teacher_at_its_mean(teacher, convert(teacher, type=estimator), *[torch.randn(5, 8)] * 3)


def test_attentions_posterior(estimator: Any) -> None:
    """Its layers are Linear, hold every projection weight once, and are frozen where the teacher's weights are."""
    teacher: Any = with_trained_looking(nn.MultiheadAttention(8, 2))
    teacher.in_proj_weight.requires_grad_(False)
    converted = convert(teacher, type=estimator)
    layers = {layer.path: layer for layer in bayesian_layers(converted)}
    assert {path: layer.kind for path, layer in layers.items()} == dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "out_proj"), "Linear"
    )
    assert sum(layer.weights for layer in layers.values()) == sum(p.numel() for p in teacher.parameters())
    means = [layers[path].tensors[0].mu for path in ("q_proj", "k_proj", "v_proj")]
    assert torch.equal(torch.cat(means), teacher.in_proj_weight)
    assert [mu.requires_grad for mu in means] == [False] * 3
    assert layers["q_proj"].tensors[1].mu.requires_grad
    assert isinstance(converted, nn.MultiheadAttention)
    assert_kl_is_counted_once(converted)
    with pytest.raises(RuntimeError, match="is_causal"):
        converted(*[torch.randn(5, 8)] * 3, is_causal=True)


def test_torchs_transformer(estimator: Any) -> None:
    """Its fast path reads weights where it can; the converted one must not try."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    teacher = with_trained_looking(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    converted = convert(teacher, type=estimator)
    assert len(bayesian_layers(converted)) == 2 * 6
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    assert_is_teacher_at_its_mean(teacher, converted, torch.randn(2, 4, 8), src_key_padding_mask=padding)


@pytest.mark.parametrize("cls", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [(7, 6), (8, 8), (3, 9)], ids=["padded", "fitting", "one window high"])
def test_windowed_attention(cls: Any, bias: bool, size: tuple[int, int], estimator: Any) -> None:
    """Swin reads .weight of its Linear layers; V2 takes the key's bias for 0, also where training has moved it."""
    attention = cls(8, [4, 4], [2, 2], 2, qkv_bias=bias, proj_bias=bias)
    teacher = with_trained_looking(nn.Sequential(attention))
    converted: Any = convert(teacher, type=estimator)
    assert isinstance(converted[0], cls)
    assert_is_teacher_at_its_mean(teacher, converted, torch.randn(2, *size, 8))
    assert_kl_is_counted_once(converted)
    with watched_noise(converted) as drawn, torch.no_grad():
        converted(torch.randn(2, *size, 8))
    assert drawn == {layer.path for layer in bayesian_layers(converted)}


def test_a_subclass_of_windowed_attention_is_refused() -> None:
    """Its forward may read the weights in its own way."""

    class Mine(ShiftedWindowAttention):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.qkv.weight[:8]  # type: ignore[no-any-return]

    with pytest.raises(ConversionError, match=r"0 \(Mine\) is a subclass of torchvision's with its own forward"):
        convert(nn.Sequential(Mine(8, [4, 4], [0, 0], 2)))


# --- Whole networks ---------------------------------------------------------------------------------------------------


def tiny_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(  # type: ignore[no-any-return]
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


def tiny_swin(version: int) -> nn.Module:
    from torchvision.models import swin_transformer

    block = (swin_transformer.SwinTransformerBlock, swin_transformer.SwinTransformerBlockV2)[version - 1]
    merging = (swin_transformer.PatchMerging, swin_transformer.PatchMergingV2)[version - 1]
    return swin_transformer.SwinTransformer(  # type: ignore[no-any-return]
        [2, 2], 8, [2, 2], [2, 4], [2, 2], num_classes=5, block=block, downsample_layer=merging
    )


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=5), 48),
    "vit": (tiny_vit, 16),
    "swin": (lambda: tiny_swin(1), 16),
    "swin v2": (lambda: tiny_swin(2), 16),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_families(name: str, estimator: Any) -> None:
    """Every weight layer is Bayesian, the mean is the teacher; copies, pickles and state dicts work."""
    make, size = FAMILIES[name]
    teacher = with_trained_looking(make())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    converted = convert(teacher, type=estimator)
    x = torch.randn(2, 3, size, size)
    assert_is_teacher_at_its_mean(teacher, converted, x)
    assert_kl_is_counted_once(converted)
    left = [path for path, m in converted.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    assert left == []
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    other = convert(with_trained_looking(make()), type=estimator)
    other.load_state_dict(converted.state_dict())
    for copied in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted)), other):
        assert [type(m) for m in copied.modules()] == [type(m) for m in converted.modules()]
        torch.manual_seed(5)
        expected = converted(x)
        torch.manual_seed(5)
        assert torch.equal(copied(x), expected)


def test_gradients_reach_every_posterior(estimator: Any) -> None:
    """One training step of a ViT: each mu and rho is moved by the data, not only by the KL term."""
    converted = convert(with_trained_looking(tiny_vit()), type=estimator)
    converted(torch.randn(2, 3, 16, 16)).square().sum().backward()
    silent = [
        tensor.name
        for layer in bayesian_layers(converted)
        for tensor in layer.tensors
        for parameter in (tensor.mu, tensor.rho)
        # A key's bias shifts all scores of a query alike, and softmax takes no notice.
        if (parameter.grad is None or not math.isfinite(float(parameter.grad.norm())) or not parameter.grad.any())
        and tensor.name != f"{layer.path}.bias"
    ]
    assert silent == []
