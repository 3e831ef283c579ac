"""``memory.separate`` over all tensors: what training writes must not be the teacher's; what it leaves alone may be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from torch import Tensor, nn

from pytest_bnn import Evidence
from pytest_bnn.checks import measure_memory_separate
from pytest_bnn.records.evidence import Verdict
from tests.cases.networks import PARAMETERS

X = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(3))


class Network(nn.Module):
    def __init__(self, *, affine: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.ReLU())
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.backbone(x).mean((2, 3))))
        return out


def made(kind: Any = Network) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return kind().eval()


def bare(network: nn.Module) -> Any:
    model = copy.deepcopy(network)
    dnn_to_bnn(model, dict(PARAMETERS))
    return model.eval()


def judged(model: nn.Module, teacher: nn.Module | None, images: Tensor | None = X) -> Evidence:
    return measure_memory_separate(model, teacher=teacher, images=images)


def training_moves(model: Any, teacher: nn.Module) -> bool:
    """The oracle: one step in train mode, and whether the teacher is another one afterwards."""
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(X).square().sum().backward()
    optimizer.step()
    return any(not torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def with_norms(teacher: Any) -> Any:
    model = bare(teacher)
    model.backbone[1] = teacher.backbone[1]
    return model


def with_norm_without_scale(teacher: Any) -> Any:
    model = bare(teacher)
    model.backbone[1] = teacher.backbone[1] = nn.BatchNorm2d(4, affine=False).eval()
    return model


def with_its_buffer(teacher: Any) -> Any:
    model = bare(teacher)
    model.backbone[1].running_mean = teacher.backbone[1].running_mean
    return model


def with_its_parameter(teacher: Any) -> Any:
    model = bare(teacher)
    model.norm.weight = teacher.norm.weight
    return model


def with_its_data(teacher: Any) -> Any:
    model = bare(teacher)
    model.norm.bias.data = teacher.norm.bias.data
    return model


def with_its_backbone(teacher: Any) -> Any:
    model = bare(teacher)
    model.backbone = teacher.backbone
    return model


def shallow(teacher: Any) -> Any:
    model = copy.copy(teacher)
    dnn_to_bnn(model, dict(PARAMETERS))
    return model.eval()


@pytest.mark.fault("B52", "memory.separate")
@pytest.mark.parametrize("images", [X, None], ids=["with images", "without"])
@pytest.mark.parametrize(
    ("share", "path"),
    [
        (with_norms, "backbone.1"),
        (with_norm_without_scale, "backbone.1"),
        (with_its_buffer, "backbone.1"),
        (with_its_parameter, "norm"),
        (with_its_data, "norm"),
        (with_its_backbone, "backbone"),
        (shallow, "backbone"),
    ],
)
def test_what_training_moves_must_not_be_the_teachers(share: Any, path: str, images: Tensor | None) -> None:
    teacher = made()
    model = share(teacher)
    evidence = judged(model, teacher, images)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert path in {layer.path for layer in evidence.layers}
    assert "the teacher's" in evidence.layers[0].finding
    assert "copy.deepcopy(teacher)" in evidence.remedy
    assert "MOPED" not in evidence.remedy
    assert training_moves(model, teacher)


def frozen_backbone(teacher: Any) -> Any:
    """The norm is a part of a backbone that its owner keeps in eval mode."""

    class Keeping(type(teacher)):  # type: ignore[misc]
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.backbone.eval()
            return self

    model = with_its_backbone(teacher)
    model.backbone.requires_grad_(False)
    model.__class__ = Keeping
    return model


def without_gradient(teacher: Any) -> Any:
    """The scale and the shift require a gradient, but none comes to them."""
    model = bare(teacher)
    model.norm = teacher.norm
    model.forward = lambda x: model.head(torch.nn.functional.layer_norm(_quietly(model, x), (4,)))
    return model


def _quietly(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.norm(model.backbone(x).mean((2, 3)))
    return out


def frozen_norm_in_eval_mode(teacher: Any) -> Any:
    """A model as it is trained: as a whole in train mode, the shared norm not."""
    model = with_norms(teacher)
    model.backbone[1].requires_grad_(False)
    model.train()
    model.backbone[1].eval()
    return model


def tied_within(teacher: Any) -> Any:
    model = bare(teacher)
    model.extra = nn.Embedding(2, 4)
    model.extra.weight = model.head.mu_weight
    model.other = nn.LayerNorm(4)
    model.other.weight = model.norm.weight
    return model


def frozen_layer_norm(teacher: Any) -> Any:
    model = bare(teacher)
    teacher.norm.requires_grad_(False)
    model.norm = teacher.norm
    return model


class Distilled(nn.Module):
    """Holds its teacher, which a loss asks, beside the model."""

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


def holding_its_teacher(teacher: Any) -> Any:
    return Distilled(bare(teacher), teacher).eval()


@pytest.mark.parametrize(
    "share",
    [
        frozen_backbone,
        without_gradient,
        frozen_norm_in_eval_mode,
        tied_within,
        frozen_layer_norm,
        holding_its_teacher,
        bare,
    ],
)
def test_what_training_leaves_alone_may_be_the_teachers(share: Any) -> None:
    teacher = made()
    model = share(teacher)
    evidence = judged(model, teacher)
    assert evidence.verdict is Verdict.PASS, evidence.explain()


def test_frozen_statistics_that_train_mode_moves_are_told() -> None:
    """Nothing says in which mode they are when the model is trained."""
    teacher = made()
    model = with_norms(teacher)
    model.backbone[1].requires_grad_(False)
    evidence = judged(model, teacher)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert evidence.layers[0].path == "backbone.1"
    assert "eval mode" in evidence.remedy


class Residual(Distilled):
    """Corrects its teacher, and trains it on the way."""

    def forward(self, x: Tensor) -> Any:
        return self.model(x) + self.teacher(x)


def test_a_teacher_that_the_model_computes_with_and_trains() -> None:
    teacher = made()
    evidence = judged(Residual(bare(teacher), teacher).eval(), teacher)
    assert evidence.verdict is Verdict.FAIL
    assert [layer.path for layer in evidence.layers] == ["teacher"]
    assert "is the teacher's own module" in evidence.headline
    teacher.requires_grad_(False)
    assert judged(Residual(bare(teacher), teacher).eval(), teacher).verdict is Verdict.WARN


@pytest.mark.parametrize(
    "wrap", [lambda m: m, lambda m: nn.Sequential(m), nn.DataParallel], ids=["same", "in", "parallel"]
)
def test_a_teacher_that_is_the_model_is_told_in_one_sentence(wrap: Any) -> None:
    """The library converts in place: who converts the teacher has no teacher left."""
    network = made()
    dnn_to_bnn(network, dict(PARAMETERS))
    for model, teacher in ((wrap(network), network), (network, wrap(network))):
        evidence = judged(model, teacher)
        assert evidence.verdict is Verdict.FAIL
        assert evidence.layers == ()
        assert evidence.headline.startswith(("The teacher is the ", "The model is a part of its teacher"))
        assert "copy.deepcopy(network) before" in evidence.remedy
        assert "MOPED" not in evidence.remedy
