"""Devices: which are there, how a network gets to one, what their errors mean, and what the settings decide."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import pytest_bnn
from pytest_bnn.checks import judging
from pytest_bnn.checks.registry import load
from pytest_bnn.conversion import convert
from pytest_bnn.data import placement
from pytest_bnn.errors import InputError
from pytest_bnn.network import devices, precision
from pytest_bnn.options import Level, Settings, Source, using
from pytest_bnn.reading import device
from pytest_bnn.subject import Subject
from tests.pretending import pretending

CPU = torch.device("cpu")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_names_of_devices() -> None:
    """auto takes what is there; each has a number, as the device of a tensor has."""
    assert devices.find("cpu") == CPU
    with pretending("cuda"):
        assert devices.find("auto") == devices.find("cuda") == devices.find("cuda:0") == torch.device("cuda", 0)
        assert devices.named(torch.device("cuda", 0)) == "cuda:0 (a card that is not there)"
        with pytest.raises(InputError, match=r"--device is 'cuda:3', and .* sees 1, of which the last is cuda:0"):
            devices.find("cuda:3", "--device")
    with pretending("mps"):
        assert devices.find("auto") == devices.find("mps") == torch.device("mps", 0)
        with pytest.raises(InputError, match=r"there is no such device.* Take auto"):
            devices.find("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs where torch finds no CUDA device")
def test_a_device_that_is_not_there() -> None:
    """One line says what named it, why it is not there, and what to do."""
    said = Settings(device="cuda"), {"device": Source(Level.ENVIRONMENT, "PYTEST_BNN_DEVICE")}
    with using(*said), pytest.raises(InputError, match="PYTEST_BNN_DEVICE is 'cuda', and there is no such") as caught:
        Subject(network())
    assert torch.__version__ in str(caught.value)
    assert "take auto" in caught.value.fix


@pytest.mark.parametrize("text", ["", "auto", "cpu", "cuda", "cuda:1", "mps"])
def test_a_setting_of_a_device_is_read_as_it_is(text: str) -> None:
    assert device(text) == text


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "mps:1", "cpu:0", "cuda:-1"])
def test_other_words_are_no_device(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  what the reader says is in its docstring
        device(text)
    assert type(caught.value) is ValueError


def test_what_shares_memory_shares_it_after_a_move() -> None:
    """Across networks, in parameters and buffers, by views too: parting them would hide what memory.separate finds."""
    one: Any = network()
    other = network()
    first, second = one.get_submodule("0"), other.get_submodule("0")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    second.weight.data = first.weight.data
    second.bias.data = first.weight.data[:, 0]
    one.register_buffer("kept", first.bias.data[2:])
    one.register_buffer("again", one.kept)
    values = copy.deepcopy(one.state_dict()), copy.deepcopy(other.state_dict())
    with pretending() as seen:
        copied = devices.copies([one, other], seen.device)
        assert devices.where(one) == CPU
        devices.move([one, other], seen.device)
        for pair in ([one, other], copied):
            a, b = pair[0].get_submodule("0"), pair[1].get_submodule("0")
            assert all(devices.is_on(each, seen.device) for each in pair)
            for each, state in zip(pair, values, strict=True):
                assert all(torch.equal(value.cpu(), state[name]) for name, value in each.state_dict().items())
            with torch.no_grad():
                a.weight.add_(1)  # type: ignore[operator]
                a.bias.add_(1)  # type: ignore[operator]
            assert torch.equal(b.weight, a.weight)  # type: ignore[arg-type]
            assert torch.equal(b.bias, a.weight[:, 0])  # type: ignore[arg-type,index]
            assert torch.equal(pair[0].kept, a.bias[2:])  # type: ignore[arg-type,index]
            assert pair[0].kept is pair[0].again
        assert not torch.equal(one.get_parameter("0.weight").cpu(), values[0]["0.weight"])


def test_a_users_network_is_never_moved() -> None:
    """A copy is judged on the device of the settings; one that is there is judged itself."""
    teacher, model = network(), convert(network())
    with pretending() as seen, using(Settings(device="cuda")):
        subject = Subject(model, teacher=teacher, images=torch.randn(4, 6))
        assert subject.model is not model
        assert devices.where(subject.model) == devices.where(subject.teacher or model) == seen.device
        assert subject.require_images().device == seen.device  # type: ignore[union-attr]
        assert devices.where(model) == devices.where(teacher) == CPU
        there = copy.deepcopy(model).to(seen.device)
        assert Subject(there).model is there
        placement.take(model, None)
        assert devices.where(model) == seen.device
    without = Subject(teacher)
    assert without.model is teacher


def test_a_network_that_cannot_be_copied_is_refused_with_the_fix() -> None:
    model = network()
    model.register_buffer("kept", model(torch.randn(1, 6)))  # with its graph
    words = r"copying the model to cuda:0 raised .*model.to\('cuda:0'\)"
    with pretending(), using(Settings(device="cuda")), pytest.raises(InputError, match=words):
        Subject(model)


@pytest.mark.parametrize("part", ["", "2"])
def test_a_network_without_numbers_cannot_be_moved_and_is_told_so(part: str) -> None:
    """``model.to`` is no remedy there: it is what raised."""
    model = network()
    model.get_submodule(part).to("meta")
    with using(Settings(device="cpu")):
        for put in (placement.take, Subject):
            with pytest.raises(InputError, match=r"[02].weight .*on the meta device.*Load its weights"):
                put(model)


def test_a_loss_that_holds_tensors_elsewhere_is_told_where_the_model_is() -> None:
    """What a loss closes over cannot be seen, and so not moved."""
    weights = torch.ones(3)

    def loss(model: nn.Module, batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=weights)

    images, labels = torch.randn(8, 6), torch.arange(8) % 3
    words = r"raised RuntimeError.*The model and its batch are on cuda:0.*device=x"
    with pretending(), using(Settings(device="cuda")), pytest.raises(InputError, match=words):
        pytest_bnn.measure_kl_loss(convert(network()), images=images, labels=labels, loss=loss, num_batches=3)


def test_a_check_that_a_device_cannot_compute_abstains() -> None:
    """It says what the device lacks; on the CPU the same error is the check's own defect."""
    check = load("layers.replaced")
    for said, words in (
        ("The operator 'aten::x' is not currently implemented for the MPS device", "an operation that cuda:0 does not"),
        ("Expected all tensors to be on the same device, but found cuda:0 and cpu!", "tensors of another device"),
    ):

        def breaks(*_: Any, said: str = said, **__: Any) -> Any:
            raise NotImplementedError(said)

        with pretending() as seen:
            subject = Subject(convert(network()).to(seen.device))
            found = judging.judged(check.declaration, subject, breaks, inside_an_audit=True)
            assert found.verdict.value == "not_applicable"
            assert words in found.headline
            assert "--device cpu" in found.headline
        on_cpu = judging.judged(check.declaration, Subject(convert(network())), breaks, inside_an_audit=True)
        assert on_cpu.verdict.value == "error"


_TYPES = "Input type ({}) and weight type ({}) should be the same"


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("mixed", RuntimeError, "Expected all tensors to be on the same device, but found at least cuda:0 and cpu!"),
        ("mixed", RuntimeError, _TYPES.format("torch.FloatTensor", "torch.cuda.FloatTensor")),
        ("mixed", RuntimeError, _TYPES.format("MPSFloatType", "torch.FloatTensor")),
        ("mixed", RuntimeError, "Placeholder storage has not been allocated on MPS device!"),
        ("mixed", RuntimeError, "indices should be either on cpu or on the same device as the indexed tensor (cpu)"),
        ("", RuntimeError, _TYPES.format("torch.cuda.DoubleTensor", "torch.cuda.FloatTensor")),
        ("", RuntimeError, "mat1 and mat2 shapes cannot be multiplied (4x6 and 8x3)"),
        ("float64", TypeError, "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it"),
        ("lacks", NotImplementedError, "The operator 'aten::x' is not currently implemented for the MPS device."),
        ("", RuntimeError, "\"x\" not implemented for 'Half'"),
        ("", ValueError, "Expected all tensors to be on the same device, but found at least cuda:0 and cpu!"),
    ],
)
def test_what_errors_say_of_devices(kind: str, error: type[Exception], text: str) -> None:
    """As torch words them, on cards of both makers; a dtype that does not fit is another matter."""
    assert devices.trouble(error(text)) == kind


def test_the_precision_of_products_is_read_whichever_way_it_was_set() -> None:
    """torch has two ways to choose TF32, and asking by the one raises after the other was used."""
    card = torch.device("cuda", 0)
    assert precision.coarse(CPU) == ""
    convolutions: Any = getattr(torch.backends.cudnn, "conv", None)
    if convolutions is None:
        pytest.skip("runs with torch 2.9 or newer, which has the second way")
    before = torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        convolutions.fp32_precision = "ieee"
        assert precision.coarse(card) == ""
        convolutions.fp32_precision = "tf32"
        assert (precision.coarse(card), precision.coarse(CPU)) == ("tf32", "")
        with precision.full(card):
            assert precision.coarse(card) == ""
        assert precision.coarse(card) == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision, convolutions.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"
