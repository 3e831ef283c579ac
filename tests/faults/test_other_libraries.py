"""Whole audits of networks that were not made of bayesian-torch's own classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert
from pytest_bnn.checks.check import Check
from pytest_bnn.checks.declaration import Declaration
from pytest_bnn.checks.registry import built_in, declaration
from pytest_bnn.libraries import registry
from pytest_bnn.libraries.gaussian import EXP, PosteriorTensor, kl_of_normals
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.libraries.protocol import CAPABILITIES, PROMISES, BayesianLayer, Capability, Convention, Words
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.subject import Subject

Audit = Callable[..., dict[str, Evidence]]


def images() -> Tensor:
    return torch.randn(48, 6, generator=torch.Generator().manual_seed(2))


def labels() -> Tensor:
    return torch.arange(48) % 3


def torchbnn_network(**how: Any) -> nn.Module:
    torchbnn = pytest.importorskip("torchbnn")
    torch.manual_seed(0)
    kind = {"prior_mu": 0, "prior_sigma": 0.1, **how}
    return nn.Sequential(
        torchbnn.BayesLinear(in_features=6, out_features=32, **kind),
        nn.ReLU(),
        torchbnn.BayesLinear(in_features=32, out_features=3, **kind),
    ).eval()


def trained(model: nn.Module) -> nn.Module:
    """Away from the prior, with noise that leaves something to be said."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) - (2 if "sigma" in name else 0))
    return model


def torchbnn_loss(weight: float, reduction: str = "mean") -> Any:
    torchbnn = pytest.importorskip("torchbnn")
    kl = torchbnn.BKLLoss(reduction=reduction, last_layer_only=False)
    return lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]) + weight * kl(model)


def not_held(found: dict[str, Evidence]) -> list[str]:
    return [e.explain() for e in found.values() if e.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE)]


@pytest.mark.parametrize("change", [lambda model: model, trained], ids=["new", "trained"])
@pytest.mark.parametrize(("reduction", "weight"), [("mean", 0.1), ("sum", 0.01)])
def test_a_network_of_torchbnn_is_judged(reduction: str, weight: float, change: Any, audit: Audit) -> None:
    """Also where it is new and every sigma the prior's: its KL has no gradient to sigma there."""
    model = change(torchbnn_network())
    loss = torchbnn_loss(weight, reduction)
    found = audit(model, images=images(), labels=labels(), loss=loss, kl_weight=weight)
    assert not_held(found) == []
    assert found["kl.loss"].verdict is Verdict.PASS
    assert found["kl.loss"]["weight"] == pytest.approx(weight, rel=1e-3)
    assert found["kl.present"].verdict is Verdict.PASS
    for id in ("noise.varies", "noise.source", "noise.posterior", "gradient.samples", "memory.separate"):
        assert found[id].verdict is Verdict.PASS, found[id].explain()


def test_the_faults_of_such_a_network_are_found(audit: Audit) -> None:
    given: Any = {"images": images(), "labels": labels()}
    model = trained(torchbnn_network())
    found = audit(model, loss=lambda m, b: functional.cross_entropy(m(b[0]), b[1]), **given)
    assert "missing" in found["kl.loss"].headline
    assert "BKLLoss" in found["kl.loss"].remedy
    last = torchbnn_loss(0.1)
    found = audit(model, loss=last, num_batches=20, **given)
    assert "2 times the expected" in found["kl.loss"].headline
    frozen: Any = trained(torchbnn_network())
    for layer in (frozen[0], frozen[2]):
        layer.freeze()
    found = audit(frozen, **given)
    assert found["noise.varies"].verdict is Verdict.FAIL
    assert "cached or never drawn" in found["noise.varies"].headline


class Sampler(nn.Module):
    """A Gaussian weight that no adapter knows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_mu = nn.Parameter(torch.randn(outputs, inputs) / 3)
        self.weight_rho = nn.Parameter(torch.full((outputs, inputs), -3.0))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(self.weight_mu)
        return functional.linear(x, self.weight_mu + functional.softplus(self.weight_rho) * noise)


class Multiplied(nn.Module):
    """Variational dropout: multiplicative noise with a width of each weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.theta_mean = nn.Parameter(torch.randn(outputs, inputs) / 3)
        self.theta_log_alpha = nn.Parameter(torch.full((outputs, inputs), -4.0))

    def forward(self, x: Tensor) -> Tensor:
        noise = 1 + self.theta_log_alpha.exp().sqrt() * torch.randn_like(self.theta_mean)
        return functional.linear(x, self.theta_mean * noise)


class BayesianDense(nn.Module):
    """Named for what it is, its parameters not."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.randn(outputs, inputs) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.center + 0.05 * torch.randn_like(self.center))


def blitz_network() -> nn.Module:
    modules = pytest.importorskip("blitz.modules", reason="runs where blitz is installed, as nox -s nightly does")
    return nn.Sequential(modules.BayesianLinear(6, 16), nn.ReLU(), modules.BayesianLinear(16, 3))


def of(kind: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(kind(6, 16), nn.ReLU(), kind(16, 3))


@pytest.mark.parametrize(
    "make", [blitz_network, of(Sampler), of(Multiplied), of(BayesianDense)],
    ids=["blitz", "own names", "variational dropout", "by its name"],
)  # fmt: skip
def test_a_library_that_nobody_knows_is_left_alone(make: Callable[[], nn.Module], audit: Audit) -> None:
    torch.manual_seed(0)
    found = audit(
        make().eval(),
        images=images(),
        labels=labels(),
        loss=lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]),
    )
    assert not_held(found) == []
    for id in ("noise.varies", "noise.source", "kl.present", "kl.loss", "gradient.samples", "layers.replaced"):
        assert found[id].verdict is Verdict.NOT_APPLICABLE
        assert "nobody knows yet" in found[id].headline
        assert "docs/how-to/another-library.md" in found[id].headline


def test_known_and_unknown_layers_in_one_network(audit: Audit) -> None:
    """What is known is judged; what would take silence or the mean of all is not."""
    torch.manual_seed(0)
    known: Any = convert(nn.Sequential(nn.Linear(8, 3)), moped_delta=0.2)
    model = nn.Sequential(Sampler(6, 8), nn.ReLU(), known[0]).eval()
    found = audit(model, images=images())
    assert not_held(found) == []
    assert found["noise.posterior"].verdict is Verdict.PASS
    assert found["kl.present"].verdict is Verdict.PASS
    assert "`0` (Sampler)" in found["noise.source"].headline


def test_a_network_without_any_noise_still_fails(audit: Audit) -> None:
    found = audit(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval(), images=images())
    for id in ("noise.varies", "noise.source", "kl.present", "layers.replaced"):
        assert found[id].verdict is Verdict.FAIL
        assert "no Bayesian layer" in found[id].headline


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_torchscript_that_draws_is_not_said_to_be_baked(audit: Audit) -> None:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), moped_delta=0.2)
    scripted = torch.jit.trace(model, images(), check_trace=False)
    found = audit(scripted, images=images())
    assert not_held(found) == []
    assert "TorchScript" in found["noise.varies"].headline


class Vendored(nn.Module):
    """bayesian-torch's layer, copied by hand."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mu_weight = nn.Parameter(torch.randn(outputs, inputs) / 3)
        self.rho_weight = nn.Parameter(torch.full((outputs, inputs), -4.0))
        self.register_buffer("eps_weight", torch.zeros(outputs, inputs), persistent=False)
        self.register_buffer("prior_weight_mu", torch.zeros(outputs, inputs), persistent=False)
        self.register_buffer("prior_weight_sigma", torch.ones(outputs, inputs), persistent=False)

    def kl_loss(self) -> Tensor:
        sigma = torch.log1p(torch.exp(self.rho_weight))
        prior = self.get_buffer("prior_weight_sigma")
        return (torch.log(prior) - torch.log(sigma) + (sigma**2 + self.mu_weight**2) / (2 * prior**2) - 0.5).mean()

    def forward(self, x: Tensor) -> Tensor:
        sigma = torch.log1p(torch.exp(self.rho_weight))
        return functional.linear(x, self.mu_weight + sigma * self.get_buffer("eps_weight").data.normal_())


def test_copies_of_the_librarys_layers_are_judged_like_these(audit: Audit) -> None:
    torch.manual_seed(0)
    model = of(Vendored)().eval()

    def loss(model: Any, batch: Any) -> Tensor:
        kl: Tensor = model[0].kl_loss() + model[2].kl_loss()
        return functional.cross_entropy(model(batch[0]), batch[1]) + kl / 20

    given: Any = {"images": images(), "labels": labels()}
    found = audit(model, loss=loss, num_batches=20, **given)
    assert not_held(found) == []
    for id in ("noise.varies", "noise.posterior", "kl.present", "kl.loss", "gradient.samples", "memory.separate"):
        assert found[id].verdict is Verdict.PASS, found[id].explain()
    assert audit(model, loss=loss, num_batches=10, **given)["kl.loss"].verdict is Verdict.FAIL


# What an adapter does not give.


class Own(nn.Module):
    """A Gaussian weight of a library that `Mine` knows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.randn(outputs, inputs) / 3)
        self.log_sigma = nn.Parameter(torch.full((outputs, inputs), -3.0))
        self.prior_center, self.prior_width = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.center + self.log_sigma.exp() * torch.randn_like(self.center))


class Mine:
    """The adapter of `Own`, with some of the capabilities."""

    name = "mine"
    conventions: tuple[Convention, ...] = ("sum",)
    words = Words(library="mine", kl="mine.kl(model)", rho="log_sigma", convert="", wider="", narrower="")

    def __init__(self, can: frozenset[Capability], *, told: bool = True) -> None:
        self.can, self.told = can, told

    def owns(self, module: nn.Module) -> bool:
        return isinstance(module, Own)

    def layer(self, path: str, module: nn.Module) -> BayesianLayer | None:
        if not self.owns(module):
            return None
        names = ("center", "log_sigma", "eps", "prior_center", "prior_width")
        tensors = (PosteriorTensor(path, "weight", module, *names, EXP),) if self.told else ()
        return BayesianLayer(path, module, "Linear", "own", tensors, self)

    def layer_kl(self, layer: BayesianLayer) -> Tensor:
        return torch.stack([
            kl_of_normals(t.mu, t.rho.exp(), t.prior_mu, t.prior_sigma).sum() for t in layer.tensors
        ]).sum()  # fmt: skip

    def kl(self, model: nn.Module) -> Tensor | None:
        layers = [layer for layer in bayesian_layers(model) if layer.adapter is self and layer.tensors]
        return torch.stack([self.layer_kl(layer) for layer in layers]).sum() if layers else None

    def brings_own_kl(self, layer: BayesianLayer) -> bool:
        return False

    def is_stock(self, layer: BayesianLayer) -> bool:
        return False

    def border(self, layer: BayesianLayer) -> tuple[list[int], str] | None:
        return None


def audited_with(adapter: Mine, audit: Audit, monkeypatch: pytest.MonkeyPatch) -> dict[str, Evidence]:
    monkeypatch.setattr(registry, "ADAPTERS", [*registry.ADAPTERS, adapter])
    torch.manual_seed(0)
    model: Any = nn.Sequential(Own(6, 16), nn.ReLU(), Own(16, 3)).eval()
    assert len(bayesian_layers(model)) == 2

    def loss(model: nn.Module, batch: Any) -> Tensor:
        kl = torch.stack([
            kl_of_normals(layer.center, layer.log_sigma.exp(), torch.zeros(()), torch.ones(())).sum()
            for layer in model.modules() if isinstance(layer, Own)
        ]).sum()  # fmt: skip
        return functional.cross_entropy(model(batch[0]), batch[1]) + kl / 1000

    teacher: Any = nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False)).eval()
    with torch.no_grad():
        teacher[0].weight.copy_(model[0].center)
        teacher[2].weight.copy_(model[2].center)
    x = images()
    return audit(model, teacher=teacher, images=x, labels=teacher(x).argmax(1), loss=loss)


#: What the audit of these tests judges: few examples decide nothing about predictions.
DECLARED = {
    id: own.can
    for id in built_in()
    if id != "estimator.flipout" and (own := declaration(id)) is not None and not own.of_data
}


def test_an_adapter_that_gives_all_is_judged_by_all(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audited_with(Mine(CAPABILITIES), audit, monkeypatch)
    assert not_held(found) == []
    judged = [id for id in DECLARED if found[id].verdict is Verdict.PASS]
    assert {one for id in judged for one in DECLARED[id]} == {
        "draws", "mean_mode", "mean_field", "divergence", "used_weights",
    }  # fmt: skip


@pytest.mark.parametrize("capability", sorted(CAPABILITIES))
def test_a_missing_capability_is_named_by_the_claims_that_need_it(
    capability: Capability, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how to give it; the other claims are judged as ever."""
    found = audited_with(Mine(CAPABILITIES - {capability}), audit, monkeypatch)
    assert not_held(found) == []
    for id, can in DECLARED.items():
        named = f"The claim needs the capability '{capability}'" in found[id].headline
        assert named is (capability in can), found[id].explain()
        if named:
            assert found[id].verdict is Verdict.NOT_APPLICABLE
            for words in (
                PROMISES[capability],
                "the adapter of mine",
                "`0` (Linear)",
                "can",
                "docs/how-to/another-library.md",
            ):
                assert words in found[id].headline


def test_an_adapter_that_gives_nothing_accuses_nobody(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mu, no sigma, no KL: what the outputs themselves show is judged, and nothing breaks."""
    found = audited_with(Mine(frozenset(), told=False), audit, monkeypatch)
    assert not_held(found) == []
    assert all(found[id].verdict is Verdict.NOT_APPLICABLE for id, can in DECLARED.items() if can)
    assert found["noise.varies"].verdict is Verdict.PASS


def test_capabilities_are_told_in_words() -> None:
    assert {*PROMISES} == CAPABILITIES
    assert all({*can} <= CAPABILITIES for can in DECLARED.values())


def test_a_capability_that_does_not_exist_is_an_error_of_the_check() -> None:
    """A slip in a check of one's own ends no audit."""
    own = Check(
        declaration=Declaration(id="mycompany.slip", claim="True.", can=("meanfield",)),
        function=lambda subject: None,  # type: ignore[arg-type,return-value]
    )
    found = own.judge(Subject(convert(nn.Sequential(nn.Linear(2, 2)))), {}, None, severity="error")
    assert found.verdict is Verdict.ERROR
    assert "there is no capability 'meanfield'" in found.headline
