"""Models, teachers and losses that are unusual and sound, each beside a fault of the same kind that must be found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bayesian_torch.layers import LinearReparameterization
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from pytest_bnn import AuditRun, Evidence, Verdict, audit_model, convert

Loss = Callable[[nn.Module, Any], Any]


def images(rows: int = 24) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    for path in ("0.weight", "2.weight"):
        layers.get_parameter(path).data.mul_(4)
    return layers.to(dtype).eval()


def elbo(model: nn.Module, batch: Any) -> Tensor:
    value: Tensor = functional.cross_entropy(model(batch[0]), batch[1]) + get_kl_loss(model) / 10
    return value


def audited(model: nn.Module, teacher: nn.Module | None = None, loss: Loss | None = elbo, **given: Any) -> AuditRun:
    teacher = network() if teacher is None else teacher
    labels = network()(images()).argmax(1)
    return audit_model(model, teacher=teacher, loss=loss, **{"data": (images(), labels), **given})


def of(run: AuditRun, id: str) -> Evidence:
    return next(evidence for evidence in run.checks if evidence.id == id)


def assert_not_accused(run: AuditRun) -> None:
    bad = [e.explain() for e in run.checks if e.verdict in (Verdict.FAIL, Verdict.ERROR)]
    assert not bad, "\n".join(bad)


def converted(kind: type[nn.Module] | None = None, delta: float = 0.05) -> nn.Module:
    model = convert(network(), moped_delta=delta)
    for layer in (model[0], model[2]) if kind else ():  # type: ignore[index]
        layer.__class__ = kind
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda net: torch.jit.trace(net, images())])
def test_a_teacher_in_torchscript_is_a_teacher(compiled: Callable[[nn.Module], nn.Module]) -> None:
    run = audited(converted(), compiled(network()))
    assert_not_accused(run)
    assert of(run, "mean.equals_teacher").verdict is Verdict.PASS
    wrong = converted()
    wrong.get_parameter("0.mu_weight").data.mul_(1.2)
    found = of(audited(wrong, compiled(network())), "mean.equals_teacher")
    assert found.verdict is Verdict.FAIL
    assert "TorchScript" in found.remedy


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_in_torchscript_is_told_to_be_unknown() -> None:
    run = audited(torch.jit.trace(converted(), images(), check_trace=False))
    assert_not_accused(run)
    assert "audit the Python model" in of(run, "layers.replaced").headline


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.scores, self.size = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = functional.relu(self.body(x))
        return self.scores(hidden), self.size(hidden)


@pytest.mark.parametrize("kind", [tuple, lambda pair: {"class": pair[0], "size": pair[1]}])
def test_labels_may_be_several_tensors(kind: Callable[[Any], Any]) -> None:
    teacher = _TwoHeads().eval()
    scores, size = teacher(images())
    run = audited(convert(teacher), teacher, loss=None, data=(images(), kind((scores.argmax(1), size.detach()))))
    assert_not_accused(run)
    shown = run.subjects[0].predictions
    assert shown
    assert all(prediction.label is None for prediction in shown)


class _Given(LinearReparameterization):  # type: ignore[misc]
    """Computes with weights that somebody else drew."""

    drawn: Tensor

    def forward(self, input: Tensor, return_kl: bool = True) -> Tensor:
        return functional.linear(input, self.drawn, self.mu_bias)


class _Drawing(nn.Module):
    """Draws the weights of its layers at the beginning of each pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        for layer in self.net.modules():
            if isinstance(layer, _Given):
                noise = torch.randn_like(layer.mu_weight)
                layer.drawn = layer.mu_weight + functional.softplus(layer.rho_weight) * noise
        return self.net(x)


def test_noise_that_is_drawn_around_the_layers_is_seen_where_they_use_it() -> None:
    run = audited(_Drawing(converted(_Given)).eval())
    for id in ("kl.loss", "gradient.samples"):
        assert of(run, id).verdict is Verdict.PASS, of(run, id).explain()


class _Exponential(LinearReparameterization):  # type: ignore[misc]
    """Takes exp(rho) for sigma, in its forward and in its KL."""

    def forward(self, input: Tensor, return_kl: bool = True) -> Tensor:
        weight = self.mu_weight + self.rho_weight.exp() * torch.randn_like(self.mu_weight)
        return functional.linear(input, weight, self.mu_bias + self.rho_bias.exp() * torch.randn_like(self.mu_bias))

    def kl_loss(self) -> Any:
        of_weight = self.kl_div(self.mu_weight, self.rho_weight.exp(), self.prior_weight_mu, self.prior_weight_sigma)
        return of_weight + self.kl_div(self.mu_bias, self.rho_bias.exp(), self.prior_bias_mu, self.prior_bias_sigma)


class _HalfExponential(_Exponential):
    """Draws with another sigma than its KL is of."""

    def forward(self, input: Tensor, return_kl: bool = True) -> Tensor:
        weight = self.mu_weight + 0.5 * self.rho_weight.exp() * torch.randn_like(self.mu_weight)
        return functional.linear(input, weight, self.mu_bias + self.rho_bias.exp() * torch.randn_like(self.mu_bias))


def test_a_subclass_may_compute_sigma_in_its_own_way() -> None:
    run = audited(converted(_Exponential, delta=0.3))
    assert_not_accused(run)
    assert of(run, "kl.present").verdict is of(run, "kl.loss").verdict is Verdict.PASS
    found = of(audited(converted(_HalfExponential, delta=0.3)), "noise.posterior")
    assert found.verdict is Verdict.FAIL
    assert "times the sigma of the posterior" in found.headline


class _Nameless(nn.Module):
    """A Bayesian layer whose parameters have names that say nothing."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.w, self.s = nn.Parameter(layer.weight.detach().clone()), nn.Parameter(torch.full_like(layer.weight, -5.0))
        self.b = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.w + self.s.exp() * torch.randn_like(self.w), self.b)


class _Gated(nn.Module):
    """Two deterministic weights of one shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.s = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.w) * functional.linear(x, self.s).sigmoid()


def test_a_layer_that_computes_with_noise_is_unknown_whatever_its_names_are() -> None:
    model = network()
    model[0], model[2] = _Nameless(model[0]), _Nameless(model[2])  # type: ignore[arg-type]
    run = audited(model)
    assert_not_accused(run)
    assert "that nobody knows yet" in of(run, "kl.present").headline
    assert of(audited(_Gated().eval(), _Gated().eval()), "kl.present").verdict is Verdict.FAIL


class _Latent(nn.Module):
    """Samples a latent vector in every pass, in eval mode too."""

    def __init__(self, noise: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.noise = nn.Linear(6, 4), nn.Linear(4, 6), noise

    def forward(self, x: Tensor) -> Any:
        latent = self.encoder(x)
        return self.decoder(latent + self.noise * torch.randn_like(latent))


def test_noise_that_the_teacher_has_too_is_not_the_fault_of_a_conversion() -> None:
    run = audited(convert(_Latent().eval()), _Latent().eval(), loss=None, data=images())
    assert_not_accused(run)
    for id in ("mean.equals_teacher", "noise.source"):
        assert "teacher" in of(run, id).headline
        assert of(run, id).verdict is Verdict.NOT_APPLICABLE
    run = audited(convert(_Latent().eval()), _Latent(0.0).eval(), loss=None, data=images())
    assert of(run, "noise.source").verdict is of(run, "mean.equals_teacher").verdict is Verdict.FAIL
    assert "see noise.source" in of(run, "mean.equals_teacher").remedy


def own_kl(model: nn.Module, width: float, decay: float = 0.0) -> Tensor:
    value = torch.zeros(())
    for layer in model.modules():
        for role in ("weight", "bias") if isinstance(layer, LinearReparameterization) else ():
            mu, rho = getattr(layer, f"mu_{role}"), getattr(layer, f"rho_{role}")
            posterior = Normal(mu, functional.softplus(rho))
            value = value + kl_divergence(posterior, Normal(0.0, width)).sum() + decay * rho.square().sum()
    return value


@pytest.mark.parametrize("width", [0.1, 0.3, 3.0])
def test_a_loss_may_have_a_gaussian_prior_of_its_own(width: float) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1]) + own_kl(model, width) / 500

    found = of(audited(converted(delta=0.2), loss=loss), "kl.loss")
    assert found.verdict is Verdict.PASS, found.explain()
    assert found["weight"] == pytest.approx(1 / 500, rel=1e-3)
    assert "a prior of its own" in " ".join(found.notes)


def test_decay_of_rho_beside_a_prior_of_its_own_is_found() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1]) + own_kl(model, 0.1, decay=0.05) / 500

    found = of(audited(converted(delta=0.2), loss=loss), "kl.loss")
    assert found.verdict is Verdict.FAIL
    assert "Something else than the KL term" in found.headline


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_weight_of_the_kl_is_read_off_in_half_precision(dtype: torch.dtype) -> None:
    model = converted(delta=0.2).to(dtype)
    given: dict[str, Any] = {"data": (images().to(dtype), network()(images()).argmax(1)), "checks": ["kl.loss"]}
    for batches, verdict in ((10, Verdict.PASS), (20, Verdict.FAIL)):
        options = {"kl.loss": {"num_batches": batches}}
        found = of(audited(model, network(dtype), **given, options=options), "kl.loss")
        assert found.verdict is verdict, found.explain()


def test_a_kl_below_a_bound_of_the_loss_is_no_detached_one() -> None:
    def free_bits(model: nn.Module, batch: Any) -> Any:
        return functional.cross_entropy(model(batch[0]), batch[1]) + get_kl_loss(model).clamp_min(1000) / 10

    found = of(audited(converted(), loss=free_bits, checks=["kl.loss"]), "kl.loss")
    assert found.verdict is Verdict.NOT_APPLICABLE
    assert "free bits" in found.headline

    def detached(model: nn.Module, batch: Any) -> Any:
        return functional.cross_entropy(model(batch[0]), batch[1]) + get_kl_loss(model).detach() / 10

    found = of(audited(converted(), loss=detached, checks=["kl.loss"]), "kl.loss")
    assert found.verdict is Verdict.FAIL
    assert "detached" in found.headline


def test_a_loss_without_any_gradient_is_told_so() -> None:
    found = of(audited(converted(), loss=torch.no_grad()(elbo), checks=["kl.loss"]), "kl.loss")
    assert found.verdict is Verdict.FAIL
    assert "no gradient at all" in found.headline


def test_a_loss_that_ran_backward_may_return_a_number() -> None:
    def loss(model: nn.Module, batch: Any) -> float:
        value = elbo(model, batch)
        value.backward()
        return value.item()

    run = audited(converted(), loss=loss)
    assert of(run, "kl.loss")["weight"] == pytest.approx(0.1, rel=1e-3)
    found = of(audited(converted(), loss=lambda model, batch: elbo(model, batch).item()), "kl.loss")
    assert found.verdict is Verdict.ERROR
    assert "returned float" in found.headline


def test_a_loss_that_needs_all_examples_hears_how_many_it_got() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert len(batch[0]) == 40
        return elbo(model, batch)

    data = (images(40), network()(images(40)).argmax(1))
    found = of(audited(converted(), loss=loss, data=data, checks=["kl.loss"]), "kl.loss")
    assert found.verdict is Verdict.ERROR
    assert "32 of 40 examples" in found.remedy


class _Leaving(nn.Module):
    def __init__(self, net: nn.Module, error: BaseException) -> None:
        super().__init__()
        self.net, self.error = net, error

    def forward(self, x: Tensor) -> Any:
        raise self.error


def test_what_a_forward_raised_gets_its_own_remedy() -> None:
    run = audited(_Leaving(converted(), SystemExit(0)).eval())
    found = [e for e in run.checks if e.verdict in (Verdict.FAIL, Verdict.ERROR)]
    assert len(found) > 3
    for evidence in found:
        assert "sys.exit()" in evidence.remedy, evidence.explain()
    run = audited(_Leaving(converted(), RuntimeError("no such device")).eval())
    assert "on this machine" in of(run, "noise.source").remedy


def test_a_lazy_module_stays_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    before = copy.deepcopy(model)
    audited(model, loss=None, checks=["noise.source", "teacher.agreement"])
    assert repr(model) == repr(before)
    assert model[0].has_uninitialized_params()  # type: ignore[operator]
    assert model(images()).shape == (24, 3)


class _Flat(nn.Module):
    """Gives one number for each example, without a dimension of its own."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 1)
        self.head.bias.data.add_(shift)

    def forward(self, x: Tensor) -> Any:
        return self.head(functional.relu(self.body(x))).squeeze(-1)


@pytest.mark.parametrize("shape", [(24,), (24, 1)])
def test_a_regression_without_a_second_dimension_is_judged(shape: tuple[int, ...]) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        value: Tensor = functional.mse_loss(model(batch[0]), batch[1].flatten()) + get_kl_loss(model) / 10
        return value

    data = (images(), _Flat().eval()(images()).detach().reshape(shape))
    run = audited(convert(_Flat().eval(), moped_delta=0.01), _Flat().eval(), loss=loss, data=data)
    assert_not_accused(run)
    assert of(run, "teacher.agreement").verdict is Verdict.PASS
    run = audited(convert(_Flat(shift=5.0).eval()), _Flat().eval(), loss=loss, data=data, stage="finetuned")
    assert of(run, "teacher.agreement").verdict is Verdict.FAIL
