"""Faults that need a network, a comparison or a training of their own; the others are rows of test_injected_faults."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from bayesian_torch.layers import LinearReparameterization
from bayesian_torch.models.bayesian.resnet_flipout import resnet20 as resnet20_flipout
from bayesian_torch.models.bayesian.resnet_variational import resnet20
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import checks
from pytest_bnn.conversion import convert
from pytest_bnn.errors import ConversionError
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.training.finetune import finetune
from tests.around import plain

Bare = Callable[..., nn.Module]
Batch = tuple[Tensor, Tensor]
Audit = Callable[..., dict[str, Evidence]]

PARAMETERS = {
    "prior_mu": 0.0,
    "prior_sigma": 1.0,
    "posterior_mu_init": 0.0,
    "posterior_rho_init": -3.0,
    "moped_enable": True,
    "moped_delta": 0.1,
}


def _says(evidence: Evidence, verdict: Verdict, *words: str) -> None:
    assert evidence.verdict is verdict, evidence.explain()
    assert not [word for word in words if plain(word) not in plain(evidence.explain())], evidence.explain()


# --- What the library does ---------------------------------------------------------------------------------------


def test_moped_leaves_the_prior_at_zero(teacher: nn.Module, bare: Bare, audit: Audit) -> None:
    """A4: the README promises the prior at the weights; the evidence has to say where it is."""
    found = audit(bare(teacher, "Reparameterization"), only=("kl.present",))["kl.present"]
    assert found["prior"] == "N(0, 1^2)"


def test_kl_names_the_convention_found(teacher: nn.Module, bare: Bare, audit: Audit) -> None:
    """A11: a mean over each tensor is no ELBO's KL, and the factor between them is what a reader must know."""
    found = audit(bare(teacher, "Reparameterization"), only=("kl.present",))["kl.present"]
    total, averaged = found["closed form, sum"], found["closed form, mean per tensor"]
    assert isinstance(total, float)
    assert isinstance(averaged, float)
    _says(found, Verdict.PASS, "averages the KL over each tensor", f"{total / averaged:.3g} times smaller")
    assert found["convention"] == "mean per tensor"


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


@pytest.mark.fault("A12", "kl.present", "mean.equals_teacher")
def test_lstm_counts_its_kl_twice_and_drops_its_weights(estimator: str, bare: Bare, audit: Audit) -> None:
    """A12: the LSTM and its two parts all have a kl_loss; and MOPED does not reach them."""
    teacher = Recurrent().eval()
    model = bare(teacher, estimator)
    found = audit(model, teacher=teacher, images=torch.randn(3, 5, 4))
    _says(found["kl.present"], Verdict.FAIL, "2 layers are counted twice", "innermost")
    _says(found["mean.equals_teacher"], Verdict.FAIL, "lstm")
    assert {found[id].verdict for id in ("layers.replaced", "noise.varies", "noise.source")} == {Verdict.PASS}


@pytest.mark.fault("A13", "kl.present", "layers.replaced")
def test_model_without_a_layer_has_no_kl(audit: Audit) -> None:
    """A13: get_kl_loss gives None where there was nothing to convert, and a loss adds it as if it were 0."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)).eval()
    dnn_to_bnn(model, {**PARAMETERS, "type": "Reparameterization"})
    found = audit(model, images=torch.randn(4, 3, 2, 2))
    _says(found["kl.present"], Verdict.FAIL, "no KL term")
    _says(found["layers.replaced"], Verdict.FAIL, "no Bayesian layer at all")


@pytest.mark.fault("A14", "layers.replaced", "kl.present")
@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(3, 3, 3)], ids=lambda layer: type(layer).__name__)
def test_single_layer_is_left_as_it_is(layer: nn.Module, estimator: str, bare: Bare, audit: Audit) -> None:
    """A14: the library converts children only, and a single layer has none."""
    images = torch.randn(4, 4) if isinstance(layer, nn.Linear) else torch.randn(4, 3, 4, 4)
    found = audit(bare(layer, estimator), teacher=layer, images=images)
    _says(found["layers.replaced"], Verdict.FAIL, "0 of 1", "(the model itself)", type(layer).__name__)
    _says(found["kl.present"], Verdict.FAIL, "no KL term")


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x)[0]
        return out


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cell(x[:, 0])[0]
        return out[:, None]


@pytest.mark.fault("A16", "layers.replaced")
@pytest.mark.fault("A20", "layers.replaced")
@pytest.mark.parametrize(
    ("middle", "still"),
    [
        (Attentive, ("attention.out_proj", "NonDynamicallyQuantizableLinear")),
        (Cell, ()),
        (lambda: nn.LazyLinear(4), ("middle", "Linear")),
        (lambda: nn.Conv1d(5, 5, 1), ("middle", "Conv1d")),
    ],
    ids=["MultiheadAttention", "LSTMCell", "Lazy", "Conv1d"],
)
def test_exception_midway_leaves_half_a_model(
    middle: Callable[[], nn.Module], still: tuple[str, ...], estimator: str, audit: Audit
) -> None:
    """A16, A20: whoever catches the library's exception goes on with a model of which the rest is deterministic."""
    teacher = nn.Sequential()
    teacher.add_module("first", nn.Linear(4, 4))
    teacher.add_module("middle", middle())
    teacher.add_module("last", nn.Linear(4, 3))
    images = torch.randn(2, 5, 4)
    model = copy.deepcopy(teacher).eval()
    with pytest.raises((AttributeError, TypeError)):
        dnn_to_bnn(model, {**PARAMETERS, "type": estimator})
    teacher(images)
    found = audit(model, teacher=teacher.eval(), images=images, only=("layers.replaced",))["layers.replaced"]
    _says(found, Verdict.FAIL, "last (Linear)", "is still nn.", *still)
    assert found["Bayesian layers"] == 1


class Upsampling(nn.Module):
    """Without a head an odd shape comes out at the end; with one it does not fit on the way."""

    def __init__(self, *, head: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1, output_padding=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.up(x))
        return out


@pytest.mark.fault("A19", "mean.equals_teacher")
def test_lost_output_padding_changes_the_shape(estimator: str, bare: Bare, audit: Audit) -> None:
    """A19: 8x8 becomes 7x7, which a network without a fixed head carries to its output."""
    teacher = Upsampling(head=False).eval()
    found = audit(bare(teacher, estimator), teacher=teacher, images=torch.randn(2, 3, 4, 4))
    _says(found["mean.equals_teacher"], Verdict.FAIL, "[2, 3, 7, 7]", "[2, 3, 8, 8]", "up", "output padding")
    assert {found[id].verdict for id in ("layers.replaced", "noise.varies", "kl.present")} == {Verdict.PASS}


@pytest.mark.fault("A19", "mean.equals_teacher")
def test_lost_output_padding_raises(estimator: str, bare: Bare, audit: Audit) -> None:
    """A19: with a fixed head the forward raises, which is the model's failure and not the check's."""
    teacher = Upsampling(head=True).eval()
    found = audit(bare(teacher, estimator), teacher=teacher, images=torch.randn(2, 3, 4, 4))
    _says(found["mean.equals_teacher"], Verdict.FAIL, "raised", "head.1", "output_padding")
    for id in ("noise.varies", "noise.source", "teacher.agreement"):
        _says(found[id], Verdict.FAIL, "the model's own forward raised", "shape")


@pytest.mark.fault("A21", "mean.equals_teacher", "noise.varies", "noise.source", "kl.loss", "teacher.agreement")
def test_float64_network_gets_float32_layers(
    trained: Mapping[str, nn.Module], estimator: str, batch: Batch, bare: Bare, audit: Audit
) -> None:
    """A21: BatchNorm stays float64, and the first of them cannot take what the float32 convolution gives."""
    teacher = copy.deepcopy(trained["residual"]).double()
    found = audit(
        bare(teacher, estimator),
        teacher=teacher,
        images=batch[0],
        labels=batch[1],
        loss=lambda model, data: functional.cross_entropy(model(data[0]), data[1]) + get_kl_loss(model),
    )
    _says(found["mean.equals_teacher"], Verdict.FAIL, "raised", "norm", "float64")
    for id in ("noise.varies", "noise.source", "kl.loss", "teacher.agreement"):
        _says(found[id], Verdict.FAIL, "the model's own forward raised", "dtype")
    assert {found[id].verdict for id in ("layers.replaced", "kl.present")} == {Verdict.PASS}


@pytest.mark.fault("A31", "kl.present", "kl.loss")
@pytest.mark.parametrize("channels", [(4, 6), (6, 4)], ids=str)
def test_flipout_of_transposed_convolution_has_no_kl(channels: tuple[int, int], bare: Bare, audit: Audit) -> None:
    """A31: ConvTranspose2dFlipout's prior has in and out channels swapped, so its own KL raises."""
    teacher = nn.Sequential(nn.ConvTranspose2d(*channels, 3), nn.Flatten(), nn.Linear(channels[1] * 36, 3)).eval()
    model = bare(teacher, "Flipout")
    found = audit(
        model,
        teacher=teacher,
        images=torch.randn(2, channels[0], 4, 4),
        loss=lambda model, _: get_kl_loss(model),
    )
    _says(found["kl.present"], Verdict.FAIL, "0 (ConvTranspose2d", "kl_loss", "raised")
    _says(found["kl.loss"], Verdict.FAIL, "kl_loss", "raised")
    assert {found[id].verdict for id in ("layers.replaced", "mean.equals_teacher", "noise.source")} == {Verdict.PASS}


@pytest.mark.fault("A32", "mean.equals_teacher", "noise.varies")
def test_flipout_of_transposed_convolution_in_three_dimensions_raises(bare: Bare, audit: Audit) -> None:
    """A32: ConvTranspose3dFlipout with a bias reads a KL that it did not compute."""
    teacher = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.ConvTranspose3d(1, 2, 3), nn.Flatten()).eval()
    found = audit(bare(teacher, "Flipout"), teacher=teacher, images=torch.randn(2, 3, 4, 4))
    _says(found["mean.equals_teacher"], Verdict.FAIL, "raised", "1 (ConvTranspose3dFlipout)")
    _says(found["noise.varies"], Verdict.FAIL, "the model's own forward raised")


class WithKl(nn.Module):
    """The form of the library's own models: ``(out, kl)``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(x), get_kl_loss(self.network)


def test_model_that_returns_its_kl_passes(teacher: nn.Module, estimator: str, batch: Batch, audit: Audit) -> None:
    """A27: the pair is a legal form, and all claims are about its first half."""
    images, labels = batch

    def loss(model: nn.Module, data: Batch) -> Tensor:
        out, kl = model(data[0])
        total: Tensor = functional.cross_entropy(out, data[1]) + kl / 10
        return total

    inner = nn.Sequential()
    inner.add_module("network", teacher)
    model = WithKl(convert(teacher, type=estimator))  # type: ignore[arg-type]
    found = audit(model, teacher=inner.eval(), images=images, labels=labels, loss=loss, num_batches=10)
    assert [e.explain() for e in found.values() if e.verdict is not Verdict.PASS] == []


class Unpacking(nn.Module):
    """Made of the library's layers by hand: they return ``(out, kl)``, and so does this."""

    def __init__(self) -> None:
        super().__init__()
        self.first = LinearReparameterization(12, 8)
        self.last = LinearReparameterization(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, first = self.first(x.flatten(1))
        out, last = self.last(functional.relu(out))
        return out, first + last


@pytest.mark.parametrize("make", [Unpacking, resnet20, resnet20_flipout], ids=["by hand", "resnet20", "flipout"])
def test_models_of_the_library_pass(make: Callable[[], nn.Module], audit: Audit) -> None:
    """A27: networks that were never deterministic have no teacher, and every claim about them holds."""
    model = make().eval()
    images = torch.randn(4, 3, 2, 2) if make is Unpacking else torch.randn(2, 3, 32, 32)

    def loss(model: nn.Module, data: Batch) -> Tensor:
        out, kl = model(data[0])
        total: Tensor = out.square().mean() + kl / 5
        return total

    # Untrained, they say little, and their noise is above it: the band of a network that learned is not theirs.
    found = audit(model, images=images, loss=loss, num_batches=5, band=(1e-3, 10.0))
    judged = {id: e for id, e in found.items() if e.verdict is not Verdict.NOT_APPLICABLE}
    assert judged.keys() == found.keys() - {"mean.equals_teacher", "teacher.agreement", "teacher.tensors"}
    assert [e.explain() for e in judged.values() if e.verdict is not Verdict.PASS] == []


def test_our_conversion_refuses_what_the_library_would_break(estimator: str) -> None:
    """Plan first: the module is named, and the network is as it was."""
    large = nn.Linear(1, 1)
    with torch.no_grad():
        large.weight.fill_(900)
    tied = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    refused: list[tuple[nn.Module, str]] = [
        (nn.Sequential(large), "0 (Linear)"),
        (nn.Sequential(nn.Linear(3, 3).half()), "float16"),
        (Recurrent(), "lstm"),
        (Cell(), "cell"),
        (tied, "0.weight and 1.weight"),
    ]
    for network, words in refused:
        before = list(network.modules()), [(id(p), p._version) for p in network.parameters()]
        with pytest.raises(ConversionError) as raised:
            convert(network, type=estimator)  # type: ignore[arg-type]
        assert words in str(raised.value)
        assert before == (list(network.modules()), [(id(p), p._version) for p in network.parameters()])


# --- What users do -----------------------------------------------------------------------------------------------


@pytest.mark.fault("B1", "teacher.agreement")
@pytest.mark.parametrize("delta", [3.0, 20.0])
def test_posterior_that_drowns_the_predictions(
    delta: float, teacher: nn.Module, estimator: str, batch: Batch, bare: Bare, audit: Audit
) -> None:
    """B1: where the mean prediction is all but uniform no class is certain: no pass, nor more passes asked for."""
    model = bare(teacher, estimator, delta=delta)
    found = audit(model, teacher=teacher, images=batch[0], labels=batch[1], only=("teacher.agreement",))
    evidence = found["teacher.agreement"]
    single = evidence["agreement of a single pass"]
    assert isinstance(single, float)
    assert single < 0.5
    assert evidence.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)
    assert "moped_delta" in evidence.remedy, evidence.explain()


@pytest.mark.fault("B15", "teacher.agreement")
def test_training_toward_another_teacher(
    teacher: nn.Module, estimator: str, batch: Batch, bare: Bare, audit: Audit
) -> None:
    """B15: a training that went well by its own loss, toward a head that names the wrong classes."""
    wrong = copy.deepcopy(teacher)
    head = wrong.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(head.weight.roll(1, 0))
        head.bias.copy_(head.bias.roll(1, 0))
    model = bare(teacher, estimator)
    finetune(model, wrong, batch[0], steps=150, learning_rate=2e-2, decay=1.0, kl_weight=1e-6)
    found = audit(model, teacher=teacher, images=batch[0], labels=batch[1])
    _says(found["teacher.agreement"], Verdict.FAIL, "certainly not", "same order of classes")
    assert {found[id].verdict for id in ("layers.replaced", "noise.source", "kl.present")} == {Verdict.PASS}


def test_every_assert_raises_with_the_explanation(teacher: nn.Module, batch: Batch, bare: Bare) -> None:
    """The form that users call: AssertionError, with the text of the evidence."""
    images = batch[0]
    unconverted, deterministic = copy.deepcopy(teacher), torch.nn.Identity()
    rolled = bare(teacher, "Reparameterization")
    with torch.no_grad():
        for parameter in rolled.get_submodule("head").parameters():
            parameter.copy_(parameter.roll(1, 0))
    calls: list[tuple[Callable[..., Evidence], nn.Module, dict[str, Any]]] = [
        (checks.assert_layers_replaced, unconverted, {}),
        (checks.assert_mean_equals_teacher, rolled, {"teacher": teacher, "images": images}),
        (checks.assert_noise_varies, unconverted, {"images": images}),
        (checks.assert_noise_source, unconverted, {"images": images}),
        (checks.assert_kl_present, deterministic, {}),
        (checks.assert_kl_loss, rolled, {"images": images, "loss": lambda model, data: model(data[0]).sum()}),
        (checks.assert_teacher_agreement, rolled, {"teacher": teacher, "images": images, "labels": batch[1]}),
    ]
    for check, model, given in calls:
        with pytest.raises(AssertionError, match=r"fail for .*\n  claim: .*(\n.*)*\n  fix: "):
            check(model, **given)


@pytest.mark.fault("B8", "kl.present")
def test_collapsed_sigma_in_one_layer_is_no_silence(
    teacher: nn.Module, estimator: str, batch: Batch, bare: Bare, audit: Audit
) -> None:
    """B8 in one place: the outputs still vary, so only the KL term shows it, and shows where."""
    model = bare(teacher, estimator)
    layer = next(layer for layer in bayesian_layers(model) if layer.path == "block.conv2")
    with torch.no_grad():
        layer.tensors[0].rho.fill_(-200)
    found = audit(model, teacher=teacher, images=batch[0])
    _says(found["kl.present"], Verdict.FAIL, "block.conv2", "sigma is 0 in 576 of 576")
    others = {
        id: e.verdict for id, e in found.items() if id not in ("kl.present", "kl.loss", "gradient.samples", "loss.data")
    }
    assert set(others.values()) == {Verdict.PASS}, others


@pytest.mark.parametrize(
    "name", ["itself", "weight norm", "attention", "tied", "circular", "upsampling", "one-dimensional"]
)
def test_our_conversion_mends_what_the_library_would_break(name: str, estimator: str, audit: Audit) -> None:
    """A14 to A20: the same networks that the library breaks, and every claim that can be judged holds."""
    layer = nn.Linear(6, 6)
    networks: dict[str, tuple[nn.Module, Tensor]] = {
        "itself": (nn.Linear(6, 3), torch.randn(3, 6)),
        "weight norm": (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))), torch.randn(3, 6)),
        "attention": (Attentive(), torch.randn(3, 5, 4)),
        "tied": (nn.Sequential(layer, nn.ReLU(), layer), torch.randn(3, 6)),
        "circular": (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")), torch.randn(3, 3, 8, 8)),
        "upsampling": (Upsampling(head=True), torch.randn(3, 3, 4, 4)),
        "one-dimensional": (nn.Sequential(nn.Conv1d(3, 3, 3)), torch.randn(3, 3, 8)),
    }
    network, images = networks[name]
    network.eval()
    with torch.no_grad():  # biases of attention start at exactly 0, where sigma is dead (A6)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = audit(
        convert(network, type=estimator),  # type: ignore[arg-type]
        teacher=network,
        images=images,
        only=("layers.replaced", "mean.equals_teacher", "noise.varies", "noise.source", "kl.present"),
    )
    assert [e.explain() for e in found.values() if e.verdict is not Verdict.PASS] == []


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["module", "_orig_mod"])
def test_wrapped_network_is_judged(wrap: Callable[[nn.Module], nn.Module], request: pytest.FixtureRequest) -> None:
    """The teacher's paths are nowhere in the wrapper; the layers that it holds are found, and another's are not."""
    teacher = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    child = request.node.callspec.id
    wrapped = checks.measure_layers_replaced(wrap(convert(teacher)), teacher=teacher)
    _says(wrapped, Verdict.PASS, "2 of 2 convolution and linear layers", f"the teacher's layers are at {child}")
    left = checks.measure_layers_replaced(wrap(copy.deepcopy(teacher)), teacher=teacher)
    _says(left, Verdict.FAIL, "0 of 2", "still nn.Linear", "pytest_bnn.convert(model)")
    other = checks.measure_layers_replaced(wrap(convert(nn.Sequential(nn.Linear(2, 2)))), teacher=teacher)
    _says(other, Verdict.FAIL, "0 of 2", "is not in the model", "give the teacher that the model was converted from")
