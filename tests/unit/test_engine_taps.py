"""Taps of a kernel that meet padding alone: which they are, by autograd, and that nothing changes without them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert
from pytest_bnn.libraries.capture import FunctionalCall
from pytest_bnn.sampling.bank import PassBank
from pytest_bnn.sampling.engine.handshake import shake_hands
from pytest_bnn.sampling.engine.taps import used_taps

GRID = [
    (size, width, stride, padding, dilation)
    for size, width, stride, padding, dilation in itertools.product(
        (1, 2, 3, 5), (1, 2, 3, 5), (1, 2, 3), (0, 1, 2, 4), (1, 2, 3)
    )
    if size + 2 * padding >= dilation * (width - 1) + 1
]


def reached(weight: Tensor, *rest: Any, size: int) -> Tensor:
    """Say which taps the input reaches: those whose weight the outputs of positive inputs depend on."""
    weight = weight.clone().requires_grad_()
    functional.conv1d(torch.rand(1, weight.shape[1], size) + 0.1, weight, None, *rest).sum().backward()
    assert weight.grad is not None
    return weight.grad.abs().sum((0, 1)) > 0


def test_no_tap_that_is_reached_is_left_out_and_the_outputs_are_the_same() -> None:
    """Over sizes, widths, strides, paddings and dilations, whatever the weights left out hold."""
    left_out = 0
    for size, width, stride, padding, dilation in GRID:
        weight, x = torch.randn(4, 3, width), torch.randn(2, 3, size)
        call = FunctionalCall(functional.conv1d, (2, 3, size), weight, None, (stride, padding, dilation, 1), {})
        taps = used_taps(call)
        kept = torch.zeros(width, dtype=torch.bool)
        kept[slice(None) if taps is None else taps.kernel[0]] = True
        assert bool((kept | ~reached(weight, stride, padding, dilation, size=size)).all()), call
        if taps is not None:
            left_out += 1
            rest, keywords = taps.cut(call)
            found = functional.conv1d(x, weight[..., taps.kernel[0]], None, *rest, **keywords)
            torch.testing.assert_close(found, functional.conv1d(x, weight, None, *call.rest))
    assert left_out > 40


@pytest.mark.parametrize(
    ("rest", "keywords"),
    [
        ((1, 1), {}),
        ((), {"padding": 1}),
        ((1,), {"padding": (1, 1)}),
        (((1,), (1,), (1,), 2), {}),
        ((), {"padding": [1]}),
    ],
)
def test_the_last_stage_of_a_resnet_on_a_small_image(rest: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """One pixel under a 3x3 kernel: one weight of nine counts, however the call says its padding."""
    weight = torch.randn(4, 2, 3, 3)
    call = FunctionalCall(functional.conv2d, (1, 4 if len(rest) == 4 else 2, 1, 1), weight, None, rest, keywords)
    taps = used_taps(call)
    assert taps is not None
    assert taps.kernel == (slice(1, 2), slice(1, 2))
    assert taps.padding == (0, 0)
    x = torch.randn(call.input_size)
    cut_rest, cut_keywords = taps.cut(call)
    found = functional.conv2d(x, weight[:, :, 1:2, 1:2], None, *cut_rest, **cut_keywords)
    torch.testing.assert_close(found, functional.conv2d(x, weight, None, *rest, **keywords))


@pytest.mark.parametrize(
    ("function", "size", "shape", "rest"),
    [
        (functional.conv2d, (1, 2, 7, 7), (4, 2, 3, 3), (1, 1)),
        (functional.conv2d, (1, 2, 1, 1), (4, 2, 3, 3), (1, "same")),
        (functional.conv_transpose2d, (1, 2, 1, 1), (2, 4, 3, 3), (1, 1)),
        (functional.linear, (1, 2), (4, 2), ()),
        # The part that counts would need the input cut, not padded.
        (functional.conv1d, (1, 2, 4), (4, 2, 2), (9, 3, 6)),
    ],
    ids=["all are reached", "padding by name", "transposed", "linear", "between two taps"],
)
def test_where_all_of_a_kernel_stays(function: Any, size: Any, shape: Any, rest: Any) -> None:
    assert used_taps(FunctionalCall(function, size, torch.randn(shape), None, rest, {})) is None


class Small(nn.Module):
    """Three convolutions of one pixel, each behind the other; BatchNorm in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 5, padding=2, groups=2)
        self.last = nn.Conv2d(8, 3, (3, 1), padding=(1, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)))
        out: Tensor = self.last(functional.relu(self.second(x))).flatten(1)
        return out


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_the_engine_draws_only_what_counts(estimator: Any) -> None:
    torch.manual_seed(0)
    bnn = convert(Small().eval(), type=estimator, moped_delta=0.3)
    images = torch.randn(3, 2, 1, 1)
    engine = shake_hands(bnn, images, 0)
    drawn = [layer.weight.size for layer in engine.workers[0].plan.layers.values()]
    assert drawn == [8 * 2, 8 * 4, 3 * 8]
    ours = engine.run(range(3000), images, torch.arange(3)).double()
    with torch.no_grad():
        theirs = torch.stack([bnn(images) for _ in range(3000)]).double()
    deviation = (ours.var(0) + theirs.var(0)).div(3000).sqrt()
    assert float(((ours.mean(0) - theirs.mean(0)) / deviation).abs().max()) < 6
    # The standard deviation of a variance is sqrt((kurtosis - 1) / n) of it; that of these outputs is below 9.
    assert float((ours.var(0) / theirs.var(0)).log().abs().max()) < 6 * (2 * 8 / 3000) ** 0.5


def test_inputs_of_another_size_are_the_models_own() -> None:
    """What is left out was decided for one size."""
    bnn = convert(Small().eval())
    bank = PassBank(bnn, torch.randn(2, 2, 1, 1), 0)
    bank.draw(0, 1)
    assert bank.sampler.startswith("engine")
    bank.images = torch.randn(2, 2, 2, 2)
    with torch.no_grad():
        wanted = bnn(bank.images).shape
    assert bank.draw(0, 1).shape[1:] == wanted
    assert "inputs of one size" in bank.sampler
