"""``teacher.tensors``: what has no posterior is the teacher's, or moved for a reason, and was not lost."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from torch import Tensor, nn

from pytest_bnn import Evidence
from pytest_bnn.checks import measure_mean_equals_teacher, measure_teacher_tensors
from pytest_bnn.records.evidence import Verdict
from tests.cases.networks import PARAMETERS

X = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(3))


class OwnNorm(nn.Module):
    """A layer norm with the names of other frameworks."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (x.shape[-1],)) * self.gamma + self.beta


class Network(nn.Module):
    def __init__(self, last: Any = nn.LayerNorm) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.positions = nn.Parameter(torch.zeros(8, 4, 4))
        self.group = nn.GroupNorm(2, 8)
        self.norm, self.head = last(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.group(self.bn(self.conv(x)).relu() + self.positions)
        out: Tensor = self.head(self.norm(h.mean((2, 3))))
        return out


def taught(last: Any = nn.LayerNorm) -> Any:
    """A teacher whose statistics are those of its activations; its other tensors are where training may put them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = Network(last)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not name.startswith(("conv", "head")):
                    parameter.add_(0.4 * torch.randn_like(parameter))
            network.bn.momentum = None
            network.train()(X * 2 + 0.5)
        network.bn.momentum = 0.1
    return network.eval()


def bare(network: nn.Module) -> Any:
    model = copy.deepcopy(network)
    dnn_to_bnn(model, dict(PARAMETERS))
    return model.eval()


def tuned(network: nn.Module, *, by: float = 0.02) -> Any:
    """A conversion with every parameter a little further, as after some steps of training."""
    model = bare(network)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            step = by * torch.randn(parameter.shape, generator=generator)
            parameter.add_(step if "rho" not in name else 10 * step)
    return model


def judged(model: nn.Module, teacher: nn.Module, images: Tensor | None = X * 2 + 0.5, **given: Any) -> Evidence:
    return measure_teacher_tensors(model, teacher=teacher, images=images, **given)


def fill(module: nn.Module, **values: float) -> None:
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).fill_(value)


LOST: dict[str, tuple[Any, dict[str, float], str]] = {
    "layer norm": (nn.LayerNorm, {"weight": 1, "bias": 0}, "norm"),
    "its scale alone": (nn.LayerNorm, {"weight": 1}, "norm"),
    "norm of another's names": (OwnNorm, {"gamma": 1, "beta": 0}, "norm"),
    "norm of squares": (nn.RMSNorm, {"weight": 1}, "norm"),
    "group norm": (nn.LayerNorm, {"weight": 1, "bias": 0}, "group"),
    "statistics": (nn.LayerNorm, {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}, "bn"),
    "all of a batch norm": (nn.LayerNorm, {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}, "bn"),
    "positions": (nn.LayerNorm, {"positions": 0}, ""),
}


@pytest.mark.fault("B53", "teacher.tensors")
@pytest.mark.parametrize("how", LOST)
def test_what_is_as_built_and_was_not_so_in_the_teacher(how: str) -> None:
    last, values, path = LOST[how]
    teacher = taught(last)
    model = tuned(teacher)
    assert judged(model, teacher).verdict is Verdict.PASS
    fill(model.get_submodule(path), **values)
    evidence = judged(model, teacher)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert [layer.path for layer in evidence.layers] == [path]
    assert next(iter(values)) in evidence.layers[0].finding
    assert "strict=True" in evidence.remedy
    without = judged(model, teacher, None)
    assert without.verdict is (Verdict.NOT_APPLICABLE if path == "bn" else Verdict.FAIL), without.explain()


def test_a_norm_that_was_folded_into_its_convolution_is_in_order() -> None:
    """Its scale and shift are in the weights before it, as fusing puts them there; it does nothing any more."""
    teacher = taught()
    model = tuned(teacher, by=0.001)
    norm, conv = model.bn, model.conv
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        conv.mu_kernel.mul_(scale[:, None, None, None])
        conv.mu_bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)
    fill(norm, weight=1, bias=0, running_mean=0, running_var=1 - norm.eps)
    norm.eps = 0.0
    fill(norm, running_var=1)
    evidence = judged(model, teacher)
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert any("folded" in note for note in evidence.notes)


def reestimated(teacher: Any) -> Any:
    model = tuned(teacher)
    model.bn.reset_running_stats()
    model.bn.momentum = None
    with torch.no_grad():
        model.bn.train()
        for _ in range(8):
            model(X * 2 + 0.5)
    return model.eval()


def norms_trained(teacher: Any) -> Any:
    model = tuned(teacher)
    with torch.no_grad():
        for name in ("norm", "group", "bn"):
            model.get_submodule(name).weight.mul_(1.5)
            model.get_submodule(name).bias.add_(0.3)
    return model


def without_norms(teacher: Any) -> Any:
    model = tuned(teacher)
    model.norm, model.bn = nn.Identity(), nn.Identity()
    return model


def counter_reset(teacher: Any) -> Any:
    model = tuned(teacher)
    model.bn.num_batches_tracked.zero_()
    return model


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.parametrize(
    "make",
    [tuned, reestimated, norms_trained, without_norms, counter_reset, lambda t: Wrapped(reestimated(t)), bare],
    ids=["tuned", "re-estimated", "norms trained", "without norms", "counter reset", "wrapped", "fresh"],
)
def test_what_moved_for_a_reason_is_in_order(make: Any) -> None:
    teacher = taught()
    evidence = judged(make(teacher), teacher)
    assert evidence.verdict is Verdict.PASS, evidence.explain()


def test_a_teacher_whose_norms_are_as_built_loses_nothing() -> None:
    teacher = taught()
    for name in ("norm", "group"):
        fill(teacher.get_submodule(name), weight=1, bias=0)
    model = tuned(teacher)
    for name in ("norm", "group"):
        fill(model.get_submodule(name), weight=1, bias=0)
    assert judged(model, teacher).verdict is Verdict.PASS


def test_a_lost_norm_at_another_place_is_found_by_its_shape() -> None:
    teacher = taught(OwnNorm)
    model = tuned(teacher)
    inner = nn.Sequential(model.norm)
    model.norm = inner
    fill(inner[0], gamma=1, beta=0)
    evidence = judged(model, teacher)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert evidence.layers[0].path == "norm.0"


def test_a_fresh_conversion_is_accused_once() -> None:
    teacher = taught()
    model = bare(teacher)
    fill(model.norm, weight=1, bias=0)
    evidence = judged(model, teacher)
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "mean.equals_teacher" in evidence.headline
    assert measure_mean_equals_teacher(model, teacher=teacher, images=X).verdict is Verdict.FAIL
    assert judged(model, teacher, None).verdict is Verdict.FAIL


@pytest.mark.parametrize("make", [bare, tuned], ids=["fresh", "tuned"])
def test_statistics_that_fit_nothing(make: Any) -> None:
    """Those of another network, or of broken batches; mean.equals_teacher leaves them open in a fresh conversion."""
    teacher = taught()
    model = make(teacher)
    with torch.no_grad():
        model.bn.running_mean.add_(4 * model.bn.running_var.sqrt())
    evidence = judged(model, teacher)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "do not fit its input" in evidence.headline
    assert "running statistics" in evidence.remedy
    mean = measure_mean_equals_teacher(model, teacher=teacher, images=X * 2 + 0.5)
    assert mean.verdict is Verdict.NOT_APPLICABLE


def test_what_cannot_be_compared_says_so() -> None:
    network = nn.Sequential(nn.Linear(4, 3)).eval()
    evidence = measure_teacher_tensors(bare(network), teacher=network)
    assert evidence.verdict is Verdict.PASS
    assert "none was lost" in evidence.headline
    evidence = measure_teacher_tensors(network, teacher=bare(network))
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "no Bayesian layer" in evidence.headline
    teacher, scratch = taught(), tuned(Network().eval(), by=0.3)
    fill(scratch.norm, weight=1, bias=0)
    evidence = judged(scratch, teacher, stage="finetuned")
    assert evidence.verdict is Verdict.NOT_APPLICABLE, evidence.explain()
    assert "do not come from this teacher" in evidence.headline


@pytest.mark.parametrize("lost", [("running_mean",), ("running_var",), ("running_mean", "running_var")])
@pytest.mark.fault("B53", "mean.equals_teacher")
def test_statistics_that_a_fresh_conversion_lost_are_found(lost: tuple[str, ...]) -> None:
    """B53: statistics that alone differ may have been estimated anew, and not where one of them is as just built."""
    network = taught()
    model = bare(network)
    for name in lost:
        model.bn.get_buffer(name).fill_(float(name == "running_var"))
    found = measure_mean_equals_teacher(model, teacher=network, images=X)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert f"its {lost[0]} is not the teacher's and is that of a layer just built" in found.explain()
    beside = measure_teacher_tensors(model, teacher=network, images=X)
    assert beside.verdict is Verdict.NOT_APPLICABLE, beside.explain()
    assert "see mean.equals_teacher" in beside.headline


def test_statistics_that_a_fresh_conversion_estimated_anew_are_in_order() -> None:
    network = taught()
    model = bare(network)
    model.bn.reset_running_stats()
    model.bn.momentum = None
    with torch.no_grad():
        model.train()(X * 2 + 0.4)
    model.bn.momentum = 0.1
    for measure in (measure_mean_equals_teacher, measure_teacher_tensors):
        found = measure(model.eval(), teacher=network, images=X)
        assert found.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE), found.explain()
