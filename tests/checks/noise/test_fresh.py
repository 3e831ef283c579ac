"""``noise.fresh``: every draw is one of its own."""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pytest_bnn
from pytest_bnn.checks import measure_noise_fresh
from pytest_bnn.checks.noise import _builds
from pytest_bnn.data.factory import Factory
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict
from tests.around import Around


def images(rows: int = 12) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))


def bayesian(estimator: Any = "Reparameterization") -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
    return pytest_bnn.convert(network, type=estimator, moped_delta=0.2).eval()


def judged(forward: Callable[..., Any], *, estimator: str = "Reparameterization", **given: Any) -> Evidence:
    return measure_noise_fresh(Around(bayesian(estimator), forward), images=images(), **given)


def mean_of(outputs: Tensor, copies: int) -> Any:
    return outputs.view(copies, -1, outputs.shape[-1]).mean(0)


def local(network: nn.Module) -> nn.Module:
    """Local reparameterisation: the noise is drawn for each row's output."""

    def forward(self: Any, x: Tensor) -> Tensor:
        mean = nn.functional.linear(x, self.mu_weight, self.mu_bias)
        variance = nn.functional.linear(x**2, nn.functional.softplus(self.rho_weight) ** 2)
        return mean + variance.sqrt() * torch.randn_like(mean)

    for layer in bayesian_layers(network):
        layer.module.forward = types.MethodType(forward, layer.module)
    return network


def in_blocks(**given: Any) -> Callable[[nn.Module, Tensor], Any]:
    def forward(network: Any, x: Tensor) -> Any:
        for block in (network[:2], network[2:4], network[4:]):
            x = checkpoint(block, x, **given)
        return x

    return forward


def noisy_gradients(network: nn.Module, x: Tensor) -> Any:
    """Noise on the gradient, as for privacy: the backward pass draws, and repeats nothing."""
    y = network(x)
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient + torch.randn_like(gradient))
    return y


def heads(network: nn.Module, x: Tensor) -> Any:
    """Each copy has a head of its own."""
    y = network(x.repeat(4, 1)).view(4, len(x), -1)
    return (y * torch.arange(1, 5)[:, None, None]).mean(0)


def filled(network: nn.Module, x: Tensor) -> Any:
    """Repeated until a batch is full, and cut again."""
    return network(x.repeat(4, 1))[: len(x)]


def views(network: nn.Module, x: Tensor) -> Any:
    return mean_of(network(torch.cat([x, x.flip(1)])), 2)


#: What is done around a network that repeats no draw.
HEALTHY: dict[str, Callable[[Any, Tensor], Any]] = {
    "alone": lambda n, x: n(x),
    "mean of passes": lambda n, x: torch.stack([n(x) for _ in range(4)]).mean(0),
    "augmented views": views,
    "a full batch": filled,
    "heads of an ensemble": heads,
    "copies that are not averaged": lambda n, x: {"all": n(x.repeat(2, 1)).view(2, len(x), -1).flip(0)[0]},
    "dropout tells copies apart": lambda n, x: mean_of(n(nn.functional.dropout(x.repeat(4, 1), 0.2)), 4),
    "row by row": lambda n, x: torch.vmap(lambda row: n(row[None])[0], randomness="same")(x),
    "checkpoints": in_blocks(use_reentrant=False),
    "reentrant checkpoints": in_blocks(use_reentrant=True),
    "checkpoints that draw anew": in_blocks(use_reentrant=False, preserve_rng_state=False),
    "noise on the gradient": noisy_gradients,
    "no gradient": lambda n, x: n(x).detach(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", HEALTHY)
def test_networks_that_repeat_no_draw(name: str) -> None:
    """Copies, checkpoints and noise of other kinds are no repetition."""
    found = judged(HEALTHY[name])
    assert found.verdict is Verdict.PASS, found.explain()
    assert "no factory was given" in found.notes[-1]


@pytest.mark.parametrize("copies", [2, 8])
def test_copies_whose_noise_has_the_batch_s_dimension(copies: int) -> None:
    """Flipout's signs and local reparameterisation differ from row to row: several draws, or something like it."""

    def repeated(network: nn.Module, x: Tensor) -> Any:
        return mean_of(network(x.repeat(copies, 1)), copies)

    for model in (Around(bayesian("Flipout"), repeated), Around(local(bayesian()), repeated)):
        found = measure_noise_fresh(model, images=images())
        assert found.verdict is Verdict.PASS, found.explain()


#: One draw, taken for several samples.
COPIES: dict[str, tuple[int, Callable[[Any, Tensor], Any]]] = {
    "batches": (8, lambda n, x: mean_of(n(x.repeat(8, 1)), 8)),
    "probabilities": (8, lambda n, x: mean_of(n(x.repeat(8, 1)).softmax(1), 8).log()),
    "neighbours": (5, lambda n, x: n(x.repeat_interleave(5, 0)).view(len(x), 5, -1).mean(1)),
    "a dimension before": (3, lambda n, x: n(x.expand(3, *x.shape)).mean(0)),
    "a dimension behind": (3, lambda n, x: n(x[:, None].expand(-1, 3, -1)).mean(1)),
    "features": (6, lambda n, x: mean_of(n[2:](n[:2](x).repeat(6, 1)), 6)),
    "mean and variance": (
        4,
        lambda n, x: torch.cat([mean_of(n(x.repeat(4, 1)), 4), n(x.repeat(4, 1)).view(4, len(x), -1).var(0)], 1),
    ),
    "vmap": (4, lambda n, x: torch.vmap(n, randomness="same")(x.expand(4, *x.shape)).mean(0)),
    "vmap over nothing": (
        4,
        lambda n, x: torch.vmap(lambda zero: n(x) + zero, randomness="same")(torch.zeros(4)).mean(0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in COPIES if name != "mean and variance"])
def test_copies_that_are_one_draw(name: str) -> None:
    """They are counted, and the layer is named; the oracle is their variance by hand, which is nothing."""
    copies, forward = COPIES[name]
    found = judged(forward)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert found["copies that share a draw"] == copies
    assert f"The {copies} samples of a call are one draw: `network.4` gets" in found.headline
    assert [layer.path for layer in found.layers] == ["network.4"]
    network = bayesian()
    with torch.no_grad():
        assert float(network(images().repeat(4, 1)).view(4, 12, 4).std(0).max()) < 1e-5 < float(network(images()).std())


def seeded_at_the_end(network: nn.Module, x: Tensor) -> Any:
    y = network(x)
    torch.manual_seed(1234)
    return y


class Counting(Around):
    """Seeds by the number of the pass: passes differ, and every restart repeats them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, lambda n, x: n(x))
        self.passes = 0

    def forward(self, x: Tensor) -> Any:
        self.passes += 1
        torch.manual_seed(self.passes)
        return super().forward(x)


STATE = torch.Generator().manual_seed(5).get_state()


def put_back(network: nn.Module, x: Tensor) -> Any:
    y = network(x)
    torch.set_rng_state(STATE)
    return y


@pytest.mark.parametrize("name", ["at the end", "by the pass", "a state"])
def test_a_forward_that_resets_the_generator(name: str) -> None:
    """What is drawn after it repeats, though two passes in a row may differ."""
    models = {
        "at the end": Around(bayesian(), seeded_at_the_end),
        "by the pass": Counting(bayesian()),
        "a state": Around(bayesian(), put_back),
    }
    found = measure_noise_fresh(models[name], images=images(), factory=lambda: copy.deepcopy(models[name]))
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "A forward pass resets the global random generator" in found.headline
    assert "torch.manual_seed()" in found.remedy


def test_passes_that_are_equal_are_for_another_check() -> None:
    """One fault, one accusation."""

    def seeded(network: nn.Module, x: Tensor) -> Any:
        torch.manual_seed(0)
        return network(x)

    found = judged(seeded)
    assert (found.verdict, "see noise.source" in found.headline) == (Verdict.NOT_APPLICABLE, True)


class Again(torch.autograd.Function):
    """Checkpointing by hand, that forgets to put the random state back."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor) -> Tensor:
        ctx.block, ctx.x, ctx.state = block, x.detach().requires_grad_(), torch.get_rng_state()
        with torch.no_grad():
            found: Tensor = block(x)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        torch.set_rng_state(ctx.state)
        with torch.enable_grad():
            ctx.block(ctx.x).backward(gradients[0])
        return None, ctx.x.grad


def by_hand(network: Any, x: Tensor) -> Any:
    x = x + 0 * next(network.parameters()).sum()
    for block in (network[:2], network[2:]):
        x = Again.apply(block, x)
    return x


def reset_by_a_hook(network: nn.Module, x: Tensor) -> Any:
    y = network(x)
    if y.requires_grad:
        y.register_hook(lambda _: torch.manual_seed(0) and None)
    return y


@pytest.mark.parametrize(("forward", "words"), [(by_hand, "in the middle of the forward"), (reset_by_a_hook, "same")])
def test_a_backward_that_repeats_draws(forward: Callable[..., Any], words: str) -> None:
    """The pass after it draws what was drawn before: shown here by hand."""
    found = judged(forward)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "The backward pass repeats draws" in found.headline
    assert words in found.headline
    if forward is by_hand:
        network = bayesian()
        torch.manual_seed(3)
        by_hand(network, images()).sum().backward()
        again = torch.randn(4)
        torch.manual_seed(3)
        with torch.no_grad():
            network[:2](images())  # type: ignore[index]
        assert torch.equal(again, torch.randn(4))


def own_generators(network: nn.Module, generators: Any) -> nn.Module:
    """Each layer draws from a generator of its own."""

    def forward(self: Any, x: Tensor) -> Tensor:
        sigma, generator = nn.functional.softplus(self.rho_weight), self.generator
        noise = torch.randn(sigma.shape, generator=generator, dtype=sigma.dtype)
        return nn.functional.linear(x, self.mu_weight + sigma * noise, self.mu_bias)

    for layer, generator in zip(bayesian_layers(network), generators, strict=False):
        layer.module.generator = generator
        layer.module.forward = types.MethodType(forward, layer.module)
    return network


def seeds(first: int = 0) -> Any:
    return (torch.Generator().manual_seed(number) for number in itertools.count(first))


def entropy() -> Any:
    while True:
        generator = torch.Generator()
        generator.seed()
        yield generator


def from_the_global_one() -> Any:
    while True:
        yield torch.Generator().manual_seed(int(torch.randint(2**40, ())))


def of_numpy() -> nn.Module:
    """Noise of numpy, from a fixed seed."""
    network = bayesian()
    state = numpy.random.default_rng(0)

    def forward(self: Any, x: Tensor) -> Tensor:
        sigma = nn.functional.softplus(self.rho_weight)
        noise = torch.tensor(state.standard_normal(sigma.shape), dtype=torch.float32)
        return nn.functional.linear(x, self.mu_weight + sigma * noise, self.mu_bias)

    for layer in bayesian_layers(network):
        layer.module.forward = types.MethodType(forward, layer.module)
    return network


def of_a_list() -> nn.Module:
    """Eight draws that were made once, in turn."""
    network = bayesian()
    for layer in bayesian_layers(network):
        shape = layer.tensors[0].mu.shape
        kept = itertools.cycle(torch.randn(8, *shape, generator=torch.Generator().manual_seed(7)).unbind())

        def forward(self: Any, x: Tensor, kept: Any = kept) -> Tensor:
            weight = self.mu_weight + nn.functional.softplus(self.rho_weight) * next(kept)
            return nn.functional.linear(x, weight, self.mu_bias)

        layer.module.forward = types.MethodType(forward, layer.module)
    return network


def trained_from_chance() -> nn.Module:
    """Another start each time, and the same noise: the outputs differ, the draws do not."""
    torch.seed()
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    return own_generators(pytest_bnn.convert(network, moped_delta=0.2).eval(), seeds())


class Halved(nn.Module):
    """Weights that are rounded as coarsely as bfloat16's: half of their noise is lost."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, x: Tensor) -> Any:
        return self.network(x.bfloat16())


#: Factories whose models repeat each other, and how many layers do.
REPEATING: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "own generators": (lambda: own_generators(bayesian(), seeds()), 3),
    "two own generators": (lambda: own_generators(bayesian(), itertools.islice(seeds(3), 2)), 2),
    "numpy": (of_numpy, 3),
    "a list": (of_a_list, 3),
    "trained from chance": (trained_from_chance, 2),
    "bfloat16": (lambda: Halved(own_generators(bayesian(), seeds())), 3),
}


@pytest.mark.parametrize("name", REPEATING)
def test_models_that_repeat_each_other(name: str) -> None:
    """By their draws and not by their outputs, with the layers named."""
    make, layers = REPEATING[name]
    found = measure_noise_fresh(make(), images=images(), factory=make)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "Two models of the factory draw the same noise" in found.headline
    assert len(found.layers) == found["layers that repeat another model's draws"] == layers
    assert ("start from fixed seeds" in found.headline) == ("numpy" not in name and "list" not in name)


#: Factories whose models draw other noise.
FRESH: dict[str, Callable[[], nn.Module]] = {
    "the library's": bayesian,
    "Flipout": lambda: bayesian("Flipout"),
    "seeds from entropy": lambda: own_generators(bayesian(), entropy()),
    "seeds from the global generator": lambda: own_generators(_without_seed(), from_the_global_one()),
}


def _without_seed() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    return pytest_bnn.convert(network, moped_delta=0.2).eval()


@pytest.mark.parametrize("name", FRESH)
def test_models_that_do_not(name: str) -> None:
    """Also where the factory seeds the global generator itself."""
    found = measure_noise_fresh(FRESH[name](), images=images(), factory=FRESH[name])
    assert found.verdict is Verdict.PASS, found.explain()
    assert found["layers that repeat another model's draws"] == 0


def test_factories_that_say_nothing() -> None:
    """One that raises, gives the same network or something else, or is slow, is no fault, and is not called in vain."""
    kept = own_generators(bayesian(), seeds())
    calls = []

    def raises() -> nn.Module:
        calls.append(1)
        raise RuntimeError("the file is gone")

    wrapped = lambda: Around(kept, lambda n, x: n(x))  # noqa: E731
    unhelpful: tuple[tuple[Any, str], ...] = (
        (raises, "raised RuntimeError: the file is gone"),
        (lambda: kept, "returns the same network"),
        (wrapped, "returns the same network, or parts of it"),
        (lambda: "a path", "returned str"),
    )
    for factory, words in unhelpful:
        found = measure_noise_fresh(kept, images=images(), factory=factory)
        assert found.verdict is Verdict.PASS, found.explain()
        assert words in found.notes[-1]
    slow = Factory(raises)
    slow.seconds = _builds.FIRST_SECONDS + 1
    calls.clear()
    found = measure_noise_fresh(kept, images=images(), factory=slow)
    assert (found.verdict, calls) == (Verdict.PASS, [])
    assert "is not called again" in found.notes[-1]


def test_the_factory_leaves_the_random_state_alone() -> None:
    """It may seed: that is undone."""
    torch.manual_seed(8)
    before = torch.get_rng_state()
    model = own_generators(bayesian(), entropy())
    torch.set_rng_state(before)
    measure_noise_fresh(model, images=images(), factory=bayesian)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_bayesian_layer() -> None:
    """There is no noise to judge."""
    found = measure_noise_fresh(nn.Linear(6, 2), images=images())
    assert found.verdict is Verdict.NOT_APPLICABLE


def test_a_factory_is_a_function() -> None:
    """Said before anything is looked at."""
    with pytest.raises(TypeError, match="factory must be a function"):
        measure_noise_fresh(bayesian(), images=images(), factory=bayesian())


# --- a module that puts the generator back ------------------------------------------------------------------------


class Inside(nn.Module):
    """Calls what it is given instead of a module."""

    def __init__(self, module: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self._forward = module, forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self.module, x)


def forked(module: nn.Module, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        out: Tensor = module(x)
    return out


def put_back_by_hand(module: nn.Module, x: Tensor) -> Tensor:
    state = torch.get_rng_state()
    out: Tensor = module(x)
    torch.set_rng_state(state)
    return out


def with_entropy(module: nn.Module, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        out: Tensor = module(x)
    return out


def derived(module: nn.Module, x: Tensor) -> Tensor:
    """The state goes on by one number, from which the module's own draws begin."""
    seed = int(torch.randint(2**31, ()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out: Tensor = module(x)
    return out


def with_noise_from_before(module: nn.Module, x: Tensor) -> Tensor:
    """The noise was drawn when the pass began; the module draws nothing."""
    any_layer: Any = module
    out: Tensor = nn.functional.linear(x, any_layer.mu_weight + any_layer.noise, any_layer.mu_bias)
    return out


def around_layer(forward: Callable[[nn.Module, Tensor], Tensor], estimator: str, at: int = 2) -> nn.Module:
    network: Any = bayesian(estimator)
    network[at] = Inside(network[at], forward)
    return Around(network, lambda n, x: n(x))


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
@pytest.mark.parametrize("how", [forked, put_back_by_hand])
def test_a_layer_that_puts_the_generator_back(how: Callable[[nn.Module, Tensor], Tensor], estimator: str) -> None:
    """The oracle is the generator: the next draw after the layer is the layer's own first one."""
    model: Any = around_layer(how, estimator)
    inner, drawn = model.network[2], []
    with torch.no_grad():
        torch.manual_seed(3)
        inner(torch.zeros(1, 16))
        drawn.append(torch.randn(4))
        torch.manual_seed(3)
        drawn.append(torch.randn(4))
    assert torch.equal(*drawn)
    found = measure_noise_fresh(model, images=images())
    assert found.verdict is Verdict.FAIL, found.explain()
    assert found.headline.startswith("The forward of `network.2` puts back the global random generator")
    assert [layer.path for layer in found.layers] == ["network.2"]


def test_a_block_that_puts_the_generator_back_is_named_as_a_whole() -> None:
    network: Any = bayesian()
    model = Around(nn.Sequential(Inside(network[:3], forked), network[3:]), lambda n, x: n(x))
    found = measure_noise_fresh(model, images=images())
    assert found.verdict is Verdict.FAIL, found.explain()
    assert [layer.path for layer in found.layers] == ["network.0"]


@pytest.mark.parametrize("how", [with_entropy, derived])
def test_a_layer_that_forks_the_generator_and_draws_anew(how: Callable[[nn.Module, Tensor], Tensor]) -> None:
    found = measure_noise_fresh(around_layer(how, "Reparameterization"), images=images())
    assert found.verdict is Verdict.PASS, found.explain()


def test_a_layer_with_a_generator_of_its_own_leaves_the_global_one_alone() -> None:
    generator = torch.Generator()
    generator.seed()

    def own(module: Any, x: Tensor) -> Tensor:
        sigma = nn.functional.softplus(module.rho_weight)
        noise = sigma * torch.empty_like(sigma).normal_(generator=generator)
        return nn.functional.linear(x, module.mu_weight + noise, module.mu_bias)

    found = measure_noise_fresh(around_layer(own, "Reparameterization"), images=images())
    assert found.verdict is Verdict.PASS, found.explain()


def test_noise_that_is_drawn_where_a_pass_begins() -> None:
    """The layers leave the generator as it was, since they draw nothing."""
    network: Any = bayesian()
    for at in (0, 2, 4):
        network[at] = Inside(network[at], with_noise_from_before)

    def drawing(n: Any, x: Tensor) -> Any:
        for at in (0, 2, 4):
            sigma = nn.functional.softplus(n[at].module.rho_weight)
            n[at].module.noise = sigma * torch.randn_like(sigma)
        return n(x)

    found = measure_noise_fresh(Around(network, drawing), images=images())
    assert found.verdict is Verdict.PASS, found.explain()
