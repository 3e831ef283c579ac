"""Healthy models outside of what most models are: nobody may accuse them."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tests.cases.case import Input, case
from tests.cases.networks import BATCHES, Reader, bare, elbo, held_out, noise, reader, seeded, tuned, with_kl

KINDS = ("weight", "bias")


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "mu_weight")]


def _converted(model: nn.Module, **given: Any) -> Input:
    """A conversion of the reader, changed or not, with all that belongs to it."""
    return Input(model=model.eval(), **{"teacher": reader(), "data": held_out, "loss": elbo, **given})


class Shares(Reader):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images).softmax(1)


def _likelihood(model: nn.Module, batch: Any) -> Tensor:
    shares = model(batch[0]).float().clamp_min(1e-12)
    value: Tensor = functional.nll_loss(shares.log(), batch[1]) + get_kl_loss(model) / BATCHES
    return value


@case("shares as outputs", push=True)
def confident_shares() -> Input:
    """In single precision most of them are 1 to the last bit in every pass."""
    return Input(model=bare(reader(Shares)).eval(), teacher=reader(Shares), data=held_out, loss=_likelihood)


@case("shares as outputs")
def shares_in_half_precision() -> Input:
    model, teacher = bare(reader(Shares)).bfloat16().eval(), reader(Shares).bfloat16()
    return Input(model=model, teacher=teacher, data=held_out, loss=_likelihood)


@case("shares as outputs")
def shares_of_two_classes_in_double_precision() -> Input:
    teacher = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2), nn.Softmax(1))).double()
    with torch.no_grad():
        teacher[2].get_parameter("weight").mul_(20)
    return Input(model=bare(teacher), teacher=teacher, data=lambda: 3 * noise(64, 6).double())


def _tuned_but_for(*frozen: str) -> nn.Module:
    model = bare(reader())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    tuned(model, steps=60, rate=5e-4)
    return model.requires_grad_(True)


@case("only a part was trained", push=True)
def head_and_sigmas_fine_tuned() -> Input:
    return _converted(_tuned_but_for("first.mu", "second.mu"))


@case("only a part was trained")
def biases_and_sigmas_fine_tuned() -> Input:
    return _converted(_tuned_but_for("first.mu_weight", "second.mu_weight", "head.mu_weight"))


@case("only a part was trained")
def first_layer_fine_tuned() -> Input:
    return _converted(_tuned_but_for("second", "head"))


@case("a loss that knows the mode", push=True)
def kl_term_in_train_mode_only() -> Input:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        value = functional.cross_entropy(model(batch[0]), batch[1])
        return value + get_kl_loss(model) / BATCHES if model.training else value

    return _converted(bare(reader()).train(), loss=loss)


@case("a loss that knows the mode")
def kl_term_where_gradients_are_on() -> Input:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        value = functional.cross_entropy(model(batch[0]), batch[1])
        return value + get_kl_loss(model) / BATCHES if torch.is_grad_enabled() else value

    return _converted(bare(reader()), loss=loss)


@case("a loss that knows the mode")
def labels_smoothed_in_train_mode() -> Input:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        smoothing = 0.1 if model.training else 0.0
        data_term = functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing)
        value: Tensor = data_term + get_kl_loss(model) / BATCHES
        return value

    return _converted(bare(reader()).train(), loss=loss)


@case("priors of their own", push=True)
def prior_is_learned() -> Input:
    """Empirical Bayes: mean and sigma of the prior are parameters of the layer."""
    model = bare(reader())
    for layer in _layers(model):
        for name in (f"prior_{kind}_{what}" for kind in KINDS for what in ("mu", "sigma")):
            layer.register_parameter(name, nn.Parameter(layer._buffers.pop(name).clone()))
    return _converted(model)


@case("priors of their own")
def prior_is_the_posterior_before() -> Input:
    """Continual learning: at the start of a task the KL is exactly 0."""
    model = bare(reader())
    for layer in _layers(model):
        for kind in KINDS:
            getattr(layer, f"prior_{kind}_mu").copy_(getattr(layer, f"mu_{kind}").detach())
            getattr(layer, f"prior_{kind}_sigma").copy_(functional.softplus(getattr(layer, f"rho_{kind}").detach()))
    return _converted(model)


@case("priors of their own")
def prior_around_the_teacher() -> Input:
    model = bare(reader())
    for layer in _layers(model):
        for kind in KINDS:
            getattr(layer, f"prior_{kind}_mu").copy_(getattr(layer, f"mu_{kind}").detach())
            getattr(layer, f"prior_{kind}_sigma").fill_(0.1)
    return _converted(model)


@case("priors of their own")
def prior_of_each_row() -> Input:
    model = bare(reader())
    for layer in _layers(model):
        rows = torch.linspace(0.2, 2.0, len(layer.mu_weight))
        layer.prior_weight_sigma.copy_(rows[:, None].expand_as(layer.prior_weight_sigma))
    return _converted(model)


class Within(nn.Module):
    """Keeps values in bounds."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, values: Tensor) -> Tensor:
        return values.clamp(self.low, self.high)

    def right_inverse(self, values: Tensor) -> Tensor:
        return values


class OneForEachRow(nn.Module):
    """One number for all of a row."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, rows: Tensor) -> Tensor:
        return rows.expand(-1, self.columns)

    def right_inverse(self, values: Tensor) -> Tensor:
        return values.mean(1, keepdim=True)


@case("parametrized posteriors", push=True)
def rho_kept_in_bounds() -> Input:
    model = bare(reader())
    for layer in _layers(model):
        for kind in KINDS:
            parametrize.register_parametrization(layer, f"rho_{kind}", Within(-8, 1))
    return _converted(model)


@case("parametrized posteriors")
def mu_kept_in_bounds() -> Input:
    model = bare(reader())
    for layer in _layers(model):
        parametrize.register_parametrization(layer, "mu_weight", Within(-10, 10))
    return _converted(model)


@case("parametrized posteriors")
def one_rho_for_each_row() -> Input:
    model = bare(reader())
    for layer in _layers(model):
        columns = layer.rho_weight.shape[1]
        parametrize.register_parametrization(layer, "rho_weight", OneForEachRow(columns), unsafe=True)
    return _converted(model)


class Padded(Reader):
    """Classes up to a multiple of 16, of which six can never be."""

    never = -1e9

    def forward(self, images: Tensor) -> Any:
        scores = super().forward(images)
        return torch.cat([scores, scores.new_full((len(scores), 6), self.never)], 1)


class Hidden(Padded):
    never = -1e4


class WithZeros(Padded):
    never = 0.0


@case("outputs that never vary", push=True)
def classes_masked_by_a_large_number() -> Input:
    return _converted(bare(reader(Padded)), teacher=reader(Padded))


@case("outputs that never vary")
def classes_masked_by_a_smaller_number() -> Input:
    return _converted(bare(reader(Hidden)), teacher=reader(Hidden))


@case("outputs that never vary")
def classes_that_are_always_zero() -> Input:
    return _converted(bare(reader(WithZeros)), teacher=reader(WithZeros))


@case("inputs that nothing reaches", push=True)
def blank_image_without_biases() -> Input:
    """Its output is 0 in each pass, and rightly."""

    def data() -> tuple[Tensor, Tensor]:
        images, labels = held_out()
        images[17] = 0
        return images, labels

    teacher = reader(bias=False)
    return _converted(bare(teacher), teacher=teacher, data=data)


@case("inputs that nothing reaches")
def several_blank_images_without_biases() -> Input:
    def data() -> tuple[Tensor, Tensor]:
        images, labels = held_out()
        images[:5] = 0
        return images, labels

    teacher = reader(bias=False)
    return _converted(bare(teacher), teacher=teacher, data=data)


@case("inputs that nothing reaches")
def blank_images_for_a_convolution() -> Input:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10, bias=False))

    def data() -> Tensor:
        images, _ = held_out(24)
        images[3:5] = 0
        return images

    return Input(model=bare(seeded(network)).eval(), data=data)


Parts = namedtuple("Parts", "features logits")


class Named(Reader):
    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        return Parts(features, self.head(features))


class InADictionary(Reader):
    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        return {"features": features, "logits": self.head(features)}


class InAPair(Reader):
    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        return features, self.head(features)


@case("several outputs", push=True)
def logits_second_in_a_named_tuple() -> Input:
    loss = with_kl(lambda model, batch: functional.cross_entropy(model(batch[0]).logits, batch[1]), 1 / BATCHES)
    return _converted(bare(reader(Named)), teacher=reader(Named), loss=loss)


@case("several outputs")
def logits_second_in_a_dictionary() -> Input:
    loss = with_kl(lambda model, batch: functional.cross_entropy(model(batch[0])["logits"], batch[1]), 1 / BATCHES)
    return _converted(bare(reader(InADictionary)), teacher=reader(InADictionary), loss=loss)


@case("several outputs")
def logits_second_in_a_pair_without_a_loss() -> Input:
    """Nothing says which of the two is the prediction: no claim about it can be judged."""
    return _converted(bare(reader(InAPair)), teacher=reader(InAPair), loss=None)


class Unsure(Reader):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images) * 0.002


class NearlySilent(Reader):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images) * 1e-6


@case("a teacher that is unsure", push=True)
def margins_below_what_passes_can_decide() -> Input:
    return _converted(bare(reader(Unsure)), teacher=reader(Unsure))


@case("a teacher that is unsure")
def margins_of_nothing() -> Input:
    return _converted(bare(reader(NearlySilent)), teacher=reader(NearlySilent))
