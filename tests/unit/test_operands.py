"""Which tensors a network multiplies by: known by construction, however the product is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.operands import Operand, operands

X = torch.linspace(-1, 1, 40).reshape(2, 5, 4)


def seen(network: nn.Module, *inputs: Any) -> list[Operand]:
    with undisturbed(network, seed=0), torch.no_grad():
        named = dict(network.named_parameters())
        return operands(network, lambda: network(*(inputs or (X,))), named)


def sources(network: nn.Module, *inputs: Any) -> set[str]:
    return {name for use in seen(network, *inputs) for name in use.sources}


class Bare(nn.Module):
    """One weight, one table and one vector, and what is done with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 4))
        self.v = nn.Parameter(torch.ones(4))
        self.table = nn.Parameter(torch.ones(7, 4))
        self.register_buffer("fixed", torch.ones(4, 4))
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


_attention = functional.scaled_dot_product_attention


def _in_place(s: Any, x: Tensor) -> Any:
    state = torch.zeros(5, 4)
    state[1:] = x[0, 1:]
    return state @ s.w.t()


MULTIPLIES: dict[str, tuple[Callable[[Any, Tensor], Any], set[str]]] = {
    "linear": (lambda s, x: functional.linear(x, s.w), {"w"}),
    "at": (lambda s, x: x @ s.w.t(), {"w"}),
    "from the left": (lambda s, x: s.w @ x.transpose(1, 2), {"w"}),
    "einsum": (lambda s, x: torch.einsum("bnd,kd->bnk", x, s.w), {"w"}),
    "tensordot": (lambda s, x: torch.tensordot(x, s.w, dims=([2], [1])), {"w"}),
    "bmm": (lambda s, x: torch.bmm(x, s.w.t().expand(2, 4, 3)), {"w"}),
    "baddbmm": (lambda s, x: torch.baddbmm(s.table[:1, :3], x, s.w.t().expand(2, 4, 3)), {"w"}),
    "convolution": (lambda s, x: functional.conv1d(x.transpose(1, 2), s.w[:, :, None]), {"w"}),
    "vector": (lambda s, x: x @ s.v, {"v"}),
    "its data": (lambda s, x: x @ s.w.data.t(), {"w"}),
    "detached": (lambda s, x: x @ s.w.detach().t(), {"w"}),
    "times a mask": (lambda s, x: x @ (s.w * (s.w > 0)).t(), {"w"}),
    "of two": (lambda s, x: x @ (s.w + s.v).t(), {"w", "v"}),
    "of a product without the input": (lambda s, x: x @ (s.fixed @ s.w.t()), {"w"}),
    "attention": (lambda s, x: _attention(x, s.table.expand(2, 7, 4), x[:, :1].expand(2, 7, 4)), {"table"}),
    "input written into a state": (_in_place, {"w"}),
    "the half precision of autocast": (lambda s, x: _autocast(s, x), {"w"}),
}  # fmt: skip


def _autocast(s: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return functional.linear(x, s.w)


@pytest.mark.parametrize("how", MULTIPLIES)
def test_every_way_to_multiply_is_seen(how: str) -> None:
    forward, expected = MULTIPLIES[how]
    assert sources(Bare(forward)) == expected


IS_NONE: dict[str, Callable[[Any, Tensor], Any]] = {
    "scale": lambda s, x: x * s.v,
    "scale by einsum": lambda s, x: torch.einsum("bnd,d->bnd", x, s.v),
    "shift": lambda s, x: x + s.v,
    "token": lambda s, x: torch.cat([s.v.expand(2, 1, 4), x], 1),
    "positions": lambda s, x: x + s.table[:5],
    "norm": lambda s, x: functional.layer_norm(x, (4,), s.v, s.v),
    "looked up by the input": lambda s, x: functional.embedding((x[..., 0] > 0).long(), s.table) @ s.fixed,
    "looked up by constants": lambda s, x: x @ s.table[torch.tensor([0, 3])].t(),
    "distances": lambda s, x: torch.cdist(x, s.table),
    "product without the input": lambda s, x: x + (s.table @ s.w.t()).mean(),
    "product with a shape of the input": lambda s, x: x + (torch.zeros_like(x) @ s.w.t()).mean(),
    "bilinear form of activations": lambda s, x: (x * s.v) @ x.transpose(1, 2),
}


@pytest.mark.parametrize("how", IS_NONE)
def test_what_scales_or_is_looked_up_is_none(how: str) -> None:
    assert sources(Bare(IS_NONE[how])) == set()


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.GRU(4, 3, 2), {"weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"}),
        (nn.LSTM(4, 3), {"weight_ih_l0", "weight_hh_l0"}),
        (nn.RNN(4, 3, nonlinearity="relu"), {"weight_ih_l0", "weight_hh_l0"}),
        (nn.MultiheadAttention(4, 2, batch_first=True), {"in_proj_weight", "out_proj.weight"}),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
         {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}),
        (nn.LayerNorm(4), set()),
        (prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5), {"weight_orig"}),
        (parametrizations.weight_norm(nn.Linear(4, 3)),
         {"parametrizations.weight.original0", "parametrizations.weight.original1"}),
        (parametrizations.spectral_norm(nn.Linear(4, 3)), {"parametrizations.weight.original"}),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_layers_of_torch_and_their_fused_kernels(layer: nn.Module, expected: set[str]) -> None:
    inputs = (X, X, X) if isinstance(layer, nn.MultiheadAttention) else (X,)
    assert sources(layer.eval(), *inputs) == expected


def test_where_a_product_is_and_what_it_adds() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    (use,) = seen(network)
    assert use == Operand(frozenset({"0.weight"}), frozenset({"0.bias"}), False, frozenset({"", "0"}))


def test_a_drawn_weight_is_random() -> None:
    (use,) = seen(Bare(lambda s, x: x @ (s.w + torch.randn_like(s.w) * s.v).t()))
    assert use.random
    assert use.sources == {"w", "v"}


def test_a_network_that_raises_raises() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        seen(Bare(lambda s, x: x @ s.w))
