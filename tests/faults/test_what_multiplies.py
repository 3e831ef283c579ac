"""``layers.replaced`` counts the weights that multiply, whatever holds them, and ties over all modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from pytest_bnn import Evidence, convert
from pytest_bnn.checks import measure_layers_replaced
from pytest_bnn.records.evidence import Verdict
from tests.cases.networks import PARAMETERS

X = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(0, 12, (6, 5), generator=torch.Generator().manual_seed(3))


def bare(network: nn.Module, **changes: Any) -> Any:
    """The library's own conversion of a copy."""
    model = copy.deepcopy(network)
    dnn_to_bnn(model, {**PARAMETERS, **changes})
    return model.eval()


def judged(model: nn.Module, teacher: nn.Module | None = None, x: Tensor = X, **options: Any) -> Evidence:
    return measure_layers_replaced(model, teacher=teacher, images=x, **options)


def made(kind: Any, *arguments: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return kind(*arguments).eval()


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn, self.fc = kind(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.rnn, nn.RNNCellBase):
            out: Tensor = self.fc(self.rnn(x[:, 0]))
        else:
            out = self.fc(self.rnn(x.transpose(0, 1))[0][-1])
        return out


class Tokens(nn.Module):
    """A language model whose head is its embedding's table: by a call, or by one Parameter for both."""

    def __init__(self, *, called: bool = False) -> None:
        super().__init__()
        self.emb, self.body = nn.Embedding(12, 8), nn.Linear(8, 8)
        self.head: Any = None if called else nn.Linear(8, 12, bias=False)
        if self.head is not None:
            self.head.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.body(self.emb(tokens).mean(1))
        out: Tensor = functional.linear(h, self.emb.weight) if self.head is None else self.head(h)
        return out


class Mixed(nn.Module):
    """Experts as bare tensors, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 2)
        self.experts = nn.Parameter(torch.randn(2, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = x.mean(1)
        return torch.einsum("be,bi,eio->bo", self.gate(h).softmax(1), h, self.experts)


class Everything(nn.Module):
    """What moves the output and multiplies nothing: tokens, positions, scales, tables, norms, a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 6, 8))
        self.table, self.scale = nn.Parameter(torch.randn(9)), nn.Parameter(torch.rand(8))
        self.kinds, self.norm = nn.Embedding(3, 8), nn.LayerNorm(8)
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.filter: Tensor
        self.register_buffer("filter", torch.randn(8, 8))
        self.blur = nn.Parameter(torch.ones(8, 8) / 8, requires_grad=False)
        self.q, self.k, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), 1, 8), x @ self.filter @ self.blur], 1) + self.positions
        x = self.norm(x + self.kinds(torch.arange(6) % 3)) * self.scale
        bias = self.table[torch.arange(6)[:, None] + torch.arange(6)[None] - 5]
        weights = (self.q(x) @ self.k(x).transpose(1, 2) + bias).softmax(-1)
        out: Tensor = self.head((weights @ x).mean(1)) / self.temperature
        return out


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, groups=4)
        self.norm = nn.BatchNorm1d(8)
        self.fc = parametrizations.weight_norm(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(self.conv(x.transpose(1, 2))).mean(2))
        return out


class Autoencoder(nn.Module):
    """Its decoder uses the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enc: Any = nn.Linear(8, 6)
        self.fc = nn.Linear(8, 3)

    def weight(self) -> Tensor:
        return self.enc.weight if isinstance(self.enc, nn.Linear) else self.enc.mu_weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(functional.linear(self.enc(x.mean(1)).relu(), self.weight().t()))
        return out


class DrawnOutside(Autoencoder):
    """As it should be: the decoder's weight is drawn, too."""

    def weight(self) -> Any:
        if isinstance(self.enc, nn.Linear):
            return self.enc.weight
        mu, rho = self.enc.mu_weight, self.enc.rho_weight
        return mu + functional.softplus(rho) * torch.randn_like(mu)


class LocalNoise(nn.Module):
    """Draws outputs in place of weights: the mean and the variance are products of their own, beside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc: Any = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        h = x.mean(1)
        if isinstance(self.fc, nn.Linear):
            out: Tensor = self.fc(h)
            return out
        mean = functional.linear(h, self.fc.mu_weight, self.fc.mu_bias)
        variance = functional.linear(h**2, functional.softplus(self.fc.rho_weight) ** 2)
        return mean + variance.sqrt() * torch.randn_like(mean) + 0 * self.fc(h)


class LowRank(nn.Module):
    """LoRA as bare tensors: added to the weight that a layer draws, or applied to the input."""

    def __init__(self, *, to_weight: bool) -> None:
        super().__init__()
        self.fc: Any = nn.Linear(8, 3)
        self.to_weight = to_weight
        self.a, self.b = nn.Parameter(torch.randn(2, 8) / 8), nn.Parameter(torch.randn(3, 2) / 8)

    def forward(self, x: Tensor) -> Any:
        h = x.mean(1)
        if not self.to_weight:
            out: Tensor = self.fc(h) + h @ self.a.t() @ self.b.t()
            return out
        if isinstance(self.fc, nn.Linear):
            return functional.linear(h, self.fc.weight + self.b @ self.a, self.fc.bias)
        mu = self.fc.mu_weight
        drawn = mu + functional.softplus(self.fc.rho_weight) * torch.randn_like(mu)
        return functional.linear(h, drawn + self.b @ self.a, self.fc.mu_bias) + 0 * self.fc(h)


class Adapted(nn.Module):
    """A linear layer of one's own class, with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.own: Any = nn.Module()
        self.own.kernel, self.own.offset = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.own.offset, self.first(x.mean(1)), self.own.kernel)


@pytest.mark.fault("A33", "layers.replaced")
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN, nn.GRUCell])
@pytest.mark.parametrize("seen", [True, False])
def test_a_recurrent_layer_is_counted_and_may_be_meant(kind: type[nn.Module], seen: bool) -> None:
    """By a pass, and without images by what the layer is: the number is that of all its weights."""
    network = made(Recurrent, kind)
    model = copy.deepcopy(network)
    model.fc = convert(network.fc)
    given: dict[str, Any] = {"images": X} if seen else {}
    evidence = measure_layers_replaced(model, teacher=network, **given)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert evidence["Bayesian weights"] == 51
    assert evidence["weights in the claim"] == 51 + sum(p.numel() for p in network.rnn.parameters())
    assert evidence.layers[0].path == "rnn"
    assert "--allow" in evidence.remedy
    meant = measure_layers_replaced(model, teacher=network, allow={"rnn": "no Bayesian one is needed"}, **given)
    assert meant.verdict is Verdict.PASS, meant.explain()
    assert "`rnn` is deterministic on purpose: no Bayesian one is needed." in meant.notes


@pytest.mark.fault("A34", "layers.replaced")
def test_a_head_that_is_a_call_is_counted() -> None:
    network = made(lambda: Tokens(called=True))
    evidence = judged(bare(network), network, TOKENS)
    assert evidence.verdict is Verdict.FAIL
    assert evidence["weights in the claim"] == 72 + 96
    assert (evidence.layers[0].path, evidence.layers[0].kind) == ("emb", "Embedding")
    assert "weight is multiplied" in evidence.layers[0].finding
    for pattern in ("emb", "emb.weight", "e*"):
        assert judged(bare(network), network, TOKENS, allow={pattern: "meant"}).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("network", "path", "weights"),
    [(Mixed, "", 48), (lambda: LowRank(to_weight=False), "", 22), (Adapted, "own", 27)],
    ids=["experts", "low-rank factors beside a layer", "a layer of one's own"],
)
def test_bare_tensors_that_multiply_are_counted(network: Any, path: str, weights: int) -> None:
    teacher = made(network)
    model = bare(teacher)
    for given in (teacher, None):
        evidence = judged(model, given)
        assert evidence.verdict is Verdict.FAIL, evidence.explain()
        assert [layer.path for layer in evidence.layers if not layer.ok] == [path]
        counted, drawn = evidence["weights in the claim"], evidence["Bayesian weights"]
        assert isinstance(counted, int)
        assert isinstance(drawn, int)
        assert counted - drawn == weights


@pytest.mark.fault("A35", "layers.replaced")
def test_a_tie_that_the_conversion_undid_may_be_meant() -> None:
    network = made(Tokens)
    evidence = judged(bare(network), network, TOKENS)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "`head` shares its weight with `emb` in the teacher, and no longer in the model" in evidence.headline
    assert judged(bare(network), network, TOKENS, allow={"head": "two from now on"}).verdict is Verdict.PASS


def test_a_tie_that_is_kept_is_sound() -> None:
    """The table is the head's mu: one Parameter, which training moves as one."""
    network = made(Tokens)
    model = bare(network)
    model.emb.weight = model.head.mu_weight
    assert judged(model, network, TOKENS).verdict is Verdict.PASS


def test_two_tables_of_one_that_became_two_may_be_meant() -> None:
    class Both(Tokens):
        def __init__(self) -> None:
            super().__init__()
            self.other, self.head = nn.Embedding(12, 8), nn.Linear(8, 12)
            self.other.weight = self.emb.weight

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(self.emb(tokens).mean(1) + self.other(tokens).mean(1)))
            return out

    network = made(Both)
    assert judged(bare(network), network, TOKENS).verdict is Verdict.PASS
    model = bare(network)
    model.other.weight = nn.Parameter(model.other.weight.detach().clone())
    evidence = judged(model, network, TOKENS)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "`other` shares its weight with `emb`" in evidence.headline


@pytest.mark.fault("B51", "layers.replaced")
@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_a_mu_that_multiplies_undrawn(estimator: str) -> None:
    network = made(Autoencoder)
    for teacher in (network, None):
        evidence = judged(bare(network, type=estimator), teacher)
        assert evidence.verdict is Verdict.FAIL
        assert [layer.path for layer in evidence.layers if not layer.ok] == ["enc"]
        assert "outside of its own forward" in evidence.layers[0].finding
        assert "Call the layer" in evidence.remedy


@pytest.mark.parametrize(
    "network",
    [DrawnOutside, LocalNoise, lambda: LowRank(to_weight=True), Everything, Grouped],
    ids=["drawn outside", "local noise", "low rank added to a drawn weight", "what multiplies nothing", "grouped"],
)
@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_sound_networks_are_accused_of_nothing(network: Any, estimator: Any) -> None:
    teacher = made(network)
    model = convert(teacher, type=estimator) if network is Grouped else bare(teacher, type=estimator)
    evidence = judged(model, teacher)
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert judged(model).verdict is Verdict.PASS


def test_what_is_outside_of_the_claim_is_listed_with_its_size() -> None:
    network = made(Everything)
    evidence = judged(bare(network), network)
    (outside,) = (m for m in evidence.measurements if m.name == "weights outside the claim")
    assert outside.value == sum(p.numel() for p in network.parameters()) - 72 - 72 - 27
    assert "Embedding 24" in outside.note
    assert "LayerNorm 16" in outside.note
    assert any("64 weights of kernels that are not trained, blur first" in note for note in evidence.notes)


def test_attention_of_torch_without_and_with_its_projections() -> None:
    """Bare projections stay one row of the claim; converted ones are drawn."""
    encoder = made(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    assert judged(convert(encoder), encoder).verdict is Verdict.PASS
    evidence = judged(encoder, encoder)
    assert evidence.verdict is Verdict.FAIL
    assert {layer.path for layer in evidence.layers} == {"self_attn", "self_attn.out_proj", "linear1", "linear2"}


def test_a_layer_of_a_library_that_nobody_knows_is_not_called_deterministic() -> None:
    class OthersBayesian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc, self.log_scale = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3, 8) - 4)

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.loc) + 0 * self.log_scale.sum()

    model = nn.Sequential(convert(nn.Sequential(nn.Linear(8, 8))), OthersBayesian()).eval()
    assert judged(model).verdict is Verdict.PASS


def test_frozen_kernels_that_the_teacher_trains_count() -> None:
    network = made(Mixed)
    model = bare(network)
    model.experts.requires_grad_(False)
    assert judged(model, network).verdict is Verdict.FAIL
    assert judged(model).verdict is Verdict.PASS


def test_the_model_stays_as_it_was_and_a_forward_that_raises_is_told() -> None:
    network = made(lambda: Tokens(called=True))
    model = bare(network)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    judged(model, network, TOKENS)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.forward = lambda tokens: 1 / 0
    evidence = judged(model, None, TOKENS)
    assert any("not seen which tensors are multiplied" in note for note in evidence.notes)
