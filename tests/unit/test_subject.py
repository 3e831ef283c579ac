"""What is audited: its stage is found from the weights, and unusable data is refused with its place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.checks import measure_teacher_agreement
from pytest_bnn.conversion import convert
from pytest_bnn.data.given import does_not_accept
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.alignment import stage_of, weight_pairs
from pytest_bnn.libraries.fingerprint import cosine
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import ForwardError
from pytest_bnn.subject import Subject, fitted


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


def moved(teacher: nn.Module, by: float, layers: int = 3) -> nn.Module:
    """Return a conversion whose first layers' means were moved by a share of their own spread, as training does."""
    model = convert(teacher)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in bayesian_layers(model)[:layers]:
            mu = layer.tensors[0].mu
            mu.add_(by * torch.randn(mu.shape, generator=generator) * mu.std())
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_fresh_conversion_is_recognized(dtype: torch.dtype) -> None:
    """In every dtype: its means are the teacher's weights."""
    teacher = network(dtype)
    assert stage_of(convert(teacher), teacher) == "converted"
    assert Subject(convert(teacher), teacher=teacher).stage == "converted"


def test_a_finetuned_network_is_recognized() -> None:
    """Every mean moved a little: no longer equal, still aligned."""
    teacher = network()
    assert stage_of(moved(teacher, 0.01), teacher) == "finetuned"


def test_a_network_with_other_weights_is_unrelated() -> None:
    """With MOPED off, or from another teacher, the means have nothing to do with this one."""
    teacher = network()
    assert stage_of(convert(network(seed=9)), teacher) == "unrelated"
    torch.manual_seed(0)
    assert stage_of(convert(teacher, moped_enable=False), teacher) == "unrelated"


def test_means_that_were_exchanged_are_no_training() -> None:
    """Means that were exchanged are no training, as long as every sigma is where the conversion put it."""
    teacher = network()
    assert stage_of(moved(teacher, 5.0, layers=1), teacher) == "converted"
    assert stage_of(moved(teacher, 0.01, layers=2), teacher) == "finetuned"
    assert stage_of(moved(teacher, 5.0, layers=2), teacher) == "converted", "no sigma was ever trained"


def test_without_anything_to_compare_the_stage_is_unknown() -> None:
    """No teacher, nothing Bayesian, no shape in common: no guess."""
    teacher = network()
    assert stage_of(convert(teacher), None) == "unknown"
    assert stage_of(network(), teacher) == "unknown"
    assert stage_of(convert(nn.Sequential(nn.Linear(2, 2))), teacher) == "unknown"
    assert Subject(convert(teacher)).stage == "unknown"


def test_a_stage_that_was_given_is_believed() -> None:
    teacher = network()
    assert Subject(convert(teacher), teacher=teacher, stage="finetuned").stage == "finetuned"
    assert Subject(network(), stage="converted").stage == "converted"


def test_pairs_are_weights_at_the_same_path_and_of_the_same_shape() -> None:
    """Biases say little, and a replaced head has no partner."""
    teacher = network()
    model = convert(teacher)
    model._modules["4"] = bayesian_layers(convert(nn.Sequential(nn.Linear(16, 7))))[0].module
    pairs = weight_pairs(model, teacher)
    assert [tensor.name for tensor, _ in pairs] == ["0.weight", "2.weight"]
    assert all(torch.equal(tensor.mu, weight) for tensor, weight in pairs)
    assert not any(weight.requires_grad for _, weight in pairs)


def test_the_cosine_is_that_of_torch() -> None:
    """torch.nn.functional.cosine_similarity in float64 is the oracle; weights of 0 have no direction."""
    teacher = network()
    model = moved(teacher, 0.5)
    for tensor, weight in weight_pairs(model, teacher):
        expected = nn.functional.cosine_similarity(
            tensor.mu.detach().double().flatten(), weight.double().flatten(), dim=0
        )
        assert cosine(tensor, weight) == pytest.approx(float(expected), abs=1e-12)
    assert cosine(tensor, torch.zeros_like(weight)) != cosine(tensor, torch.zeros_like(weight))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "resnet18"}, r"model must be a torch\.nn\.Module, not str"),
        ({"model": None}, r"model must be a torch\.nn\.Module, not NoneType"),
        ({"teacher": lambda x: x}, r"teacher must be a torch\.nn\.Module, not function"),
        ({"loss": 3}, "loss must be a function"),
        ({"images": ["dog.jpg"]}, "images must be a tensor"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Subject(given.pop("model", network()), **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"stage": "trained"}, "stage must be"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
    ],
)
def test_arguments_out_of_range_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Subject(network(), **given)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_counted_and_the_first_is_named(value: float) -> None:
    """One broken file among thousands: the number says which."""
    bad = images(6)
    bad[2, 1] = value
    bad[4] = value
    with pytest.raises(InputError, match=r"2 of 6 images hold NaN or infinity, the first is number 2\..*Remove them"):
        Subject(network(), images=bad)


@pytest.mark.parametrize("shape", [(0, 4), (4,), ()])
def test_images_without_a_row_or_a_batch_dimension_are_refused(shape: tuple[int, ...]) -> None:
    """A single image without its batch dimension is the usual slip."""
    with pytest.raises(InputError) as caught:
        Subject(network(), images=torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)
    assert "N at least 1" in str(caught.value)


@pytest.mark.parametrize("labels", [torch.zeros(4, dtype=torch.long), torch.zeros(6, dtype=torch.long)])
def test_labels_are_one_an_image(labels: Tensor) -> None:
    with pytest.raises(InputError, match=rf"5 images and {len(labels)} labels"):
        Subject(network(), images=images(), labels=labels)


def test_a_label_without_a_dimension_is_refused() -> None:
    with pytest.raises(InputError, match="5 images and labels without a dimension"):
        Subject(network(), images=images(), labels=torch.tensor(3))


def test_labels_that_are_no_tensor_are_refused() -> None:
    """Words have a length too, but the loss and the report index them as a tensor; with or without images."""
    for given in (images(), None):
        with pytest.raises(TypeError, match="labels must be a tensor"):
            Subject(network(), images=given, labels=["cat"] * 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_images_get_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    """A float64 network raises on float32 images, which says nothing about it; the user's tensor stays as it was."""
    mine = images()
    subject = Subject(convert(network(dtype)), teacher=network(torch.float32), images=mine)
    inputs = subject.require_images()
    assert isinstance(inputs, Tensor)
    assert inputs.dtype == dtype
    assert mine.dtype == torch.float32
    assert subject.bank.draw(0, 1).dtype == dtype
    assert subject.teacher_output().dtype == torch.float32, "the teacher gets its own dtype"


def test_whole_number_inputs_stay_whole() -> None:
    """Token indices must not become floats."""
    tokens = torch.zeros(3, 4, dtype=torch.long)
    assert fitted(tokens, network()).dtype == torch.long
    assert fitted(images(), nn.ReLU()).dtype == torch.float32


def test_the_teachers_output_is_computed_once_and_correctly() -> None:
    """In eval mode, without gradients, whatever mode the teacher was left in."""
    calls = []
    teacher = nn.Sequential(network(), nn.Dropout(0.9)).train()
    teacher.register_forward_hook(lambda m, i, o: calls.append(1))
    subject = Subject(convert(network()), teacher=teacher, images=images())
    subject.require_images()
    calls.clear()
    first = subject.teacher_output()
    with torch.no_grad():
        torch.testing.assert_close(first, network()(images()))
    assert subject.teacher_output() is first
    assert len(calls) == 1
    assert teacher.training
    assert not first.requires_grad


def test_images_that_the_network_does_not_take_are_told_with_shape_and_reason() -> None:
    """Shape, dtype, the network's own words, and the option that gives other data."""
    wrong = torch.zeros(2, 9)
    for role, subject in (
        ("teacher Sequential", Subject(convert(network()), teacher=network(), images=wrong)),
        ("model Sequential", Subject(convert(network()), images=wrong)),
    ):
        with pytest.raises(InputError) as caught:
            subject.try_images()
        message = str(caught.value)
        assert f"the {role} does not accept images of shape [2, 9] and dtype float32" in message
        assert "mat1 and mat2" in message
        assert message.endswith("Give data that fits it: --data MODULE:FACTORY, or images= in Python.")
        assert isinstance(caught.value.__cause__, ForwardError)


@pytest.mark.parametrize("role", ["model", "teacher"])
def test_parameters_without_numbers_or_gradients_are_refused(role: str) -> None:
    """Each check would break at them in its own way."""
    with torch.inference_mode():
        inference = network()
    for broken, words in ((network().to("meta"), "on the meta device"), (inference, "made in inference mode")):
        given: dict[str, Any] = {"model": network(), "teacher": network(), role: broken}
        with pytest.raises(InputError, match=rf"the {role}'s 0\.weight (is|was) {words}"):
            Subject(**given, images=images())


def test_parameters_that_wait_for_their_first_input_are_no_obstacle() -> None:
    """`layers.replaced` has its own words for them."""
    Subject(nn.Sequential(nn.LazyLinear(2)), teacher=nn.Sequential(nn.LazyLinear(2)), images=images())


class Reciprocal(nn.Module):
    """Infinite where a pixel is 0, and a mask of minus infinity that is no fault."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).reciprocal()


def test_a_teacher_that_says_nothing_finite_is_refused() -> None:
    """A sound conversion would be accused of it otherwise."""
    subject = Subject(nn.Identity(), teacher=Reciprocal(), images=torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(InputError) as caught:
        subject.try_images()
    told = "the outputs of the teacher Reciprocal are NaN or infinite for 2 of 3 images, number 1 first. Leave these"
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("name", ["weight", "running_var"])
def test_a_broken_tensor_of_the_teacher_is_named(name: str) -> None:
    teacher = nn.Sequential(network(), nn.BatchNorm1d(3)).eval()
    model = convert(teacher)
    with torch.no_grad():
        getattr(teacher[1], name)[1] = math.nan
    with pytest.raises(InputError, match=rf"5 of 5 images, number 0 first, and so is its 1\.{name}\. Load its weights"):
        measure_teacher_agreement(model, teacher=teacher, images=images())


def test_the_error_is_worded_for_any_dtype() -> None:
    error = does_not_accept("model", nn.ReLU(), torch.zeros(1, 2, dtype=torch.float64), ForwardError(ValueError("no")))
    assert "model ReLU does not accept images of shape [1, 2] and dtype float64 (ValueError: no)" in str(error)


def test_images_that_suit_are_quiet() -> None:
    """Also where there are none: a check that needs them says so itself."""
    Subject(convert(network()), teacher=network(), images=images()).try_images()
    Subject(convert(network()), images=images()).try_images()
    Subject(convert(network())).try_images()


def test_the_passes_are_drawn_once_for_all_checks() -> None:
    subject = Subject(convert(network()), images=images(), seed=4)
    assert subject.bank is subject.bank
    assert torch.equal(subject.bank.draw(0, 2), Subject(convert(network()), images=images(), seed=4).bank.draw(0, 2))


def test_a_subject_passes_through_and_takes_no_second_opinion() -> None:
    """``measure_x(subject)`` and ``measure_x(model, teacher=...)`` are the same; mixing them is a mistake."""
    subject = Subject(network(), name="mine")
    assert Subject.of(subject, {}) is subject
    made = Subject.of(network(), {"name": "yours", "seed": 3})
    assert (made.name, made.seed) == ("yours", 3)
    with pytest.raises(TypeError, match="a Subject already says what name, seed is"):
        Subject.of(subject, {"seed": 1, "name": "x"})


def test_a_subject_changes_nothing_about_its_model() -> None:
    """Looking at stage, passes and teacher leaves the parameters, modes and the global generator alone."""
    teacher = network()
    model = convert(teacher).train()
    before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    state = torch.get_rng_state()
    subject = Subject(model, teacher=teacher, images=images())
    assert subject.stage == "converted"
    subject.bank.draw(0, 2)
    subject.teacher_output()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True, msg=name)
