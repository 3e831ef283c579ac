"""``loss.data``: whether sigma sees the data where the loss trains it; noise that a loss governs is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert
from pytest_bnn.audit.run import audit_model
from pytest_bnn.checks import measure_estimator_flipout, measure_loss_data
from pytest_bnn.checks.choices import choosing, from_texts
from pytest_bnn.libraries.posterior import bayesian_layers, zero_noise
from pytest_bnn.records.evidence import Evidence, Verdict

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
ROWS, CLASSES, M = 16, 4, 30
ESTIMATORS = ("Reparameterization", "Flipout")


def converted(how: Any, *, outputs: int = CLASSES) -> Any:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs)).eval()
    return convert(network, type=how, moped_delta=0.1)


def judged(model: nn.Module, loss: Loss, labels: Tensor | None = None) -> Evidence:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(ROWS, 6, generator=generator)
    classes = torch.randint(CLASSES, (ROWS,), generator=generator)
    return measure_loss_data(model, images=images, labels=classes if labels is None else labels, loss=loss)


def elbo(model: nn.Module, batch: Batch) -> Tensor:
    value: Tensor = functional.cross_entropy(model(batch[0]), batch[1]) + get_kl_loss(model) / M
    return value


def with_own_draw(model: nn.Module, draw: Callable[[Any, Tensor], Tensor]) -> None:
    """Let each layer add what ``draw`` makes of it and its sigma to mu, and use the sum."""
    for layer in bayesian_layers(model):
        kind: Any = type(layer.module)

        def forward(self: Any, x: Tensor) -> Tensor:
            noise = draw(self, functional.softplus(self.rho_weight))
            return functional.linear(x, self.mu_weight + noise, self.mu_bias)

        layer.module.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def detached_in_training(module: Any, sigma: Tensor) -> Tensor:
    return (sigma.detach() if module.training else sigma) * torch.randn_like(sigma)


@pytest.mark.fault("B26", "loss.data")
def test_noise_that_is_cut_from_rho_in_train_mode_is_found() -> None:
    """B26: the loss and the layers are right in eval mode, in which a test would run them."""
    model = converted("Reparameterization")
    with_own_draw(model, detached_in_training)
    found = judged(model, elbo)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "In train mode 2 of 2 layers draw weights that no gradient to rho comes from, `0` first" in found.headline


def by_the_layers(model: nn.Module, batch: Batch) -> Tensor:
    """Let the layers compute with their means for a while."""
    modules: list[Any] = [layer.module for layer in bayesian_layers(model)]
    for module in modules:
        module.forward = lambda x, m=module: functional.linear(x, m.mu_weight, m.mu_bias)
    value = elbo(model, batch)
    for module in modules:
        del module.forward
    return value


def by_silence(model: nn.Module, batch: Batch) -> Tensor:
    with zero_noise(model):
        return elbo(model, batch)


@pytest.mark.parametrize(("how", "loss"), [(ESTIMATORS[0], by_the_layers), *((how, by_silence) for how in ESTIMATORS)])
@pytest.mark.fault("B26", "loss.data")
def test_a_loss_at_the_mean_is_found(how: str, loss: Loss) -> None:
    """B26: the model predicts with noise, and its loss never saw any."""
    found = judged(converted(how), loss)
    assert found.verdict is Verdict.WARN, found.explain()
    assert "In the loss 2 of 2 layers compute with mu, in eval and in train mode" in found.headline


def scaled_noise(model: nn.Module, scale: Callable[[], float]) -> None:
    with_own_draw(model, lambda _, sigma: scale() * sigma * torch.randn_like(sigma))


def in_training_only(model: Any, batch: Batch) -> Tensor:
    """Validate at the mean, train with noise."""
    model.scale = float(model.training)
    value = elbo(model, batch)
    model.scale = 1.0
    return value


def annealed(model: Any, batch: Batch) -> Tensor:
    """Let noise come in step by step: none in the first one, which is the one that an audit sees again and again."""
    model.scale, model.step = model.step / 10, model.step + 1
    value = elbo(model, batch)
    model.scale = 1.0
    return value


def of_the_means(model: Any, batch: Batch) -> Tensor:
    """Train the means first; sigma has no term at all."""
    model.scale = 0.0
    value = functional.cross_entropy(model(batch[0]), batch[1])
    model.scale = 1.0
    return value


@pytest.mark.parametrize(
    ("loss", "verdict"),
    [(elbo, Verdict.PASS), (in_training_only, Verdict.PASS), (of_the_means, Verdict.PASS), (annealed, Verdict.WARN)],
)
def test_noise_that_the_loss_governs_on_purpose_does_not_fail(loss: Loss, verdict: Verdict) -> None:
    model = converted("Reparameterization")
    model.scale, model.step = 1.0, 0
    scaled_noise(model, lambda: model.scale)
    found = judged(model, loss)
    assert found.verdict is verdict, found.explain()
    if verdict is Verdict.WARN:
        assert "the first step of a schedule" in found.explain()


def tempered(module: Any, sigma: Tensor) -> Tensor:
    noise: Tensor = (0.5 if module.training else 1.0) * sigma * torch.randn_like(sigma)
    return noise


def in_pairs(module: Any, sigma: Tensor) -> Tensor:
    """Antithetic in training: each other draw is the one before, with the other sign."""
    if not module.training:
        return sigma * torch.randn_like(sigma)
    noise: Tensor = torch.randn_like(sigma) if getattr(module, "noise", None) is None else -module.noise
    module.noise = noise
    return sigma * noise


def held(module: Any, sigma: Tensor) -> Tensor:
    """One draw for several passes in training."""
    if not module.training:
        return sigma * torch.randn_like(sigma)
    noise: Tensor = torch.randn_like(sigma) if getattr(module, "noise", None) is None else module.noise
    module.noise = noise
    return sigma * noise


def of_passes(model: nn.Module, batch: Batch) -> Tensor:
    """Several passes where it trains, one where it only reports."""
    passes = [functional.cross_entropy(model(batch[0]), batch[1]) for _ in range(4 if model.training else 1)]
    value: Tensor = torch.stack(passes).mean() + get_kl_loss(model) / M
    return value


def cold(model: nn.Module, batch: Batch) -> Tensor:
    """The temperature of the posterior in the loss: a tenth of the KL where it trains."""
    share = 0.1 if model.training else 1.0
    value: Tensor = functional.cross_entropy(model(batch[0]), batch[1]) + share * get_kl_loss(model) / M
    return value


def between(*modules: nn.Module) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), *modules, nn.ReLU(), nn.Linear(12, CLASSES)).eval()


@pytest.mark.parametrize("how", ESTIMATORS)
@pytest.mark.parametrize(
    ("loss", "inside"), [(cold, "nothing"), (elbo, "dropout"), (elbo, "batch norm"), (of_passes, "both")]
)
def test_other_noise_where_it_trains_is_healthy(how: Any, loss: Loss, inside: str) -> None:
    """Dropout and a batch's own statistics beside the draws, a tempered KL, several passes averaged."""
    drop, norm = nn.Dropout(0.3), nn.BatchNorm1d(12)
    modules: dict[str, tuple[nn.Module, ...]] = {"dropout": (drop,), "batch norm": (norm,), "both": (norm, drop)}
    found = judged(convert(between(*modules.get(inside, ())), type=how, moped_delta=0.1), loss)
    assert found.verdict is Verdict.PASS, found.explain()
    assert "in eval and train mode" in found.headline


@pytest.mark.parametrize(("draw", "loss"), [(tempered, elbo), (in_pairs, of_passes), (held, of_passes)])
def test_draws_of_another_kind_where_it_trains_are_healthy(draw: Callable[[Any, Tensor], Tensor], loss: Loss) -> None:
    """Colder noise, antithetic pairs, a draw that is held: each is computed from rho in the graph."""
    model = converted("Reparameterization")
    with_own_draw(model, draw)
    found = judged(model, loss)
    assert found.verdict is Verdict.PASS, found.explain()


def without_draws_in_training(module: Any, sigma: Tensor) -> Tensor:
    return torch.zeros_like(sigma) if module.training else sigma * torch.randn_like(sigma)


@pytest.mark.fault("B26", "loss.data")
def test_a_warm_up_that_is_declared_is_accused_of_nothing() -> None:
    """Nothing tells it from noise that was forgotten: the finding says how to say so, and then nothing is said."""
    model = converted("Reparameterization")
    with_own_draw(model, without_draws_in_training)
    found = judged(model, elbo)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "where this is a warm-up of the means, say so: --set loss.data.severity=off" in found.remedy
    data = torch.randn(ROWS, 6), torch.arange(ROWS) % CLASSES
    with choosing(from_texts(["loss.data.severity=off"], "--set")):
        audit = audit_model(model, data=data, loss=elbo, checks=["loss.data", "gradient.samples"])
    assert [e.id for e in audit.checks if e.verdict in (Verdict.FAIL, Verdict.WARN)] == []


def test_a_variance_that_is_known_without_a_draw_is_left_alone() -> None:
    """Of a linear model the expected squared error is known: that of the mean, and the variance of the output."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 1, bias=False)).eval()
    model = convert(model, moped_delta=0.1)
    model.scale = 1.0
    scaled_noise(model, lambda: model.scale)
    model[0].mu_bias = None

    def expected(m: Any, batch: Batch) -> Tensor:
        m.scale = 0.0
        off = functional.mse_loss(m(batch[0]), batch[1])
        m.scale = 1.0
        variance = functional.linear(batch[0].square(), functional.softplus(m[0].rho_weight).square()).mean()
        value: Tensor = off + variance + get_kl_loss(m) / M
        return value

    found = judged(model, expected, labels=torch.linspace(-1, 1, ROWS)[:, None])
    assert found.verdict is not Verdict.FAIL, found.explain()


def test_a_pass_that_only_reports_is_left_alone() -> None:
    """Passes without gradient beside the one that trains."""
    model = converted("Reparameterization")

    def with_a_report(m: nn.Module, batch: Batch) -> Tensor:
        value = elbo(m, batch)
        if m.training:
            with torch.no_grad():
                m(batch[0])
        return value

    found = judged(model, with_a_report)
    assert found.verdict is Verdict.PASS, found.explain()


@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 2)])
@pytest.mark.fault("B24", "loss.data")
def test_one_row_for_all_labels_is_found(rows: slice) -> None:
    """B24: an index that was left in the loss, so that one example gets the labels of all."""
    found = judged(converted("Reparameterization"), lambda m, b: elbo(m, (b[0][rows].expand_as(b[0]), b[1])))
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "labels of other rows" in found.headline


@pytest.mark.parametrize("closed", ["without gradient", "detached", "one of two"])
def test_a_flipout_layer_without_a_gradient_is_not_judged(closed: str) -> None:
    """Its spread is told from the gradient of its output: where that is cut off, ``loss.data`` says so."""
    model = converted("Flipout")
    for layer in bayesian_layers(model)[: 1 if closed == "one of two" else 2]:
        kind: Any = type(layer.module)

        def forward(self: Any, x: Tensor, kind: Any = kind) -> Tensor:
            if closed == "detached":
                out: Tensor = kind.forward(self, x).detach()
                return out
            with torch.no_grad():
                return kind.forward(self, x)  # type: ignore[no-any-return]

        layer.module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    found = measure_estimator_flipout(model, images=torch.randn(4, 6))
    assert found.verdict is (Verdict.PASS if closed == "one of two" else Verdict.NOT_APPLICABLE), found.explain()
    assert "see loss.data" in found.explain()
