"""``mean.equals_teacher`` compares weights, too: to their own rounding, whatever the outputs' dtype hides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn import convert
from pytest_bnn.checks import measure_mean_equals_teacher
from pytest_bnn.records.evidence import Evidence, Verdict

IMAGES = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A network with a normalisation, whose outputs may come in a coarser dtype than its weights."""

    def __init__(self, out: torch.dtype | None = None) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 3)
        self.out = out
        self.eval()

    def forward(self, x: Tensor) -> Any:
        y = torch.tanh(self.norm(self.first(x)))
        y = self.head(y + 0.1 * torch.tanh(self.second(y)))
        return y if self.out is None else y.to(self.out)


def judge(model: nn.Module, teacher: nn.Module, x: Tensor = IMAGES, **given: Any) -> Evidence:
    return measure_mean_equals_teacher(model, teacher=teacher, images=x, **given)


def off(layer: str, by: float = 1.1) -> Callable[[nn.Module], None]:
    def change(net: nn.Module) -> None:
        with torch.no_grad():
            net.get_parameter(f"{layer}.weight").mul_(by)

    return change


def converted(teacher: nn.Module, how: Callable[[nn.Module], None]) -> nn.Module:
    other = copy.deepcopy(teacher)
    how(other)
    return convert(other, moped_delta=0.02)


CASTS = {
    "outputs in bfloat16": lambda: Net(torch.bfloat16),
    "all in bfloat16": lambda: Net().to(torch.bfloat16),
}


@pytest.mark.parametrize("name", CASTS)
def test_sound_conversions_in_half_precision_pass(name: str) -> None:
    teacher = CASTS[name]()
    found = judge(convert(teacher, moped_delta=0.02), teacher)
    assert found.verdict is Verdict.PASS, found.explain()


@pytest.mark.fault("B50", "mean.equals_teacher")
@pytest.mark.parametrize("name", ["outputs in bfloat16", "all in bfloat16"])
@pytest.mark.parametrize("layer", ["second", "head"])
def test_a_layer_that_is_a_tenth_off_is_found_behind_coarse_outputs(name: str, layer: str) -> None:
    """The outputs are within their tolerance; the weights are not within theirs, and the layer is named."""
    teacher = CASTS[name]()
    found = judge(converted(teacher, off(layer)), teacher)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert f"The weight of `{layer}` is not the teacher's: it differs by 0.1" in found.headline
    assert "in bfloat16" in found.headline
    assert [row.path for row in found.layers] == [layer]
    assert "float32" in found.remedy


def test_half_of_a_layer_that_is_a_tenth_off_is_no_training_step_that_rounding_hides() -> None:
    """Half precision hides whether sigma went with mu; mu is still further off than its rounding."""
    teacher = CASTS["all in bfloat16"]()

    def change(net: nn.Module) -> None:
        with torch.no_grad():
            net.get_parameter("second.weight")[:8].mul_(1.1)

    found = judge(converted(teacher, change), teacher)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "The weight of `second` is not the teacher's: it differs by 0.07" in found.headline


def test_a_bias_is_a_weight() -> None:
    teacher = CASTS["outputs in bfloat16"]()

    def change(net: nn.Module) -> None:
        with torch.no_grad():
            net.get_parameter("second.bias").mul_(-1)

    found = judge(converted(teacher, change), teacher)
    assert found.verdict is Verdict.FAIL
    assert "The bias of `second` is not the teacher's: it differs by 2" in found.headline


def test_the_rounding_of_the_weights_is_none_of_the_faults() -> None:
    """A model in bfloat16 of a teacher in float32 has the weights that rounding makes."""
    teacher = Net()
    model = convert(teacher, moped_delta=0.02).to(torch.bfloat16)
    assert judge(model, teacher).verdict is Verdict.PASS
    assert judge(converted(Net(torch.bfloat16), off("second", 1 + 3e-7)), Net(torch.bfloat16)).verdict is Verdict.PASS


class Branch(Net):
    """A branch that starts at zero, as LayerScale's and a zero-initialised gamma's."""

    def forward(self, x: Tensor) -> Any:
        y = torch.tanh(self.norm(self.first(x)))
        return self.head(y + 0.0 * self.second(y))


def test_a_layer_that_the_outputs_do_not_depend_on_is_a_warning() -> None:
    """Outputs are equal in full precision: the claim holds on these images, and somebody should know."""
    teacher = Branch()
    assert judge(convert(teacher, moped_delta=0.02), teacher).verdict is Verdict.PASS
    found = judge(converted(teacher, off("second")), teacher)
    assert found.verdict is Verdict.WARN, found.explain()
    assert "the outputs on these images do not depend on it" in found.headline


class Folding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.norm, self.head = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
        with torch.no_grad():
            self.norm.running_var.copy_(torch.linspace(0.5, 2, 16))  # type: ignore[union-attr]
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.tanh(self.norm(self.first(x))))


class Standardised(nn.Linear):
    """A layer of its own kind, which computes with another weight than the one that it has."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2 * self.weight, self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["folded", "own class"])
def test_other_weights_that_compute_the_same_are_not_accused(kind: str, dtype: torch.dtype) -> None:
    """A normalisation folded into the layer before it; a layer of somebody's own."""
    teacher: Any = Folding()
    plain = copy.deepcopy(teacher)
    if kind == "folded":
        plain.first = nn.utils.fusion.fuse_linear_bn_eval(plain.first, plain.norm)
        plain.norm = nn.Identity()
    else:
        own = Standardised(16, 3)
        own.load_state_dict(teacher.head.state_dict())
        with torch.no_grad():
            plain.head.weight.mul_(2)
        teacher.head = own
    found = judge(convert(plain.eval(), moped_delta=0.02).to(dtype), teacher.eval().to(dtype), IMAGES)
    assert found.verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE), found.explain()


def test_fine_tuned_models_have_other_weights() -> None:
    teacher = CASTS["outputs in bfloat16"]()
    found = judge(converted(teacher, off("second")), teacher, stage="finetuned")
    assert found.verdict is Verdict.NOT_APPLICABLE
