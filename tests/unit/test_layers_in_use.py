"""A layer counts as never called only where no example calls it, and its teacher calls it for all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.checks import measure_layers_replaced
from pytest_bnn.conversion import convert
from pytest_bnn.records.evidence import Verdict


class Routed(nn.Module):
    """Two experts, chosen by the sign of the first feature of each batch's first row."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.aid = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.where(x[:, :1] > 0, 1.0, 0.0) * self.right(x) if bool((x[:, 0] > 0).any()) else self.left(x)
        return out + self.aid(x) if self.training else out


def rows(*signs: float) -> Tensor:
    return torch.tensor([[sign, 1.0, 2.0, 3.0] for sign in signs])


@pytest.mark.parametrize("signs", [(-1.0, 1.0), (1.0, -1.0), (-1.0,) * 64 + (1.0,), (1.0, 1.0), (-1.0,)])
def test_layers_that_some_rows_alone_call_are_in_use(signs: tuple[float, ...]) -> None:
    """And what the teacher does not call either on these data is excused."""
    teacher = Routed().eval()
    evidence = measure_layers_replaced(convert(teacher), teacher=teacher, images=rows(*signs))
    assert evidence.verdict is Verdict.PASS, evidence.explain()


def test_a_layer_beside_the_data_is_named() -> None:
    """The teacher calls it for every row; the model computes with something else."""
    teacher = nn.Sequential(nn.Linear(4, 3)).eval()
    model = convert(teacher)
    old = teacher[0]
    model.forward = lambda x: old(x)
    evidence = measure_layers_replaced(model, teacher=teacher, images=rows(1.0, 2.0))
    assert evidence.verdict is Verdict.FAIL
    assert "never called in a forward pass, for none of 2 examples" in evidence.layers[0].finding
    assert "still refers to the layer" in evidence.remedy
