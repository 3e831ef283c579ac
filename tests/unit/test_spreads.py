"""Which kind of spread stands beside a mean: read off the gradient of a loss, by torch's own likelihoods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal
from torch.nn import functional

from pytest_bnn.network.calling import Field
from pytest_bnn.tasks.spreads import KINDS, Beside, Pulled, UnclearError, by_name, by_pull, deviation, head_of

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

LOSSES: dict[str, tuple[Beside | None, Loss]] = {
    "gaussian_nll_loss, variance": ("variance", lambda m, s, y: functional.gaussian_nll_loss(m, y, s.abs())),
    "gaussian_nll_loss, log variance": ("log_variance", lambda m, s, y: functional.gaussian_nll_loss(m, y, s.exp())),
    "Normal, deviation": ("std", lambda m, s, y: -Normal(m, s.abs()).log_prob(y).sum()),
    "Normal, log deviation": ("log_std", lambda m, s, y: -Normal(m, s.exp()).log_prob(y).mean()),
    "weighted by the variance": (
        "log_variance",
        lambda m, s, y: (s.exp().detach().sqrt() * functional.gaussian_nll_loss(m, y, s.exp(), reduction="none")).sum(),
    ),
    "half precision weight": ("std", lambda m, s, y: -1e-4 * Normal(m, s.abs()).log_prob(y).sum()),
    "through a softplus": (None, lambda m, s, y: functional.gaussian_nll_loss(m, y, functional.softplus(s))),
    "Laplace": (None, lambda m, s, y: -Laplace(m, s.abs()).log_prob(y).mean()),
    "squared error alone": (None, lambda m, s, y: (m - y).square().mean()),
    "two squared errors": (None, lambda m, s, y: (m - y).square().mean() + (s - y).square().mean()),
    "other labels": ("std", lambda m, s, y: -Normal(m, s.abs()).log_prob(y).sum()),
}


def pulled(loss: Loss, labels: Tensor | None = None) -> Pulled:
    random = torch.Generator().manual_seed(0)
    mean, second, y = (torch.randn(30, 2, generator=random) for _ in range(3))
    second = 0.3 + second.abs()
    outputs = torch.cat([mean, second], 1).requires_grad_()
    loss(outputs[:, :2], outputs[:, 2:], y).backward()
    assert outputs.grad is not None
    return Pulled(outputs=outputs.detach(), slope=outputs.grad, labels=y if labels is None else labels)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_tells(name: str) -> None:
    expected, loss = LOSSES[name]
    other = torch.randn(30, 2) if name == "other labels" else None
    found = by_pull(pulled(loss, other), torch.arange(2), torch.arange(2, 4))
    assert found == (None if name == "other labels" else expected)


@pytest.mark.parametrize("kind", KINDS)
def test_deviations(kind: Beside) -> None:
    """Of a variance of 9 all kinds give 3."""
    value = {"variance": 9.0, "log_variance": 2.1972246, "std": 3.0, "log_std": 1.0986123}[kind]
    assert float(deviation(kind, torch.tensor(value, dtype=torch.float64))) == pytest.approx(3, rel=1e-6)


def test_names() -> None:
    assert by_name("heads.y.logvar") == "log_variance"
    assert by_name("sigma") == "std"
    assert by_name("1") is None


def head(option: str, fields: list[Field], field: str, wanted: int, row: tuple[int, ...], **given: bool) -> object:
    return head_of(
        option, fields=fields, field=field, numbers=sum(f.size for f in fields), wanted=wanted, row=row,  # type: ignore[arg-type]
        pulled=lambda: None, noise_declared=given.get("noise", False),
    )  # fmt: skip


def test_where_the_means_are() -> None:
    """Halves of a row, the last dimension, and outputs of their own."""
    halves = head("std", [Field("", (6,))], "", 3, (6,))
    assert halves.mean.tolist() == [0, 1, 2]  # type: ignore[attr-defined]
    assert halves.beside.tolist() == [3, 4, 5]  # type: ignore[attr-defined]
    last = head("std", [Field("", (3, 2))], "", 3, (3, 2))
    assert last.mean.tolist() == [0, 2, 4]  # type: ignore[attr-defined]
    two = [Field("y.mean", (2,)), Field("z.mean", (2,)), Field("z.var", (2,)), Field("y.var", (2,))]
    own = head("auto", two, "y.mean", 2, (2,))
    assert (own.kind, own.beside.tolist()) == ("variance", [6, 7])  # type: ignore[attr-defined]


def test_what_is_asked() -> None:
    pair = [Field("0", (1,)), Field("1", (1,))]
    with pytest.raises(UnclearError, match="output 1 may be the variance"):
        head("auto", pair, "0", 1, (1,))
    assert head("auto", pair, "0", 1, (1,), noise=True).kind == "mean"  # type: ignore[attr-defined]
    assert head("mean", pair, "0", 1, (1,)).kind == "mean"  # type: ignore[attr-defined]
    with pytest.raises(UnclearError, match="no other output has as many numbers"):
        head("std", [Field("", (1,))], "", 1, (1,))
    with pytest.raises(UnclearError, match="5 numbers for each example, and the labels 2"):
        head("auto", [Field("", (5,))], "", 2, (5,))
    features = [Field("mean", (1,)), Field("features", (1,))]
    assert head("auto", features, "mean", 1, (1,)).kind == "mean"  # type: ignore[attr-defined]
