"""Losses and models as people write them: what is right is not accused, what is wrong is, by its own cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bayesian_torch.layers import LinearReparameterization, LSTMReparameterization
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from pytest_bnn import convert, kl
from pytest_bnn.checks import (
    measure_gradient_samples,
    measure_kl_loss,
    measure_kl_present,
    measure_loss_data,
    measure_memory_separate,
)
from pytest_bnn.checks._gradients import Gradients
from pytest_bnn.checks._objective import Evaluation
from pytest_bnn.checks.gradient._identity import Row, beyond_rounding
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.cut import key_of
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict

Batch = tuple[Tensor, Any]
Loss = Callable[[nn.Module, Batch], Tensor]

WEIGHT = 1 / 30


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def model(**how: Any) -> nn.Module:
    return convert(network(), **{"moped_delta": 0.1, **how})


def given() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    return {"images": torch.randn(40, 6, generator=generator), "labels": torch.arange(40) % 3}


def data_term(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def plain(model: nn.Module, batch: Batch) -> Tensor:
    value: Tensor = data_term(model, batch) + WEIGHT * get_kl_loss(model)
    return value


def judged(model: nn.Module, loss: Loss, *, weight: float | None = WEIGHT) -> tuple[Evidence, Evidence]:
    weighed = measure_kl_loss(model, loss=loss, kl_weight=weight, **given())
    return weighed, measure_gradient_samples(model, loss=loss, **given())


# --- losses that run backward themselves --------------------------------------------------------------------------


def closure(model: nn.Module, batch: Batch) -> Tensor:
    model.zero_grad()
    value = plain(model, batch)
    value.backward()
    return value


def detached_closure(model: nn.Module, batch: Batch) -> Tensor:
    return closure(model, batch).detach()


def retaining(model: nn.Module, batch: Batch) -> Tensor:
    value = plain(model, batch)
    value.backward(retain_graph=True)
    return value


def accumulating(model: nn.Module, batch: Batch) -> Tensor:
    total = torch.zeros(())
    for _ in range(3):
        part = plain(model, batch) / 3
        part.backward()
        total = total + part  # with its graph, which is gone
    return total


def by_halves(model: nn.Module, batch: Batch) -> Tensor:
    """The KL is run backward here, the data term by the caller."""
    (WEIGHT * get_kl_loss(model)).backward()
    return data_term(model, batch)


def by_the_module(model: nn.Module, batch: Batch) -> Tensor:
    value = plain(model, batch)
    torch.autograd.backward(value)
    return value.detach()


@pytest.mark.parametrize("loss", [closure, detached_closure, retaining, accumulating, by_halves, by_the_module])
def test_a_loss_may_run_backward_itself(loss: Loss) -> None:
    weighed, samples = judged(model(), loss)
    assert weighed.verdict is Verdict.PASS, weighed.explain()
    assert weighed["weight"] == pytest.approx(WEIGHT, rel=1e-4)
    assert samples.verdict is Verdict.PASS, samples.explain()


@pytest.mark.parametrize("loss", [closure, accumulating, by_halves])
def test_its_weight_is_judged_all_the_same(loss: Loss) -> None:
    weighed, _ = judged(model(), loss, weight=WEIGHT / 2)
    assert weighed.verdict is Verdict.FAIL
    assert "2 times the expected" in weighed.headline


# --- noise that is drawn elsewhere --------------------------------------------------------------------------------


def fresh_buffers(layer: nn.Module, _inputs: Any) -> None:
    for name in [name for name in layer._buffers if name.startswith("eps_")]:
        layer._buffers[name] = torch.empty_like(layer.get_buffer(name))


def with_fresh_buffers() -> nn.Module:
    made = model()
    for layer in bayesian_layers(made):
        layer.module.register_forward_pre_hook(fresh_buffers)
    return made


class Local(LinearReparameterization):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        weight = self.mu_weight + functional.softplus(self.rho_weight) * torch.randn_like(self.mu_weight)
        bias = self.mu_bias + functional.softplus(self.rho_bias) * torch.randn_like(self.mu_bias)
        return functional.linear(x, weight, bias)


class Outputs(LinearReparameterization):  # type: ignore[misc]
    """Local reparameterisation."""

    def forward(self, x: Tensor) -> Tensor:
        mean = functional.linear(x, self.mu_weight, self.mu_bias)
        variance = functional.linear(x**2, functional.softplus(self.rho_weight) ** 2)
        out: Tensor = mean + (variance + functional.softplus(self.rho_bias) ** 2).sqrt() * torch.randn_like(mean)
        return out


class Rsample(LinearReparameterization):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        weight = Normal(self.mu_weight, functional.softplus(self.rho_weight)).rsample()
        return functional.linear(x, weight, Normal(self.mu_bias, functional.softplus(self.rho_bias)).rsample())


def of(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(kind(6, 16), nn.ReLU(), kind(16, 3)).eval()


class Checkpointed(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.block, self.head, self.how = network()[:2], network()[2], how

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(checkpoint(self.block, x.requires_grad_(torch.is_grad_enabled()), **self.how))
        return out


def checkpointed(**how: Any) -> nn.Module:
    return convert(Checkpointed(**how).eval(), moped_delta=0.1)


def compiled() -> nn.Module:
    made = model()
    made.compile(backend="eager")
    return made


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "fresh buffers": with_fresh_buffers,
    "randn_like": lambda: of(Local),
    "local reparameterisation": lambda: of(Outputs),
    "rsample": lambda: of(Rsample),
    "compiled": compiled,
    "checkpoint": lambda: checkpointed(use_reentrant=False),
    "reentrant checkpoint": lambda: checkpointed(use_reentrant=True),
    "Flipout": lambda: model(type="Flipout"),
    "checkpoint, Flipout": lambda: convert(Checkpointed(use_reentrant=False).eval(), type="Flipout"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", HEALTHY)
def test_noise_of_any_origin_is_not_accused(name: str) -> None:
    for loss in (plain, closure):
        weighed, samples = judged(HEALTHY[name](), loss)
        assert weighed.verdict is Verdict.PASS, weighed.explain()
        # Local reparameterisation draws no weight whose gradient could be compared.
        assert samples.verdict is (Verdict.NOT_APPLICABLE if "local" in name else Verdict.PASS), samples.explain()


@pytest.mark.parametrize("name", ["fresh buffers", "randn_like", "local reparameterisation", "rsample"])
def test_several_passes_with_noise_of_their_own_are_right(name: str) -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        outputs = torch.stack([model(batch[0]) for _ in range(3)]).mean(0)
        value: Tensor = functional.cross_entropy(outputs, batch[1]) + WEIGHT * get_kl_loss(model)
        return value

    weighed, samples = judged(HEALTHY[name](), loss)
    assert weighed.verdict is Verdict.PASS, weighed.explain()
    assert samples.verdict is (Verdict.NOT_APPLICABLE if "local" in name else Verdict.PASS), samples.explain()


@pytest.mark.parametrize("how", [{}, {"type": "Flipout"}], ids=["Reparameterization", "Flipout"])
@pytest.mark.fault("B16", "gradient.samples")
def test_a_block_that_draws_anew_in_the_backward_pass_is_found(how: Any) -> None:
    """B16: the random state is not kept for the second run."""
    made = convert(Checkpointed(use_reentrant=False, preserve_rng_state=False).eval(), moped_delta=0.1, **how)
    weighed, samples = judged(made, plain)
    assert samples.verdict is Verdict.FAIL, samples.explain()
    assert [layer.path for layer in samples.layers] == ["block.0"]
    assert "preserve_rng_state=True" in samples.remedy
    assert weighed.verdict is Verdict.PASS, weighed.explain()


@pytest.mark.fault("B17", "gradient.samples")
def test_normal_of_mu_and_sigma_is_a_fault_of_its_own() -> None:
    """B17: what is drawn so has no graph."""

    class Drawn(LinearReparameterization):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, torch.normal(self.mu_weight, functional.softplus(self.rho_weight)))

    _, samples = judged(of(Drawn), plain)
    assert samples.verdict is Verdict.FAIL, samples.explain()
    assert "torch.normal(mean, std)" in samples.headline
    assert "randn_like" in samples.remedy


def test_noise_of_unknown_origin_is_judged_by_the_weights() -> None:
    """Whatever draws it: the identities are about the weights that the functional calls use."""

    class Boxed(LinearReparameterization):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            noise = (-2 * torch.rand_like(self.mu_weight).log()).sqrt()
            return functional.linear(x, self.mu_weight + functional.softplus(self.rho_weight) * noise, self.mu_bias)

    for evidence in judged(of(Boxed), plain):
        assert evidence.verdict is Verdict.PASS, evidence.explain()


# --- the remedy is one that the loss can follow -------------------------------------------------------------------


def mean_of_losses(model: nn.Module, batch: Batch) -> Tensor:
    value: Tensor = torch.stack([data_term(model, batch) for _ in range(3)]).mean() + WEIGHT * get_kl_loss(model)
    return value


def loss_of_a_mean(model: nn.Module, batch: Batch) -> Tensor:
    outputs = torch.stack([model(batch[0]).softmax(1) for _ in range(3)]).mean(0)
    value: Tensor = functional.nll_loss(outputs.log(), batch[1]) + WEIGHT * get_kl_loss(model)
    return value


def spread_of_passes(model: nn.Module, batch: Batch) -> Tensor:
    passes = torch.stack([model(batch[0]) for _ in range(4)])
    value: Tensor = data_term(model, batch) + passes.var(0).sqrt().mean() + WEIGHT * get_kl_loss(model)
    return value


def likelihood_of_passes(model: nn.Module, batch: Batch) -> Tensor:
    passes = torch.stack([model(batch[0]) for _ in range(4)])
    target = functional.one_hot(batch[1], 3)
    normal = Normal(passes.mean(0), passes.std(0))
    value: Tensor = -normal.log_prob(target).mean() + WEIGHT * get_kl_loss(model)
    return value


@pytest.mark.parametrize(
    ("loss", "separable"),
    [(mean_of_losses, True), (loss_of_a_mean, False), (spread_of_passes, False), (likelihood_of_passes, False)],
)
def test_a_remedy_is_possible(loss: Loss, separable: bool) -> None:
    weighed, samples = judged(model(), loss)
    assert samples.verdict is Verdict.FAIL, samples.explain()
    assert ("one backward pass for each" in samples.remedy) is separable
    assert "new noise buffers" in samples.remedy
    assert weighed.verdict is not Verdict.FAIL, weighed.explain()
    right = measure_gradient_samples(with_fresh_buffers(), loss=loss, **given())
    assert right.verdict is Verdict.PASS, right.explain()


def test_a_loss_without_labels_is_told_what_it_gets() -> None:
    """It takes the batch for the inputs themselves."""
    with pytest.raises(InputError, match=r"take batch\[0\]"):
        measure_kl_loss(model(), loss=lambda m, b: m(b).square().mean() + get_kl_loss(m), images=given()["images"])


# --- causes -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("B18", "kl.loss")
def test_a_loss_of_another_model_is_told() -> None:
    """B18: a name from outside in the place of the argument."""
    other = model()

    def loss(_: nn.Module, batch: Batch) -> Tensor:
        return plain(other, batch)

    weighed, samples = judged(model(), loss)
    assert weighed.verdict is Verdict.FAIL
    assert "never called the model that it was given" in weighed.headline
    assert samples.verdict is Verdict.NOT_APPLICABLE
    missing, _ = judged(model(), data_term)
    assert "missing" in missing.headline


@pytest.mark.parametrize("start", [0, 1, 500])
def test_annealing_is_told_and_not_blamed(start: int) -> None:
    state = {"step": start}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        state["step"] += 1
        value: Tensor = data_term(model, batch) + min(1.0, (state["step"] - 1) / 1000) * WEIGHT * get_kl_loss(model)
        return value

    weighed, _ = judged(model(), loss)
    assert weighed.verdict is Verdict.NOT_APPLICABLE, weighed.explain()
    assert "differently from call to call" in weighed.headline
    state["step"] = 5000
    assert judged(model(), loss)[0].verdict is Verdict.PASS


def test_the_term_of_training_alone_is_found_there() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return plain(model, batch) if model.training else data_term(model, batch)

    weighed, _ = judged(model(), loss)
    assert weighed.verdict is Verdict.PASS, weighed.explain()
    assert "train mode alone" in weighed.explain()
    assert judged(model(), loss, weight=1.0)[0].verdict is Verdict.FAIL


@pytest.mark.parametrize(("weight", "blamed"), [(0.5, ["2"]), (1.5, ["0"])])
def test_who_differs_from_what_was_expected_is_blamed(weight: float, blamed: list[str]) -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        one, other = (layer.kl() for layer in bayesian_layers(model))
        return data_term(model, batch) + 0.5 * one + 1.5 * other

    weighed, _ = judged(model(), loss, weight=weight)
    assert weighed.verdict is Verdict.FAIL
    assert sorted({layer.path for layer in weighed.layers}) == blamed
    assert "as expected" in weighed.headline


class Rollout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.step = LinearReparameterization(6, 5), LinearReparameterization(5, 5)
        self.out = LinearReparameterization(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, total = self.embed(x)
        for _ in range(4):
            h, more = self.step(torch.tanh(h))
            out, last = self.out(h)
            total = total + more + last
        return out, total


@pytest.mark.fault("B19", "kl.loss")
def test_a_kl_of_each_call_is_blamed_on_the_layers_called_again() -> None:
    """B19: layers that return their KL with each output, summed over time."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        out, total = model(batch[0])
        value: Tensor = functional.cross_entropy(out, batch[1]) + total / 50
        return value

    for weight in (None, 1 / 50):
        torch.manual_seed(0)
        weighed, _ = judged(Rollout(), loss, weight=weight)
        assert weighed.verdict is Verdict.FAIL
        assert {layer.path for layer in weighed.layers} == {"step", "out"}
        assert "once for each of 4 calls" in weighed.headline


def mixture(weight: Tensor) -> Tensor:
    """The scale mixture of Blundell et al. 2015, section 3.3."""
    wide, narrow = (Normal(0.0, sigma).log_prob(weight).exp() for sigma in (1.0, 0.1))
    value: Tensor = (0.5 * wide + 0.5 * narrow).log()
    return value


def laplace(weight: Tensor) -> Tensor:
    value: Tensor = torch.distributions.Laplace(0.0, 0.3).log_prob(weight)
    return value


def estimated_by(log_prior: Callable[[Tensor], Tensor], weight: float = 1 / 1400) -> Loss:
    """Bayes by backprop, as Blundell et al. 2015 sample the KL, toward any prior."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        out, total = model(batch[0]), torch.zeros(())
        for layer in bayesian_layers(model):
            for t in layer.tensors:
                sigma = functional.softplus(t.rho)
                drawn = t.mu + sigma * getattr(t.module, t.eps_name).clone()
                total = total + (Normal(t.mu, sigma).log_prob(drawn) - log_prior(drawn)).sum()
        return functional.cross_entropy(out, batch[1]) + weight * total

    return loss


ESTIMATES = {
    "narrow": lambda weight: Normal(0.0, 0.05).log_prob(weight),
    "mixture": mixture,
    "Laplace": laplace,
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_an_estimated_kl_is_weighed_at_the_drawn_weights(name: str) -> None:
    """Whatever the prior is; and one tensor's that lacks the term, or a weight that was not expected, is found."""
    made = model(moped_delta=0.2, prior_sigma=0.05)
    weighed, _ = judged(made, estimated_by(ESTIMATES[name]), weight=1 / 1400)
    assert weighed.verdict is Verdict.PASS, weighed.explain()
    assert weighed["weight"] == pytest.approx(1 / 1400, rel=1e-4)
    assert "log q(w) - log p(w)" in weighed.explain()
    wrong, _ = judged(made, estimated_by(ESTIMATES[name], 1 / 700), weight=1 / 1400)
    assert wrong.verdict is Verdict.FAIL
    assert "2 times the expected" in wrong.headline


def test_terms_that_cancel_are_rounded_at_their_own_size() -> None:
    """Of what is off, that stays which is more than another rounding of the terms beside the data's part explains."""
    tensor = bayesian_layers(model())[0].tensors[0]
    exact = torch.ones_like(tensor.mu, dtype=torch.float64)

    def found(gradient: Tensor) -> Evaluation:
        return Evaluation(gradients=Gradients({key_of(tensor): (gradient, gradient)}))

    def row(off: float) -> Row:
        return Row(tensor, off, 1e-5, 1.0, 1.0, lost=False, missing=False, of="mu", size=float(exact.norm()))

    rows = [row(2e-5), row(1e-2)]
    rounded = found(exact * (1 + 1e-5) / 3)
    assert beyond_rounding(rows, found(exact), rounded) == rows[1:]
    assert beyond_rounding(rows, found(exact), found(exact / 3)) == rows


def by_hand(term: Callable[[Tensor, Tensor], Tensor], weight: float = 1 / 1400) -> Loss:
    """A KL that the loss writes itself, as a function of mu and sigma."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        tensors = [t for layer in bayesian_layers(model) for t in layer.tensors]
        return (
            data_term(model, batch)
            + weight * torch.stack([term(t.mu, functional.softplus(t.rho)).sum() for t in tensors]).sum()
        )

    return loss


def to_laplace(mu: Tensor, sigma: Tensor, scale: float = 0.3) -> Tensor:
    """E|w| of a normal w has a closed form: the folded normal's mean."""
    ratio = mu / sigma
    mean = sigma * (2 / torch.pi) ** 0.5 * torch.exp(-(ratio**2) / 2) + mu * torch.erf(ratio / 2**0.5)
    value: Tensor = mean / scale - sigma.log()
    return value


def to_width(mu: Tensor, sigma: Tensor, variance: Tensor) -> Tensor:
    """Empirical Bayes: the prior's variance is the best one for the tensor, and moves along with it."""
    return variance.log() / 2 - sigma.log() + (sigma**2 + mu**2) / (2 * variance)


Term = Callable[[Tensor, Tensor], Tensor]

CLOSED: dict[str, Term] = {
    "the layers' prior": lambda mu, sigma: -sigma.log() + (sigma**2 + mu**2) / 2,
    "another width": lambda mu, sigma: -sigma.log() + (sigma**2 + mu**2) / (2 * 0.3**2),
    "another mean": lambda mu, sigma: -sigma.log() + (sigma**2 + (mu - 0.2) ** 2) / 2,
    "Laplace": to_laplace,
    "a width of each tensor": lambda mu, sigma: to_width(mu, sigma, (mu**2 + sigma**2).mean().detach()),
    "a width of each tensor, in the graph": lambda mu, sigma: to_width(mu, sigma, (mu**2 + sigma**2).mean()),
}


@pytest.mark.parametrize("delta", [0.02, 0.2])
@pytest.mark.parametrize("name", CLOSED)
def test_a_kl_to_any_prior_is_weighed(name: str, delta: float) -> None:
    weighed, _ = judged(model(moped_delta=delta), by_hand(CLOSED[name]), weight=1 / 1400)
    assert weighed.verdict is Verdict.PASS, weighed.explain()
    assert weighed["weight"] == pytest.approx(1 / 1400, rel=1e-3)
    assert judged(model(moped_delta=delta), by_hand(CLOSED[name]), weight=1 / 700)[0].verdict is Verdict.FAIL


class Opposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x, 0 * x], 1)


def test_a_width_of_one_numbers_own_is_no_contradiction() -> None:
    torch.manual_seed(0)
    made = convert(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), moped_delta=0.2)
    term = by_hand(CLOSED["a width of each tensor"])
    loss: Loss = lambda m, b: term(nn.Sequential(m, Opposed()), b)  # noqa: E731
    weighed = measure_kl_loss(made, loss=loss, kl_weight=1 / 1400, **given())
    assert weighed.verdict is Verdict.PASS, weighed.explain()


WRONG: dict[str, Term] = {
    "sigma for its square": lambda mu, sigma: -sigma.log() + (sigma + mu**2) / 2,
    "the square's logarithm": lambda mu, sigma: -(sigma**2).log() + (sigma**2 + mu**2) / 2,
    "mu without its square": lambda mu, sigma: -sigma.log() + (sigma**2 + mu.abs()) / 2,
    "half of the mean's part": lambda mu, sigma: -sigma.log() + (sigma**2 + mu**2 / 2) / 2,
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.fault("B20", "kl.loss")
def test_a_formula_that_is_no_kl_is_found(name: str) -> None:
    """B20: hand-written terms that look like a KL. Where the weight is expected, the logarithm's counts."""
    weighed, _ = judged(model(moped_delta=0.3), by_hand(WRONG[name]), weight=1 / 1400)
    assert weighed.verdict is Verdict.FAIL, weighed.explain()


@pytest.mark.fault("B21", "kl.loss")
def test_a_kl_without_mu_is_found() -> None:
    """B21: nothing holds the means; written by hand, or with a prior that is mu itself."""
    weighed, _ = judged(model(), by_hand(lambda mu, sigma: -sigma.log() + sigma**2 / 2), weight=1 / 1400)
    assert weighed.verdict is Verdict.FAIL, weighed.explain()
    assert "does not depend on mu in 4 of 4" in weighed.headline
    follows = by_hand(lambda mu, sigma: CLOSED["the layers' prior"](mu - mu.detach(), sigma))
    weighed, _ = judged(model(), follows, weight=None)
    assert weighed.verdict is Verdict.FAIL, weighed.explain()
    assert "does not depend on mu in 4 of 4" in weighed.headline


def test_mu_that_is_detached_in_the_kl_is_a_warning() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        total = torch.zeros(())
        for layer in bayesian_layers(model):
            for t in layer.tensors:
                total = total + layer.module.kl_div(  # type: ignore[operator]
                    t.mu.detach(), functional.softplus(t.rho), t.prior_mu, t.prior_sigma
                )
        return data_term(model, batch) + WEIGHT * total

    weighed, _ = judged(model(), loss)
    assert weighed.verdict is Verdict.WARN, weighed.explain()
    assert "does not reach mu in 4 of 4" in weighed.headline
    mine, _ = judged(model(), by_hand(lambda mu, sigma: CLOSED["another width"](mu.detach(), sigma)), weight=None)
    assert mine.verdict is Verdict.WARN, mine.explain()


@pytest.mark.parametrize("penalty", [Tensor.square, Tensor.abs])
@pytest.mark.fault("B22", "kl.loss")
def test_another_pull_on_mu_is_found(penalty: Callable[[Tensor], Tensor]) -> None:
    """B22: weight decay on mu inside the loss, beside the KL."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        decay = torch.stack([penalty(t.mu).sum() for layer in bayesian_layers(model) for t in layer.tensors]).sum()
        return plain(model, batch) + 1e-3 * decay

    weighed, _ = judged(model(), loss)
    assert weighed.verdict is Verdict.FAIL, weighed.explain()
    assert "pulls on mu in 4 of 4 tensors" in weighed.headline


def test_a_prior_at_the_teachers_weights_is_healthy() -> None:
    """Where mu is the prior's its gradient is 0, as without its part in the KL: the moved mu tells them apart."""
    made = model()
    for layer in bayesian_layers(made):
        for t in layer.tensors:
            layer.module._buffers[t.prior_mu_name] = t.mu.detach().clone()
    weighed, samples = judged(made, plain)
    assert weighed.verdict is Verdict.PASS, weighed.explain()
    assert samples.verdict is Verdict.PASS, samples.explain()


@pytest.mark.fault("B23", "kl.loss")
def test_a_kl_in_eval_mode_alone_is_found() -> None:
    """B23: an inverted condition; validation has the term, training has not."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return data_term(model, batch) if model.training else plain(model, batch)

    weighed, _ = judged(model(), loss)
    assert weighed.verdict is Verdict.FAIL, weighed.explain()
    assert "missing in train mode" in weighed.headline


def test_weight_decay_on_rho_still_is_found() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        decay = torch.stack([t.rho.square().sum() for la in bayesian_layers(model) for t in la.tensors]).sum()
        return plain(model, batch) + 0.01 * decay

    weighed, _ = judged(model(), loss)
    assert weighed.verdict is Verdict.FAIL
    assert "pulls on rho" in weighed.headline


class Remembering(nn.Module):
    """A loss with a state: centred scores, and a pull on mu that grows with the number of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        self.calls += 1
        pull = torch.stack([t.mu.square().sum() for layer in bayesian_layers(model) for t in layer.tensors]).sum()
        return plain(model, batch) + 1e-3 * self.calls * pull


def test_a_state_of_the_loss_is_not_taken_for_another_pull_on_mu() -> None:
    weighed, _ = judged(model(), Remembering())
    assert weighed.verdict is Verdict.NOT_APPLICABLE, weighed.explain()
    assert "from call to call" in weighed.headline


def climbed(model: nn.Module, batch: Batch, *, first: Loss, rebind: bool = False) -> Tensor:
    """Sharpness-aware minimisation: the gradient is taken where a step up has led."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(first(model, batch), parameters)
    length = torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt()
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, slope in zip(parameters, slopes, strict=True):
            if rebind:
                p.data = p + 0.05 * slope / length
            else:
                p.add_(0.05 * slope / length)
    value = plain(model, batch)
    value.backward()
    with torch.no_grad():
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
    return value.detach()


STEPPING: dict[str, Loss] = {
    "SAM": lambda m, b: climbed(m, b, first=plain),
    "SAM of the data term": lambda m, b: climbed(m, b, first=data_term),
    "SAM with other memory": lambda m, b: climbed(m, b, first=plain, rebind=True),
    "a penalty on the gradient": lambda m, b: (
        plain(m, b)
        + 1e-2
        * torch.stack(
            [g.square().sum() for g in torch.autograd.grad(data_term(m, b), list(m.parameters()), create_graph=True)]
        ).sum()
    ),
}


@pytest.mark.parametrize("name", STEPPING)
def test_a_loss_that_steps_itself_is_not_judged(name: str) -> None:
    """Where the drawn weights are cut off it cannot run, or its passes see weights that are not the model's."""
    made = model()
    before = [p.detach().clone() for p in made.parameters()]
    found = [*judged(made, STEPPING[name]), measure_loss_data(made, loss=STEPPING[name], **given())]
    assert {evidence.verdict for evidence in found[1:]} == {Verdict.NOT_APPLICABLE}
    assert found[0].verdict in (Verdict.NOT_APPLICABLE, Verdict.PASS), found[0].explain()
    assert "training loop" in found[1].headline
    assert all(torch.equal(one, other) for one, other in zip(before, made.parameters(), strict=True))


def test_layers_counted_twice_are_named_where_they_are_the_most() -> None:
    """A recurrent layer of the library sums its parts' KL, which get_kl_loss adds to the parts' own."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = LSTMReparameterization(6, 8, prior_variance=1), convert(nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Any:
            return self.head(self.cell(x[:, None].expand(-1, 2, -1))[0][:, -1])

    torch.manual_seed(0)
    weighed, _ = judged(Recurrent().eval(), plain, weight=None)
    assert weighed.verdict is Verdict.FAIL
    assert "get_kl_loss counts it again" in weighed.headline
    assert {layer.path for layer in weighed.layers} == {"cell.ih", "cell.hh"}


# --- kl.present ---------------------------------------------------------------------------------------------------


def at_the_prior() -> nn.Module:
    made = model()
    with torch.no_grad():
        for layer in bayesian_layers(made):
            for t in layer.tensors:
                t.prior_mu.copy_(t.mu)
                t.prior_sigma.copy_(t.sigma)
    return made


def test_a_posterior_that_starts_at_its_prior_is_left_alone() -> None:
    made = at_the_prior()
    present = measure_kl_present(made)
    assert present.verdict is Verdict.NOT_APPLICABLE, present.explain()
    assert "audit again after a step" in present.headline
    weighed, samples = judged(made, plain)
    assert weighed.verdict is Verdict.PASS, weighed.explain()
    assert weighed["weight"] == pytest.approx(WEIGHT, rel=1e-3)
    assert samples.verdict is Verdict.PASS, samples.explain()
    assert judged(made, data_term)[0].verdict is Verdict.NOT_APPLICABLE
    with torch.no_grad():
        bayesian_layers(made)[0].tensors[0].mu.add_(0.1)
    assert measure_kl_present(made).verdict is Verdict.PASS


@pytest.mark.parametrize("clash", [0.0, torch.zeros(()), nn.MSELoss(), None])
def test_an_attribute_named_kl_loss_is_no_method(clash: Any) -> None:
    made: Any = model()
    made.kl_loss = clash
    made[0].kl_loss_weight = 1.0
    found = measure_kl_present(made)
    assert found.verdict is Verdict.PASS, found.explain()
    assert "is no method" in found.explain()


class WithOwnSum(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.network, self.factor = model(), factor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out

    def kl_loss(self) -> Tensor:
        value: Tensor = self.factor * get_kl_loss(self.network)
        return value


def test_a_models_own_sum_is_what_is_judged() -> None:
    found = measure_kl_present(WithOwnSum())
    assert found.verdict is Verdict.PASS, found.explain()
    assert "The model's own kl_loss() was judged" in found.explain()
    assert measure_kl_present(WithOwnSum(0.5)).verdict is Verdict.FAIL


class OwnPrior(LinearReparameterization):  # type: ignore[misc]
    """A prior of one's own, a mixture: no closed form, and the layer's prior buffers mean nothing."""

    def kl_loss(self) -> Tensor:
        weight = self.mu_weight + functional.softplus(self.rho_weight) * self.eps_weight
        wide, narrow = (Normal(0.0, s).log_prob(weight).exp() for s in (1.0, 0.1))
        posterior = Normal(self.mu_weight, functional.softplus(self.rho_weight)).log_prob(weight)
        value: Tensor = (posterior - (0.5 * wide + 0.5 * narrow).log()).mean()
        return value


def test_a_kl_of_the_class_itself_is_left_alone_and_a_patched_one_is_not() -> None:
    found = measure_kl_present(of(OwnPrior))
    assert found.verdict is Verdict.NOT_APPLICABLE, found.explain()
    assert "OwnPrior" in found.headline
    made: Any = model()
    made[0].kl_loss = lambda: 0.5 * type(made[0]).kl_loss(made[0])
    assert measure_kl_present(made).verdict is Verdict.FAIL


def shared_rows() -> nn.Module:
    made: Any = model()
    for layer in (made[0], made[2]):
        layer.rho_weight = nn.Parameter(layer.rho_weight.detach().mean(1, keepdim=True))
    return made  # type: ignore[no-any-return]


def one_sigma() -> nn.Module:
    made: Any = model()
    for layer in (made[0], made[2]):
        layer.rho_weight = nn.Parameter(layer.rho_weight.detach().mean())
    return made  # type: ignore[no-any-return]


def learned_prior() -> nn.Module:
    made = model()
    for layer in bayesian_layers(made):
        for t in layer.tensors:
            for name in (t.prior_mu_name, t.prior_sigma_name):
                value = layer.module._buffers.pop(name)
                assert value is not None
                layer.module.register_parameter(name, nn.Parameter(value.clone()))
    return made


class Bounded(nn.Module):
    def forward(self, rho: Tensor) -> Tensor:
        return rho.clamp(-8, 1)

    def right_inverse(self, rho: Tensor) -> Tensor:
        return rho


def parametrized() -> nn.Module:
    made = model()
    for layer in bayesian_layers(made):
        for name in ("rho_weight", "rho_bias"):
            nn.utils.parametrize.register_parametrization(layer.module, name, Bounded())
    return made


def with_meta() -> nn.Module:
    made = model()
    made.register_buffer("unused", torch.zeros(6, device="meta"))
    return made


@pytest.mark.parametrize("make", [shared_rows, one_sigma, learned_prior, parametrized, with_meta])
def test_other_forms_of_a_posterior_are_judged(make: Callable[[], nn.Module]) -> None:
    for evidence in (
        measure_kl_present(make()),
        measure_memory_separate(make(), teacher=network()),
        *judged(make(), plain),
    ):
        assert evidence.verdict is Verdict.PASS, evidence.explain()
    wrong, _ = judged(make(), lambda model, batch: data_term(model, batch) + 2 * WEIGHT * get_kl_loss(model))
    assert wrong.verdict is Verdict.FAIL
    assert "2 times the expected" in wrong.headline
    lost, _ = judged(make(), data_term)
    assert "missing" in lost.headline
    ours = measure_kl_loss(make(), loss=lambda m, b: data_term(m, b) + WEIGHT * kl(m), kl_weight=WEIGHT, **given())
    assert ours.verdict is Verdict.PASS, ours.explain()


# --- pruned teachers ----------------------------------------------------------------------------------------------


def pruned_teacher() -> nn.Sequential:
    teacher = network()
    prune.l1_unstructured(teacher[0], "weight", amount=0.5)
    return teacher


def bayesian_of(teacher: nn.Sequential, *, noisy: bool) -> nn.Module:
    plain = network()
    with torch.no_grad():
        plain.get_parameter("0.weight").copy_(
            teacher.get_parameter("0.weight_orig") * teacher.get_buffer("0.weight_mask")
        )
    made: Any = convert(plain, moped_delta=0.1)
    if noisy:
        with torch.no_grad():
            made[0].rho_weight.clamp_(min=-3.0)
    return made  # type: ignore[no-any-return]


def test_pruned_weights_are_told_from_dead_ones() -> None:
    teacher = pruned_teacher()
    kept = measure_kl_present(bayesian_of(teacher, noisy=False), teacher=teacher)
    assert kept.verdict is Verdict.PASS, kept.explain()
    assert "48 weights are pruned by the teacher's mask" in kept.explain()
    noisy = measure_kl_present(bayesian_of(teacher, noisy=True), teacher=teacher)
    assert noisy.verdict is Verdict.WARN, noisy.explain()
    assert "48 of 48 weights of the weight that the teacher's mask prunes get noise" in noisy.headline
    assert "where the teacher's mask is 0" in noisy.remedy
    unknown = measure_kl_present(bayesian_of(teacher, noisy=False))
    assert unknown.verdict is Verdict.WARN
    assert "pruned on purpose" in unknown.remedy
