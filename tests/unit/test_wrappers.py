"""A teacher's tree is found in a model, whatever wraps either; two of it are not chosen between."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.checks import measure_layers_replaced, measure_mean_equals_teacher
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.alignment import BY_PART, BY_SHAPE, BY_WEIGHTS, WITHIN, align, stage_of
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.wrappers import places
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.subject import Subject

Wrap = Callable[[nn.Module], nn.Module]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


class Around(nn.Module):
    """What people write: one child, and perhaps its teacher or something else beside it."""

    def __init__(self, net: nn.Module, **beside: nn.Module) -> None:
        super().__init__()
        self.net = net
        for name, module in beside.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Normalize(nn.Module):
    """A layer in front that has buffers and no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean  # type: ignore[operator]


WRAPPERS: dict[str, Wrap] = {
    "DataParallel": nn.DataParallel,
    # What is looked through is the wrapper; compiling the same by inductor takes a minute.
    "compiled": lambda net: torch.compile(net, backend="eager"),  # type: ignore[dict-item, return-value]
    "compiled by inductor": lambda net: torch.compile(net),  # type: ignore[dict-item, return-value]
    "averaged": torch.optim.swa_utils.AveragedModel,
    "a class": Around,
    "with its teacher beside": lambda net: Around(net, teacher=network()),
    "with a metric beside": lambda net: Around(net, metric=nn.CosineSimilarity()),
    "normalised first": lambda net: nn.Sequential(Normalize(), net),
    "two wrappers": lambda net: nn.DataParallel(Around(net)),
    "compiled average": lambda net: torch.optim.swa_utils.AveragedModel(Around(nn.DataParallel(net))),
}


LATER = pytest.mark.nightly("a minute of compiling; every push looks through the same wrapper around another backend")
ALL = [pytest.param(name, marks=LATER) if name == "compiled by inductor" else name for name in WRAPPERS]


@pytest.mark.parametrize("name", ALL)
def test_a_wrapped_conversion_is_judged_as_what_it_holds(name: str) -> None:
    """Fresh: every layer is found, and the mean network is its teacher."""
    teacher = network()
    subject = Subject(WRAPPERS[name](convert(teacher)).eval(), teacher=teacher, images=torch.randn(6, 4))
    assert subject.stage == "converted"
    assert len(subject.alignment.pairs) == 3
    for measure in (measure_layers_replaced, measure_mean_equals_teacher):
        evidence = measure(subject)
        assert evidence.verdict is Verdict.PASS, evidence.explain()


@pytest.mark.parametrize("name", ALL)
def test_a_fault_is_found_inside_of_a_wrapper(name: str) -> None:
    """One layer left deterministic, one mean changed: both named by their path in the model."""
    teacher = network()
    model = convert(teacher)
    with torch.no_grad():
        bayesian_layers(model)[1].tensors[0].mu.mul_(1.5)
    model.set_submodule("4", copy.deepcopy(teacher[4]))
    subject = Subject(WRAPPERS[name](model).eval(), teacher=teacher, images=torch.randn(6, 4))
    replaced, mean = measure_layers_replaced(subject), measure_mean_equals_teacher(subject)
    assert replaced.verdict is Verdict.FAIL
    assert "2 of 3" in replaced.headline
    assert mean.verdict is Verdict.FAIL
    assert mean.layers[0].path == f"{subject.alignment.prefix}.2"
    assert "its weight is not the teacher's" in mean.layers[0].finding
    assert "setting" not in mean.remedy


@pytest.mark.parametrize("name", ["DataParallel", "a class", "normalised first", "two wrappers", "averaged"])
def test_a_teacher_may_be_the_wrapped_one(name: str) -> None:
    """And both may be, each in its own way."""
    teacher = network()
    for model in (convert(teacher), nn.DataParallel(convert(teacher))):
        subject = Subject(model.eval(), teacher=WRAPPERS[name](teacher).eval(), images=torch.randn(6, 4))
        assert subject.stage == "converted"
        assert measure_layers_replaced(subject).verdict is Verdict.PASS
        assert measure_mean_equals_teacher(subject).verdict is Verdict.PASS


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="file stores")
@pytest.mark.usefixtures("one_process")
def test_a_model_of_distributed_training_is_looked_through() -> None:
    teacher = network()
    model = nn.parallel.DistributedDataParallel(convert(teacher))
    assert stage_of(model, teacher) == "converted"
    assert align(model, teacher).prefix == "module"


class Ensemble(nn.Module):
    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


@pytest.mark.parametrize(
    "double",
    [
        lambda teacher: Ensemble(convert(teacher), convert(teacher)),
        lambda teacher: Around(convert(teacher), average=convert(teacher)),
        lambda teacher: nn.DataParallel(Ensemble(convert(teacher), convert(teacher), convert(teacher))),
        lambda teacher: nn.ModuleDict({"student": convert(teacher), "ema": convert(teacher)}),
        lambda teacher: Around(nn.DataParallel(convert(teacher)), other=nn.DataParallel(convert(teacher))),
    ],
)
def test_of_several_copies_none_is_chosen(double: Wrap) -> None:
    """Which of them the claims are about is the user's to say; the message names them."""
    teacher = network()
    subject = Subject(double(teacher).eval(), teacher=teacher)
    assert subject.stage == "unknown"
    evidence = measure_layers_replaced(subject)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert all(place in evidence.headline for place in subject.alignment.copies)
    assert len(subject.alignment.copies) > 1


def test_one_network_at_two_paths_is_one() -> None:
    """A reference to the same module is no second copy."""
    teacher = network()
    net = convert(teacher)
    assert stage_of(Around(net, same=net), teacher) == "converted"


class Split(nn.Module):
    """The teacher's layers, sorted into other attributes."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.backbone(x)))
        return out


class Inner(nn.Module):
    """A layer one level deeper."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


def deeper(model: nn.Module) -> nn.Module:
    model.set_submodule("2", Inner(model.get_submodule("2")))
    return model


def split(model: nn.Module) -> nn.Module:
    first, _, second, _, third = model.children()
    return Split(nn.Sequential(first, nn.ReLU(), second), third)


def shifted(model: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), *model.children())


def named(model: nn.Module) -> nn.Module:
    first, _, second, _, third = model.children()
    return Split(Split(first, second), third)


def turned_around(model: nn.Module) -> nn.Module:
    """The modules are registered in another order than they are called in."""
    first, _, second, _, third = model.children()
    late = Split(second, third)
    late._modules = dict(reversed(late._modules.items()))
    return Split(first, late)


@pytest.mark.parametrize("rebuild", [deeper, split, shifted, named, turned_around])
@pytest.mark.parametrize("trained", [False, True])
def test_layers_at_other_paths_are_found(rebuild: Wrap, trained: bool) -> None:
    """By the module around them, by structure, by weights, by shape; with a note that says so."""
    teacher = network()
    model = convert(teacher)
    if trained:
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    subject = Subject(rebuild(model).eval(), teacher=teacher, images=torch.randn(6, 4))
    replaced, mean = measure_layers_replaced(subject), measure_mean_equals_teacher(subject)
    assert replaced.verdict is Verdict.PASS, replaced.explain()
    assert any("not at the teacher's path" in note for note in replaced.notes)
    assert subject.stage == ("finetuned" if trained else "converted")
    assert mean.verdict is (Verdict.NOT_APPLICABLE if trained else Verdict.PASS), mean.explain()


def test_how_a_layer_was_found_is_told() -> None:
    teacher = network()
    assert align(deeper(convert(teacher)), teacher).moved == {"2": WITHIN}
    assert set(align(split(convert(teacher)), teacher).moved.values()) <= {BY_WEIGHTS, BY_SHAPE, BY_PART}
    random = align(named(convert(teacher, moped_enable=False)), teacher)
    assert random.moved == dict.fromkeys(["0", "2", "4"], BY_SHAPE)
    assert random.pairs == (), "a shape alone is no evidence of a common history"


def test_twins_are_paired_by_their_weights() -> None:
    """Two modules of the same shape, exchanged: paths are gone, and the weights decide."""
    teacher = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    first, _, second = convert(teacher).children()
    model = nn.ModuleDict({"b": first, "a": second})
    assert align(model, teacher).paths["0"] == "b"
    assert align(model, teacher).paths["2"] == "a"


def test_a_layer_that_is_nowhere_is_missing() -> None:
    """Whatever else was found elsewhere; the remedy does not speak of converting it."""
    teacher = network()
    first, _, second, _, _ = convert(teacher).children()
    evidence = measure_layers_replaced(Split(first, second), teacher=teacher)
    assert evidence.verdict is Verdict.FAIL
    assert "2 of 3" in evidence.headline
    assert (evidence.layers[0].path, evidence.layers[0].ok) == ("4", False)
    assert "It is not in the model" in evidence.layers[0].finding
    assert "Give the teacher" in evidence.remedy
    assert "dnn_to_bnn" not in evidence.remedy


def test_paths_are_compared_by_what_fits() -> None:
    """The search itself, with a comparison by type alone."""
    model, original = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Tanh())), nn.Sequential(nn.ReLU(), nn.Tanh())
    found = places(original, model, ["0", "1"], lambda a, b: 2 * (type(a) is type(b)))
    assert found.prefix == "0"
    assert found.paths == {"": "0", "0": "0.0", "1": "0.1"}
    assert places(original, original, ["0", "1"], lambda a, b: 2 * (type(a) is type(b))).prefix == ""


def test_nothing_is_changed_by_looking() -> None:
    """A spectral norm in train mode moves its own buffers whenever its weight is read."""
    teacher = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    align(convert(copy.deepcopy(teacher).eval()), teacher)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
