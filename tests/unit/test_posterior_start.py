"""``posterior.start``: one history, and the declared one; whoever was trained in an unusual way is not accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pytest_bnn.checks import measure_mean_equals_teacher, measure_posterior_start
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.history import Trace, displaced, traces
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.subject import Subject


class Residual(nn.Module):
    """A network whose last declared layer is an inner one."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.branch = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.second(torch.relu(self.first(x))))
        out: Tensor = self.head(h + 0.1 * torch.relu(self.branch(h)))
        return out


def network(seed: int = 0) -> nn.Module:
    return Residual(seed).eval()


def images() -> Tensor:
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(1))


def trained(
    model: nn.Module, *, steps: int = 30, optimizer: Any = None, only: str = "", rate: float = 1e-3
) -> nn.Module:
    torch.manual_seed(7)
    wanted = [p for name, p in model.named_parameters() if only in name and p.requires_grad]
    opt = optimizer(wanted) if optimizer else torch.optim.Adam(wanted, rate)
    x, y = torch.randn(64, 8), torch.randint(32, (64,))
    for _ in range(steps):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    return model.eval()


def with_new(model: nn.Module, name: str) -> nn.Module:
    """Put a layer at the library's random start into a model."""
    torch.manual_seed(5)
    model.set_submodule(name, convert(network(), moped_enable=False).get_submodule(name))
    return model


def weights(model: nn.Module) -> dict[str, PosteriorTensor]:
    return {tensor.name: tensor for layer in bayesian_layers(model) for tensor in layer.tensors}


def changed(model: nn.Module, change: Callable[[dict[str, PosteriorTensor]], None]) -> nn.Module:
    with torch.no_grad():
        change(weights(model))
    return model


def measure(model: nn.Module, **given: Any) -> Evidence:
    return measure_posterior_start(model, **{"teacher": network(), "images": images(), **given})


def pruned() -> nn.Module:
    net = network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(parameter.abs() > 0.05)
    return net


def bounded(model: nn.Module) -> nn.Module:
    class Bound(nn.Module):
        def forward(self, rho: Tensor) -> Tensor:
            return rho.clamp(-12, 1)

        def right_inverse(self, rho: Tensor) -> Tensor:
            return rho

    for layer in bayesian_layers(model):
        parametrize.register_parametrization(layer.module, "rho_weight", Bound())
    return model


def averaged(model: nn.Module) -> nn.Module:
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        trained(model, steps=5)
        average.update_parameters(model)
    return average.eval()


def layer_wise(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": [p], "lr": 1e-3 / (1 + i)} for i, p in enumerate(parameters)])


FRESH: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "as it is": lambda: (convert(network()), {}),
    "without a teacher": lambda: (convert(network()), {"teacher": None}),
    "declared": lambda: (convert(network()), {"stage": "converted"}),
    "Flipout": lambda: (convert(network(), type="Flipout"), {}),
    "a prior mean that is not 0": lambda: (convert(network(), prior_mu=0.3), {}),
    "pruned": lambda: (convert(pruned()), {"teacher": pruned()}),
    "float64": lambda: (convert(network().double()), {"teacher": network().double(), "images": images().double()}),
    "bfloat16": lambda: (convert(network()).to(torch.bfloat16), {}),
    "rho frozen": lambda: (_frozen(convert(network())), {}),
    "a bounded rho": lambda: (bounded(convert(network())), {}),
    "another checkpoint": lambda: (convert(network(3)), {}),
    "narrow": lambda: (convert(network(), moped_delta=1e-4), {}),
}


def _frozen(model: nn.Module) -> nn.Module:
    for tensor in weights(model).values():
        tensor.rho.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", FRESH)
def test_a_fresh_conversion_is_said_to_be_one(name: str) -> None:
    model, given = FRESH[name]()
    evidence = measure(model, **given)
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert "fresh conversion" in evidence.headline
    assert evidence["as a conversion leaves them"] == 4


def test_a_conversion_of_another_checkpoint_is_fresh_and_fails_where_it_differs() -> None:
    """Which network it is a conversion of is another check's to say: mean.equals_teacher judges it as fresh."""
    with torch.no_grad():
        other = network()
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    subject = Subject(convert(other), teacher=network(), images=images())
    evidence = measure_posterior_start(subject)
    assert evidence.verdict is Verdict.PASS
    assert "mu is not the teacher's in 4 of 4 weight tensors" in evidence.headline
    assert measure_mean_equals_teacher(subject).verdict is Verdict.FAIL


SOUND: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "fine-tuned": lambda: (trained(convert(network())), {}),
    "declared": lambda: (trained(convert(network())), {"stage": "finetuned"}),
    "declared, alone": lambda: (trained(convert(network())), {"stage": "finetuned", "teacher": None}),
    "one step": lambda: (trained(convert(network()), steps=1), {"stage": "finetuned"}),
    "head alone": lambda: (trained(convert(network()), only="head"), {"stage": "finetuned"}),
    "head's mu and every sigma": lambda: (trained(trained(convert(network()), only="rho"), only="head"), {}),
    "sigma alone": lambda: (trained(convert(network()), only="rho"), {"stage": "finetuned"}),
    "biases alone": lambda: (trained(convert(network()), only="_bias"), {"stage": "finetuned"}),
    "SGD": lambda: (trained(convert(network()), optimizer=lambda p: torch.optim.SGD(p, 0.1)), {"stage": "finetuned"}),
    "SGD of a tiny rate": lambda: (
        trained(convert(network()), optimizer=lambda p: torch.optim.SGD(p, 1e-7)),
        {"stage": "finetuned"},
    ),
    "a rate of its own for each tensor": lambda: (trained(convert(network()), optimizer=layer_wise), {}),
    "an average of weights": lambda: (averaged(convert(network())), {}),
    "in bfloat16": lambda: (trained(convert(network())).to(torch.bfloat16), {"images": images().bfloat16()}),
    "mu alone, in bfloat16": lambda: (trained(convert(network()), only="mu").to(torch.bfloat16), {}),
    "a new head, trained": lambda: (trained(with_new(convert(network()), "head"), steps=150, rate=3e-3), {}),
    "from scratch, declared": lambda: (
        trained(convert(network(), moped_enable=False), steps=150, rate=1e-2),
        {"stage": "finetuned"},
    ),
    "from scratch, alone, declared": lambda: (
        trained(convert(network(), moped_enable=False), steps=150, rate=1e-2),
        {"stage": "finetuned", "teacher": None},
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_no_way_of_training_is_accused(name: str) -> None:
    model, given = SOUND[name]()
    evidence = measure(model, **given)
    assert evidence.verdict is Verdict.PASS, evidence.explain()


def test_a_network_that_nobody_trained_is_untrained_and_no_fault() -> None:
    model = convert(network(), moped_enable=False, posterior_rho_init=-4.0)
    for given in ({}, {"teacher": None}, {"stage": "converted"}):
        evidence = measure(model, **given)
        assert evidence.verdict is Verdict.PASS, evidence.explain()
        assert evidence.headline.startswith("Untrained")
    evidence = measure(model, stage="finetuned")
    assert evidence.verdict is Verdict.FAIL
    assert "random start" in evidence.headline


def test_of_what_nothing_shows_the_stage_is_asked_for() -> None:
    """Trained from scratch, or beside no teacher: who says what it is, is heard."""
    scratch = trained(convert(network(), moped_enable=False), steps=150, rate=1e-2)
    for given in ({}, {"teacher": None}):
        evidence = measure(scratch, **given)
        assert evidence.verdict is Verdict.NOT_APPLICABLE
        assert "--stage finetuned" in evidence.headline
    assert measure(network()).verdict is Verdict.NOT_APPLICABLE


def test_a_new_head_with_little_training_is_a_warning() -> None:
    """Its numbers are those of a layer that nobody loaded; only an inner layer is made anew by accident alone."""
    model = trained(with_new(convert(network()), "head"), steps=3)
    evidence = measure(model)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "a new layer with little training" in evidence.headline
    allowed = measure(model, allow={"head": "new classes"})
    assert allowed.verdict is Verdict.PASS
    assert "`head` is left out on purpose: new classes." in allowed.notes


def test_an_inner_layer_that_was_not_loaded() -> None:
    model = with_new(trained(convert(network())), "branch")
    evidence = measure(model)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert [layer.path for layer in evidence.layers] == ["branch"]
    assert "never loaded" in evidence.headline
    assert "strict=True" in evidence.remedy
    assert measure(model, images=None).verdict is Verdict.WARN  # nothing shows that it is an inner layer
    assert measure(model, stage="finetuned").verdict is Verdict.FAIL
    assert measure(with_new(convert(network()), "branch")).verdict is Verdict.WARN


def test_a_checkpoint_that_loaded_nothing() -> None:
    """Declared fine-tuned, and to the bit what the conversion made: both are named."""
    state = nn.DataParallel(trained(convert(network()))).state_dict()
    model = convert(network())
    model.load_state_dict(state, strict=False)
    for given in ({}, {"teacher": None}, {"teacher": network(9)}):
        evidence = measure(model, stage="finetuned", **given)
        assert evidence.verdict is Verdict.FAIL, evidence.explain()
        assert "declared finetuned" in evidence.headline
        assert "sigma is 0.1 times abs(mu)" in evidence.headline
        assert "strict=True" in evidence.remedy
    assert "to the bit" in measure(model, stage="finetuned").headline


def test_one_sigma_a_tensor_that_never_moved() -> None:
    """Beside a mu that is the teacher's to the bit; a sigma that has one parameter may have been trained."""

    def flatten(found: dict[str, PosteriorTensor]) -> None:
        for tensor in found.values():
            tensor.rho.fill_(-5.0)

    model = changed(convert(network()), flatten)
    assert measure(model).verdict is Verdict.PASS
    evidence = measure(model, stage="finetuned")
    assert evidence.verdict is Verdict.FAIL
    assert "one value in each tensor" in evidence.headline
    assert measure(model, stage="finetuned", teacher=None).verdict is not Verdict.FAIL


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.norm, self.last = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(self.first(x)))
        return out


def test_training_beside_the_posterior_is_seen() -> None:
    """Norms alone may be trained on purpose: what is shown is said, and no more."""
    model = convert(Normed())
    assert measure(model, teacher=Normed(), stage="finetuned").verdict is Verdict.FAIL
    with torch.no_grad():
        model.get_parameter("norm.weight").mul_(1.1)
    evidence = measure(model, teacher=Normed(), stage="finetuned")
    assert evidence.verdict is Verdict.WARN
    assert "norm.weight is not the teacher's" in evidence.headline
    assert measure(model, teacher=None, stage="finetuned").verdict is Verdict.WARN


def test_a_declared_conversion_that_was_trained() -> None:
    evidence = measure(trained(convert(network())), stage="converted")
    assert evidence.verdict is Verdict.FAIL
    assert "declared converted" in evidence.headline
    assert "4 of 4 weight tensors" in evidence.headline
    assert measure(trained(convert(network()), only="head"), stage="converted").verdict is Verdict.PASS


@pytest.mark.parametrize("kind", ["Reparameterization", "Flipout"])
def test_a_rho_that_no_optimizer_got(kind: Any) -> None:
    model = trained(convert(network(), type=kind), only="mu_")
    evidence = measure(model)
    assert evidence.verdict is Verdict.WARN
    assert "Rho was never trained in 8 of the 8 tensors" in evidence.headline
    assert "sigma is still 0.1 times abs(teacher's weight)" in evidence.headline
    assert "optimizer" in evidence.remedy
    assert measure(model, stage="finetuned").verdict is Verdict.WARN
    assert measure(model, allow={"*": "mu alone is trained first"}).verdict is Verdict.PASS
    assert measure(_frozen(model)).verdict is Verdict.PASS  # others say that it is frozen


def permute(found: dict[str, PosteriorTensor]) -> None:
    rho = found["second.weight"].rho
    rho.copy_(rho[torch.randperm(len(rho), generator=torch.Generator().manual_seed(0))])


def transpose(found: dict[str, PosteriorTensor]) -> None:
    rho = found["second.weight"].rho
    rho.copy_(rho.T.clone())


def swap(found: dict[str, PosteriorTensor]) -> None:
    one, other = found["second.weight"].rho, found["head.weight"].rho
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def rotate(found: dict[str, PosteriorTensor]) -> None:
    rho = [found[f"{name}.weight"].rho for name in ("second", "head", "branch")]
    kept = [value.clone() for value in rho]
    for value, other in zip(rho, kept[1:] + kept[:1], strict=True):
        value.copy_(other)


def roll_bias(found: dict[str, PosteriorTensor]) -> None:
    rho = found["second.bias"].rho
    rho.copy_(rho.roll(1))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (permute, {"second"}),
        (transpose, {"second"}),
        (swap, {"second", "head"}),
        (rotate, {"second", "head", "branch"}),
        (roll_bias, {"second"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alone", [False, True])
def test_a_sigma_in_the_wrong_places(change: Any, names: set[str], dtype: torch.dtype, alone: bool) -> None:
    teacher = network().to(dtype)
    model = changed(convert(teacher), change)
    evidence = measure(model, teacher=None if alone else teacher, images=images().to(dtype))
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "Sigma lies apart from its mu" in evidence.headline
    assert {layer.path for layer in evidence.layers} == names
    assert all("0.1 times abs(mu)" in layer.finding for layer in evidence.layers)


def test_what_a_displaced_mu_is_left_to_the_check_of_outputs() -> None:
    """The teacher shows which of the two was displaced."""

    def roll(found: dict[str, PosteriorTensor]) -> None:
        mu = found["second.weight"].mu
        mu.copy_(mu.roll(1, 0))

    model = changed(convert(network()), roll)
    assert measure(model).verdict is Verdict.PASS
    assert measure_mean_equals_teacher(model, teacher=network(), images=images()).verdict is Verdict.FAIL
    assert measure(model, teacher=None).verdict is Verdict.FAIL


@pytest.mark.parametrize("change", ["scaled", "one value", "by hand", "noisy", "trained, permuted"])
def test_another_sigma_is_a_choice(change: str) -> None:
    """Only one that fits other places is displaced."""

    def apply(found: dict[str, PosteriorTensor]) -> None:
        rho = found["second.weight"].rho
        if change == "scaled":
            rho.copy_(torch.log(torch.expm1(3 * nn.functional.softplus(rho))))
        elif change == "one value":
            rho.fill_(-4.0)
        elif change == "by hand":
            rho.copy_(-3 - torch.arange(rho.numel()).reshape(rho.shape) / 1e3)
        elif change == "noisy":
            rho += 1e-3 * torch.randn(rho.shape, generator=torch.Generator().manual_seed(0))
        else:
            permute(found)

    model = convert(network())
    model = trained(model) if change.startswith("trained") else model
    assert measure(changed(model, apply)).verdict is Verdict.PASS


def test_the_sorted_ratio_is_that_of_the_numbers() -> None:
    """By hand: sigma is .2 times the sorted means, which lie in another order."""
    model = convert(nn.Sequential(nn.Linear(4, 3, bias=False)))
    mu = torch.arange(1.0, 13).reshape(3, 4)
    with torch.no_grad():
        (tensor,) = weights(model).values()
        tensor.mu.copy_(mu)
        tensor.rho.copy_(torch.log(torch.expm1(0.2 * mu.flip(0))))
    found: tuple[Trace, ...] = traces(model, None, Subject(model).alignment)
    (one,) = displaced(found)
    assert one.delta == pytest.approx(0.2)
    assert one.donor is one.trace


def test_nothing_is_changed_and_nothing_drawn() -> None:
    """Also where an inner layer is looked for by a pass."""
    model = with_new(trained(convert(network())), "branch").train()
    given = {"teacher": network(), "images": images()}
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert measure_posterior_start(model, **given).verdict is Verdict.FAIL  # type: ignore[arg-type]
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_a_pattern_that_matches_nothing_is_said() -> None:
    notes = measure(convert(network()), allow={"nowhere": "a mistake"}).notes
    assert "The pattern 'nowhere' in allow matches no Bayesian layer." in notes
