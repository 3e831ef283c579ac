"""The Monte-Carlo engine: what counts as an output, and passes that are the same whoever asks for them."""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy
import pytest
import scipy.special
import torch
import torch.fx
from bayesian_torch.layers import LinearReparameterization
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import ForwardError, forward, output_tensor
from pytest_bnn.sampling import bank as sampling
from pytest_bnn.sampling.bank import PassBank, pass_seed, probabilities
from pytest_bnn.sampling.own import undisturbed_passes, unwritten


def converted(estimator: Any = "Reparameterization") -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return convert(model, type=estimator, moped_delta=0.5)


def images(count: int = 7) -> Tensor:
    return torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def drawn(bank: PassBank, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
    return torch.cat([*bank.blocks(start, stop, rows)])


class Pair(NamedTuple):
    out: Tensor
    kl: Tensor


LOGITS = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, torch.tensor(1.0)),
        [LOGITS],
        Pair(LOGITS, torch.tensor(1.0)),
        {"logits": LOGITS, "loss": torch.tensor(1.0)},
        OrderedDict(loss=torch.tensor(1.0), logits=LOGITS),
        SimpleNamespace(logits=LOGITS),
        ({"logits": LOGITS}, torch.tensor(1.0)),
    ],
    ids=["tensor", "(out, kl)", "list", "named tuple", "dict", "model output", "object", "nested"],
)
def test_the_logits_are_found_in_what_models_return(output: Any) -> None:
    """Hand-made Bayesian layers return (out, kl), transformers objects with logits (FAULTS A27)."""
    assert output_tensor(output) is LOGITS


@pytest.mark.parametrize("output", ["logits", None, (), [], {"out": LOGITS}, 3.0, ("a", LOGITS)])
def test_what_holds_no_logits_is_a_type_error(output: Any) -> None:
    """Guessing an entry would audit the wrong tensor."""
    with pytest.raises(TypeError, match="the model returned"):
        output_tensor(output)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.floats(-700, 700), min_size=3, max_size=3), min_size=1, max_size=5))
def test_logits_become_scipys_softmax(rows: list[list[float]]) -> None:
    """In float64, over the last dimension, whatever their size."""
    logits = torch.tensor(rows, dtype=torch.float64) - 1000
    expected = torch.from_numpy(scipy.special.softmax(logits.numpy(), axis=-1))
    torch.testing.assert_close(probabilities(logits), expected, rtol=1e-10, atol=1e-300)


def test_probabilities_stay_as_they_are() -> None:
    """A model that ends in softmax must not be softmaxed again: it would look twice as unsure (FAULTS B14)."""
    given_ones = torch.softmax(torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.equal(probabilities(given_ones), given_ones)
    one_hot = torch.eye(3)
    assert torch.equal(probabilities(one_hot), one_hot)


def test_one_row_that_is_no_distribution_makes_all_of_them_logits() -> None:
    """The decision is about the model, not about single rows."""
    outputs = torch.tensor([[0.5, 0.5], [0.5, 0.7]])
    torch.testing.assert_close(probabilities(outputs), torch.softmax(outputs, dim=-1))
    signed = torch.tensor([[1.5, -0.5]])
    torch.testing.assert_close(probabilities(signed), torch.softmax(signed, dim=-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_probabilities(dtype: torch.dtype) -> None:
    """Eight bits of mantissa are too few for a mean over passes."""
    logits = torch.tensor([[1.0, 2.0, 4.0]], dtype=dtype)
    found = probabilities(logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.softmax(logits.float(), dim=-1))


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_a_pass_is_the_same_in_any_order(estimator: Any) -> None:
    """Checks ask in their own order, one alone or all; their numbers must not depend on it."""
    model = converted(estimator)
    forwards = PassBank(model, images(), 3).draw(0, 5)
    bank = PassBank(model, images(), 3)
    backwards = torch.cat([bank.draw(k, k + 1) for k in (4, 2, 0, 3, 1)])[[2, 4, 1, 3, 0]]
    assert torch.equal(forwards, backwards)
    grown = PassBank(model, images(), 3)
    drawn(grown, 0, 2)
    assert torch.equal(drawn(grown, 0, 5), forwards)
    assert torch.equal(drawn(grown, 0, 1), forwards[:1])
    assert torch.equal(drawn(grown, 3, 5), forwards[3:])


@pytest.mark.parametrize("rows", [None, torch.tensor([5, 0, 3])], ids=["all images", "some"])
@pytest.mark.parametrize("block", [1, 200, 10_000], ids=["a pass a block", "a block of two passes", "one block"])
@pytest.mark.parametrize("kept", [0, 300, 10_000], ids=["none kept", "two kept", "all kept"])
def test_blocks_are_the_passes(kept: int, block: int, rows: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are kept and drawn at a time: a pass of seven images with four classes has 112 bytes."""
    monkeypatch.setattr(sampling, "KEPT", kept)
    monkeypatch.setattr(sampling, "BLOCK", block)
    model = converted()
    passes = PassBank(model, images(), 3).draw(0, 9)
    wanted = passes if rows is None else passes[:, rows]
    bank = PassBank(model, images(), 3, numbers=4)
    torch.testing.assert_close(drawn(bank, 0, 4), passes[:4])
    for start, stop in ((0, 4), (2, 9), (6, 8), (0, 9), (0, 1), (3, 3)):
        found = [*bank.blocks(start, stop, rows)]
        assert sum(len(one) for one in found) == stop - start
        assert kept or all(one.nbytes <= max(block, one[0].nbytes) for one in found), "a kept block is as it was drawn"
        if found:
            torch.testing.assert_close(torch.cat(found), wanted[start:stop])
    assert bank.kept_bytes <= kept
    assert bank.drawn == (4 if rows is not None else 9)


def test_what_is_kept_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of an audit ask for the same passes; what does not fit is drawn anew, and a loop may end early."""
    model = converted()
    bank = PassBank(model, images(), 3, sampler="own")
    asked: list[tuple[int, int]] = []
    draw = PassBank.draw

    def watched(bank: PassBank, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        asked.append((start, stop))
        return draw(bank, start, stop, rows)

    monkeypatch.setattr(PassBank, "draw", watched)
    drawn(bank, 0, 4)
    drawn(bank, 1, 6)
    drawn(bank, 0, 6, torch.arange(2))
    next(bank.blocks(0, 6))
    assert asked == [(0, 4), (4, 6)]
    asked.clear()
    monkeypatch.setattr(sampling, "KEPT", 7 * 112)
    drawn(bank, 0, 9)
    drawn(bank, 0, 9)
    drawn(bank, 7, 9, torch.arange(2))
    assert asked == [(6, 9), (7, 9), (7, 9)]
    assert bank.kept_bytes == 7 * 112


@pytest.mark.parametrize("rows_a_chunk", [1, 2, 3, 7, 100])
def test_a_pass_is_the_same_for_any_chunking(rows_a_chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw of the weights serves all images of a pass, as in the library, also when memory splits them."""
    whole = PassBank(converted(), images(), 3, sampler="own").draw(0, 3)
    monkeypatch.setattr(sampling, "_CHUNK", rows_a_chunk * images()[0].numel())
    sizes = []
    model = converted()
    model.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    torch.testing.assert_close(PassBank(model, images(), 3).draw(0, 3), whole)
    assert max(sizes) == min(7, rows_a_chunk)
    assert sum(sizes) == 21


def test_an_image_larger_than_a_chunk_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on memory gives way to one image at a time, not to none."""
    monkeypatch.setattr(sampling, "_CHUNK", 1)
    assert PassBank(converted(), images(2), 3).draw(0, 1).shape == (1, 2, 4)


def test_some_rows_are_those_rows_of_the_full_pass() -> None:
    """Sequential tests drop decided images; the passes of the others go on unchanged."""
    bank = PassBank(converted(), images(), 3)
    full, rows = bank.draw(2, 6), torch.tensor([5, 0, 3])
    torch.testing.assert_close(bank.draw(2, 6, rows), full[:, rows])


def test_passes_differ_and_follow_the_seed() -> None:
    """Same seed, same numbers; another seed or another pass, other ones."""
    model = converted()
    one, same, other = (PassBank(model, images(), seed).draw(0, 4) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    for a in range(4):
        for b in range(a):
            assert not torch.allclose(one[a], one[b])


def in_place(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def replaced_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5


def from_a_vector(model: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector * 0.5, model.parameters())


@pytest.mark.parametrize("sampler", ["engine", "native"])
@pytest.mark.parametrize("change", [in_place, replaced_data, from_a_vector])
def test_passes_after_a_change_behind_autograds_back_are_the_changed_models(change: Any, sampler: str) -> None:
    """``.data``, by which averages of weights and optimizers write, leaves no mark; mu and sigma even disagreed."""
    model = converted()
    bank = PassBank(model, images(), 3, sampler=sampler)
    before = bank.draw(0, 2)
    change(model)
    after = bank.draw(0, 2)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, PassBank(model, images(), 3, sampler=sampler).draw(0, 2), rtol=0, atol=0)


@pytest.mark.parametrize("sampler", ["own", "engine", "native"])
def test_passes_that_are_kept_are_never_put_beside_those_of_a_changed_model(sampler: str) -> None:
    """Fine-tuned between two readings, the first passes were the old model's and the further ones the new one's."""
    model = converted()
    bank = PassBank(model, images(), 3, sampler=sampler)
    before = torch.cat(list(bank.blocks(0, 2)))
    assert torch.equal(torch.cat(list(bank.blocks(0, 2))), before)
    assert bank.kept_bytes == before.nbytes
    with torch.no_grad():
        model.get_parameter("0.mu_kernel").add_(1e-3)
    after = torch.cat(list(bank.blocks(0, 4)))
    torch.testing.assert_close(after, PassBank(model, images(), 3, sampler=sampler).draw(0, 4), rtol=0, atol=0)
    assert not torch.equal(after[:2], before)


def test_passes_are_draws_from_the_posterior() -> None:
    """One linear weight mu +- sigma: mean and standard deviation over passes, within 6 standard errors."""
    layer = LinearReparameterization(1, 1, bias=False)
    layer.dnn_to_bnn_flag = True
    with torch.no_grad():
        layer.mu_weight.fill_(2.0)
        layer.rho_weight.fill_(0.5)
    sigma = float(torch.nn.functional.softplus(torch.tensor(0.5)))
    passes = PassBank(layer.eval(), torch.ones(1, 1), 0).draw(0, 2000).flatten().double()
    assert float(passes.mean()) == pytest.approx(2.0, abs=6 * sigma / 2000**0.5)
    assert float(passes.std()) == pytest.approx(sigma, abs=6 * sigma / (2 * 2000) ** 0.5)


def test_the_global_generators_are_left_alone() -> None:
    """A check between two lines of a user's seeded test must not change what follows."""
    model = converted()
    state = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    PassBank(model, images(), 3).draw(0, 2)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert numpy.random.get_state()[1].tolist() == state[1]  # type: ignore[index]
    assert random.getstate() == state[2]


def test_the_users_seed_does_not_reach_the_passes() -> None:
    """The passes come from the audit's seed alone, so a report can be repeated."""
    model = converted()
    torch.manual_seed(1)
    one = PassBank(model, images(), 3).draw(0, 2)
    torch.manual_seed(2)
    assert torch.equal(PassBank(model, images(), 3).draw(0, 2), one)


def test_a_model_in_training_mode_is_sampled_in_eval_mode() -> None:
    """Sampling in training mode changes BatchNorm's running statistics (FAULTS B13)."""
    model = convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten())).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    noise = next(b.clone() for name, b in model.named_buffers() if name.endswith("eps_kernel"))
    passes = PassBank(model, images(), 0).draw(0, 2)
    assert not bool((passes == 0).any()), "dropout was active"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    after = next(b for name, b in model.named_buffers() if name.endswith("eps_kernel"))
    torch.testing.assert_close(after, noise, rtol=0, atol=0, equal_nan=True)
    assert model.training
    assert not passes.requires_grad


def test_pass_seeds_are_distinct_and_fit_torch() -> None:
    """Neighbouring audits' passes must not be shifted copies of each other."""
    seeds = [pass_seed(seed, index) for seed in (0, 1, 2, 2**40) for index in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert pass_seed(3, 4) == pass_seed(3, 4) != pass_seed(4, 3)


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (RuntimeError("first line\nsecond line"), "RuntimeError: first line"),
        (KeyError("a"), "KeyError: 'a'"),
        (ValueError(), "ValueError: "),
        (ValueError("\n"), "ValueError: "),
    ],
)
def test_a_models_own_error_is_wrapped_in_one_line(raised: Exception, wanted: str) -> None:
    """A broken model is a finding, not a traceback; whatever it says, the cause stays attached."""

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise raised

    with pytest.raises(ForwardError) as caught:
        PassBank(Broken(), images(), 0).draw(0, 1)
    assert str(caught.value) == wanted
    assert caught.value.__cause__ is raised


def test_an_output_that_is_no_tensor_is_a_forward_error() -> None:
    """The caller handles one kind of error for one forward."""

    class Words(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "cat"

    with pytest.raises(ForwardError, match="returned a str"):
        forward(Words(), images())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Tensor.mean, "tensor of shape []"),
        (lambda x: x.mean(0), "tensor of shape [4]"),
        (lambda x: x[:, :0], "tensor of shape [7, 0]"),
        (lambda x: x + 0j, "complex tensor of shape [7, 4]"),
    ],
    ids=["a number", "the images' mean", "no classes", "complex"],
)
def test_an_output_without_rows_of_numbers_is_a_forward_error(change: Any, told: str) -> None:
    """Nothing could be said about an image."""

    class Changed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return change(x.flatten(1)[:, :4])

    with pytest.raises(ForwardError) as caught:
        forward(Changed(), images())
    assert f"returned a {told} for 7 inputs, and not a row of real numbers for each" in str(caught.value)


def test_ctrl_c_is_not_swallowed() -> None:
    """Only errors of the model are findings."""

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forward(Slow(), images())


def noise_of(model: nn.Module) -> list[Tensor]:
    return [noise.clone() for layer in bayesian_layers(model) for noise in layer.noise]


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_noise_buffers_are_put_back_whatever_happens(estimator: str, error: type[BaseException] | None) -> None:
    """They are not copied beforehand where every module is known: a pending backward needs what is in them."""
    model: Any = converted(estimator)
    model(images())
    before, addresses = noise_of(model), [n.data_ptr() for layer in bayesian_layers(model) for n in layer.noise]
    assert any(bool(noise.any()) for noise in before)
    forward_of = type(model[2]).forward

    def stopped(*args: Any, **kwargs: Any) -> Any:
        out = forward_of(*args, **kwargs)
        if error is not None:
            raise error
        return out

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.nullcontext() if error is None else pytest.raises(error),
        undisturbed_passes(model, seed=0),
        torch.no_grad(),
    ):
        assert [n.data_ptr() for layer in bayesian_layers(model) for n in layer.noise] == addresses
        patch.setattr(type(model[2]), "forward", stopped)
        model(images())
    assert all(torch.equal(one, other) for one, other in zip(noise_of(model), before, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Writing(nn.Module):
    """Somebody's module: nobody knows what its forward does."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize(
    "change", ["none", "hook", "forward", "module", "traced", "scripted", "noise in the prior's memory"]
)
def test_only_modules_that_are_known_are_trusted_not_to_write(change: str) -> None:
    model: Any = converted()
    if change == "hook":
        model[0].register_forward_hook(lambda *_: None)
    if change == "forward":
        model[2].forward = lambda x: x
    if change == "module":
        model.append(Writing())
    if change == "traced":
        model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(18, 4)))
    if change == "scripted":
        model = torch.jit.trace(nn.Linear(18, 4), torch.zeros(1, 18))
    if change == "noise in the prior's memory":
        model[0].eps_kernel = model[0].prior_weight_mu
    trusted = {id(tensor) for tensor in unwritten(model)}
    everything = {id(parameter) for parameter in model.parameters()}
    priors = {id(buffer) for name, buffer in model.named_buffers() if "prior_" in name}
    if change in ("none", "noise in the prior's memory"):
        shared = {id(model[0].prior_weight_mu)} if change != "none" else set()
        assert trusted == everything | priors - shared
    else:
        assert not trusted
