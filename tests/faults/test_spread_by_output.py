"""``noise.spread`` output by output: each number of a regression has its own unit, classes have one scale together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn import convert
from pytest_bnn.checks import measure_noise_spread
from pytest_bnn.checks.noise._groups import grouped
from pytest_bnn.checks.noise._pairs import live_in
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.subject import Subject

N = 40


class Net(nn.Module):
    def __init__(self, end: Callable[[Tensor], Any] | None = None, *, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.body, self.head = nn.Linear(10, 24), nn.Linear(24, outputs)
        self.end = end
        self.eval()

    def forward(self, x: Tensor) -> Any:
        y = self.head(torch.tanh(self.body(x)))
        return y if self.end is None else self.end(y)


def images(rows: int = N) -> Tensor:
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(1))


def widen(model: nn.Module, row: int, by: float) -> nn.Module:
    """Make sigma of one output's row so many times as wide."""
    with torch.no_grad():
        for tensor in bayesian_layers(model)[1].tensors:
            tensor.rho[row] = torch.log(torch.expm1(tensor.sigma[row] * by))
    return model


def judge(model: nn.Module, **given: Any) -> Evidence:
    return measure_noise_spread(model, **{"images": images(), "task": "regression", **given})


UNITS = torch.tensor([3000.0, 1.0, 1e-4])


def in_units(y: Tensor) -> Tensor:
    return y * UNITS


@pytest.mark.fault("B48", "noise.spread")
@pytest.mark.parametrize("row", [1, 2])
@pytest.mark.parametrize("end", [in_units, lambda y: y * UNITS + 1000 * UNITS], ids=["units", "units and offsets"])
def test_one_output_that_drowns_is_named(row: int, end: Any) -> None:
    """Beside one in thousands its noise is nothing; beside itself it is all."""
    healthy = judge(convert(Net(end), moped_delta=0.02))
    assert healthy.verdict is Verdict.PASS, healthy.headline
    found = judge(widen(convert(Net(end), moped_delta=0.02), row, 200))
    assert found.verdict is Verdict.FAIL, found.headline
    assert found.headline.startswith(f"The noise in output {row} of 3 (from 0) is ")
    assert "it drowns what the network says. Largest source: layer `head` (Linear)" in found.headline
    assert [layer.path for layer in found.layers if not layer.ok] == ["head"]
    assert float(str(found["spread of output 0 of 3 (from 0)"])) < 0.2


def test_noise_that_is_nearly_certain_to_be_too_wide_gets_more_passes() -> None:
    """One draw serves all images: a few more passes of few images tell, and where they do not nothing is said."""
    model = widen(convert(Net(in_units), moped_delta=0.02), 1, 60)
    found = judge(model, max_passes=100)
    assert found.verdict is Verdict.FAIL, found.headline
    assert 100 < found.samples <= 400


def test_scores_of_classes_have_one_scale() -> None:
    """A class whose score hardly depends on the image is no output that drowns."""

    def quiet(y: Tensor) -> Tensor:
        return torch.cat([y[:, :2], 0.001 * y[:, 2:]], 1)

    teacher = Net(quiet, outputs=4)
    labels = teacher(images()).argmax(1)
    found = judge(widen(convert(teacher, moped_delta=0.02), 3, 200), task="auto", labels=labels)
    assert found.verdict is Verdict.PASS, found.headline
    assert "from 0" not in found.headline


def test_a_target_that_the_images_do_not_tell() -> None:
    """What the network says is nearly constant, rightly: the labels' own scale counts, and the noise is below it."""

    def faint(y: Tensor) -> Tensor:
        return torch.cat([y[:, :1], 0.01 * y[:, 1:2] + 0.2 * y[:, 2:]], 1)

    teacher = Net(faint)
    with torch.no_grad():
        teacher.head.weight[2] = 0
    noisy = widen(convert(teacher, moped_delta=0.02), 2, 1)
    with torch.no_grad():
        for tensor in bayesian_layers(noisy)[1].tensors:
            tensor.rho[2] = -2.0
    labels = torch.randn(N, 2, generator=torch.Generator().manual_seed(2))
    assert judge(noisy, labels=labels).verdict is Verdict.PASS
    assert judge(noisy).verdict is Verdict.FAIL


def test_outputs_that_cannot_vary_are_counted() -> None:
    """A clamped number and one that no weight reaches have no scale of their own."""

    def fixed(y: Tensor) -> Tensor:
        return torch.stack([y[:, 0], y[:, 1].clamp(5, 6), torch.ones_like(y[:, 2])], 1)

    found = judge(convert(Net(fixed), moped_delta=0.02))
    assert found.verdict is Verdict.PASS, found.headline
    note = " ".join(found.notes)
    assert "Not judged: output 1 of 3 (from 0), output 2 of 3 (from 0)" in note


def test_a_field_of_numbers_beside_others() -> None:
    """The regression's own output is judged number by number, what stands beside it together."""

    def both(y: Tensor) -> Any:
        return {"features": 1e6 * torch.tanh(y), "mean": y[:, :2] * UNITS[:2]}

    healthy = judge(convert(Net(both), moped_delta=0.02), output="mean")
    assert healthy.verdict is Verdict.PASS, healthy.headline
    found = judge(widen(convert(Net(both), moped_delta=0.02), 1, 200), output="mean")
    assert found.verdict is Verdict.FAIL
    assert "output mean.1 of 2 (from 0)" in found.headline


@pytest.mark.parametrize(
    ("end", "outputs"),
    [(lambda y: y.reshape(-1, 4, 5), 20), (None, 20)],
    ids=["places", "many numbers"],
)
def test_many_numbers_have_one_scale(end: Any, outputs: int) -> None:
    """Pixels have one unit: one that is the same in all images is no output that drowns."""
    teacher = Net(end, outputs=outputs)
    with torch.no_grad():
        teacher.head.weight[0] *= 1e-3
        teacher.head.bias[0] *= 1e-3
    model = widen(convert(teacher, moped_delta=0.02), 0, 1000)
    found = judge(model)
    assert found.verdict is Verdict.PASS, found.headline


def test_scales_are_standard_deviations() -> None:
    """Oracle: torch's, of the network without noise, and the largest of it, the teacher's and the labels'."""
    teacher = Net(in_units)
    labels = torch.randn(N, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 5.0, 1.0])
    subject = Subject(convert(teacher), teacher=teacher, images=images(), labels=labels)
    calm = teacher(images()).detach().double()
    live = live_in(torch.stack([calm, calm + 1]))
    found = grouped(subject, calm, live).groups
    assert [float(group.scale) for group in found] == pytest.approx(calm.std(0).tolist())
    wanted = torch.stack([calm.std(0), labels.double().std(0)]).amax(0)
    assert [float(group.most) for group in found] == pytest.approx(wanted.tolist(), rel=1e-5)
    few = grouped(Subject(convert(teacher), images=images(4), task="regression"), calm[:4], live[:4]).groups
    assert [group.name for group in few] == [""], "four images tell no scale"


@pytest.mark.parametrize("end", ["softmax", "clamp", "blank", "dead"])
def test_what_cannot_vary_has_not_collapsed(end: str) -> None:
    """Saturated, clamped, blank, dead: outside of the claim. With a sigma that did collapse it is a fault."""
    ends = {
        "softmax": lambda y: torch.softmax(1e4 * y, 1), "clamp": lambda y: y.clamp(9, 10),
        "dead": lambda y: torch.relu(y - 100), "blank": None,
    }  # fmt: skip
    teacher = Net(ends[end])
    x = images()
    if end == "blank":
        nn.init.zeros_(teacher.body.bias)
        teacher.body, teacher.head = nn.Linear(10, 24, bias=False), nn.Linear(24, 3, bias=False)
        x = torch.zeros_like(x)
    model = convert(teacher, moped_delta=0.02)
    found = judge(model, images=x, task="auto")
    assert found.verdict in (Verdict.NOT_APPLICABLE, Verdict.PASS), found.headline
    plain = convert(Net(), moped_delta=0.02)
    with torch.no_grad():
        for layer in bayesian_layers(plain):
            for tensor in layer.tensors:
                tensor.rho.fill_(-30.0)
    collapsed = judge(plain, task="auto")
    assert collapsed.verdict is Verdict.FAIL
    assert "all but collapsed" in collapsed.headline


def test_blank_images_among_others_are_left_out() -> None:
    """More than half of them: the others are judged, and the blank ones counted."""
    teacher = Net()
    teacher.body, teacher.head = nn.Linear(10, 24, bias=False), nn.Linear(24, 3, bias=False)
    x = images()
    x[:30] = 0
    found = judge(convert(teacher, moped_delta=0.02), images=x, task="auto", band=(0.01, 1.0))
    assert found.verdict is Verdict.PASS, found.headline
