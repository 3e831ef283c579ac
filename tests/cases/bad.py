"""Inputs that misbehave while they are audited."""

from __future__ import annotations

import sys
from typing import Any

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert
from tests.cases.case import Input, case
from tests.cases.networks import noise, seeded


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def sure() -> nn.Module:
    """The network with scores far apart."""
    made = seeded(network).eval()
    with torch.no_grad():
        made.get_parameter("2.weight").mul_(20)
    return made


def loss(model: nn.Module, batch: Any) -> Tensor:
    value: Tensor = functional.cross_entropy(model(batch[0]), batch[1]) + get_kl_loss(model) / 10
    return value


def data() -> tuple[Tensor, Tensor]:
    """Rows of which the network is sure, whatever is done to their scale."""
    x = noise(400, 6, seed=1)
    with torch.no_grad():
        shares = torch.stack([sure()(rows).softmax(1) for rows in (x, (x - 0.1) / 1.3, x.clamp(-1, 1))])
        shares = torch.cat([shares, sure()(x * (torch.arange(6) > 0)).softmax(1)[None]])
    certain = (shares.max(2).values > 0.999).all(0)
    return x[certain][:40], shares[0].argmax(1)[certain][:40]


def _as(kind: type[nn.Sequential], **given: Any) -> Input:
    """The network and its conversion as a kind of Sequential that does something of its own."""
    teacher = sure()
    model = convert(teacher, moped_delta=0.01)
    assert isinstance(teacher, nn.Sequential)
    assert isinstance(model, nn.Sequential)
    wanted = {"model": kind(*model).eval(), "teacher": kind(*teacher).eval(), "data": data, "loss": loss, **given}
    return Input(**wanted)


class LeavesWithGradients(nn.Sequential):
    """A line of debugging that was left behind."""

    def forward(self, input: Tensor) -> Any:
        if torch.is_grad_enabled():
            sys.exit(0)
        return super().forward(input)  # type: ignore[no-untyped-call]


BROKEN = "error or fail"


@case(
    "exits",
    verdicts={"kl.loss": BROKEN, "gradient.samples": BROKEN + " or not_applicable", "loss.data": BROKEN},
    push=True,
)
def network_that_exits_where_gradients_are_on() -> Input:
    return _as(LeavesWithGradients)


@case("exits", verdicts={"kl.loss": BROKEN, "gradient.samples": BROKEN + " or not_applicable", "loss.data": BROKEN})
def loss_that_exits() -> Input:
    def leaves(model: nn.Module, batch: Any) -> Tensor:
        sys.exit(0)

    return _as(nn.Sequential, loss=leaves)


class NormalisesInPlace(nn.Sequential):
    """Sound alone, but the caller's images change with each call."""

    def forward(self, input: Tensor) -> Any:
        input.sub_(0.1).div_(1.3)
        return super().forward(input)  # type: ignore[no-untyped-call]


class ClampsInPlace(nn.Sequential):
    def forward(self, input: Tensor) -> Any:
        return super().forward(input.clamp_(-1, 1))  # type: ignore[no-untyped-call]


class ForgetsInPlace(nn.Sequential):
    """Only while it learns."""

    def forward(self, input: Tensor) -> Any:
        if self.training:
            input[:, 0] = 0
        return super().forward(input)  # type: ignore[no-untyped-call]


@case("inputs changed in place", push=True)
def network_that_normalises_in_place() -> Input:
    return _as(NormalisesInPlace)


@case("inputs changed in place")
def network_that_clamps_in_place() -> Input:
    return _as(ClampsInPlace)


@case("inputs changed in place")
def network_that_forgets_in_place() -> Input:
    return _as(ForgetsInPlace)


@case("inputs changed in place")
def loss_that_changes_its_batch() -> Input:
    def changes(model: nn.Module, batch: Any) -> Tensor:
        batch[0].mul_(1.0001)
        return loss(model, batch)

    return _as(nn.Sequential, loss=changes)


class HasMeta(nn.Sequential):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.register_buffer("mean", torch.zeros(6, device="meta"))


class HasInteger(nn.Sequential):
    """A buffer of a kind that no model computes with."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.register_buffer("seen", torch.empty(0, 3, dtype=torch.int64))


@case("buffers that nothing uses", push=True)
def buffer_on_the_meta_device() -> Input:
    return _as(HasMeta)


@case("buffers that nothing uses")
def buffer_of_no_numbers() -> Input:
    return _as(HasInteger)


COLOURED = "a\x1b[31mred\x1b[0m</script><script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>\x07"
TABLE = "b\n| x | `y` \u202e"

NOT_A_NUMBER = "fail or not_applicable or error"


def _named(*names: str) -> Input:
    model = nn.Sequential()
    for name, module in zip(names, sure().children(), strict=True):
        model.add_module(name, module)
    converted = convert(model.eval(), moped_delta=0.05)
    with torch.no_grad():
        for layer in converted.children():
            if hasattr(layer, "rho_weight"):
                layer.get_parameter("rho_weight").fill_(float("nan"))
    return Input(model=converted, teacher=model, data=data, loss=loss)


#: What the checks beyond `kl.present` make of a posterior that is no number is not asked here.
FALLEN = dict.fromkeys(
    ("noise.source", "noise.varies", "noise.spread", "noise.posterior", "kl.loss", "gradient.samples"),
    "fail or not_applicable or warn or pass",
) | {"kl.present": "fail", "teacher.agreement": "fail or not_applicable"}


@case("names that a terminal or a browser would obey", verdicts=FALLEN, push=True)
def names_with_escapes_and_markup() -> Input:
    return _named(COLOURED, TABLE, IMAGE)


@case("names that a terminal or a browser would obey", verdicts=FALLEN)
def names_of_templates_and_links() -> Input:
    return _named("{{ 7 * 7 }}", "[x](javascript:alert(1))", '"><svg onload=alert(1)>')
