"""``kl.loss`` beside data terms whose scale does not show: what may be right is not accused, what cannot be is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch.nn import functional

from pytest_bnn import convert, kl
from pytest_bnn.checks import measure_kl_loss
from pytest_bnn.records.evidence import Evidence, Verdict

ROWS, BATCHES, COLUMNS = 24, 30, 3
EXAMPLES = ROWS * BATCHES

Term = Callable[[Tensor, Tensor], Tensor]
Divergence = Callable[[nn.Module], Tensor]


def judged(term: Term, divergence: Divergence, labels: str = "numbers", how: Any = None, **declared: Any) -> Evidence:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, COLUMNS)).eval()
    model = convert(network, type=how or "Reparameterization", moped_delta=0.1)
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(ROWS, 6, generator=generator)
    kinds = {
        "numbers": torch.randn(ROWS, COLUMNS, generator=generator),
        "classes": torch.arange(ROWS) % COLUMNS,
        "sides": (torch.randn(ROWS, COLUMNS, generator=generator) > 0).float(),
    }

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return term(model(batch[0]), batch[1]) + divergence(model)

    return measure_kl_loss(model, loss=loss, images=images, labels=kinds[labels], **declared)


def library(times: float = 1.0) -> Divergence:
    return lambda model: times * get_kl_loss(model) / BATCHES


def summed(weight: float) -> Divergence:
    return lambda model: weight * kl(model, convention="sum")


def squares(out: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(out, y)


def sum_of_squares(out: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(out, y, reduction="sum")


def weighted(out: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(out, y, torch.tensor([1.0, 2.0, 0.5]))


def binary(out: Tensor, y: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(out, y)


def sum_of_binary(out: Tensor, y: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(out, y, reduction="sum")


RIGHT: dict[str, tuple[Term, str, Divergence]] = {
    "squares, the library's": (squares, "numbers", library()),
    "squares, by examples": (squares, "numbers", summed(1 / EXAMPLES)),
    "squares, by numbers": (squares, "numbers", summed(1 / EXAMPLES / COLUMNS)),
    "Huber, by examples": (functional.huber_loss, "numbers", summed(1 / EXAMPLES)),
    "sum of squares, by batches": (sum_of_squares, "numbers", summed(1 / BATCHES)),
    "sum of squares, all of it times the numbers": (sum_of_squares, "numbers", library(ROWS * COLUMNS)),
    "class weights, by examples": (weighted, "classes", summed(1 / EXAMPLES)),
    "class weights, the library's": (weighted, "classes", library()),
    "several sides, the library's": (binary, "sides", library()),
    "several sides, by examples": (binary, "sides", summed(1 / EXAMPLES)),
    "several sides, by sides": (binary, "sides", summed(1 / EXAMPLES / COLUMNS)),
    "sum over sides, by batches": (sum_of_binary, "sides", summed(1 / BATCHES)),
    "sum over sides, all of it times their number": (sum_of_binary, "sides", library(ROWS * COLUMNS)),
}

#: What is too large or too small however the data term is scaled.
WRONG: dict[str, tuple[Term, str, Divergence]] = {
    "squares, not divided": (squares, "numbers", library(BATCHES)),
    "squares, a sum that is not divided": (squares, "numbers", summed(1.0)),
    "mean of squares, times the rows": (squares, "numbers", library(ROWS)),
    "sum of squares, by examples": (sum_of_squares, "numbers", lambda m: get_kl_loss(m) / EXAMPLES),
    "class weights, not divided": (weighted, "classes", library(BATCHES)),
    "several sides, times the rows": (binary, "sides", library(ROWS)),
    "sum over sides, by examples": (sum_of_binary, "sides", summed(1 / EXAMPLES)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_weight_that_may_be_right_passes(name: str) -> None:
    term, labels, divergence = RIGHT[name]
    by_examples = "num_data" if "by " in name and "batches" not in name else "num_batches"
    for declared in ({"num_batches": BATCHES}, {by_examples: EXAMPLES if by_examples == "num_data" else BATCHES}):
        found = judged(term, divergence, labels, **declared)
        assert found.verdict is Verdict.PASS, found.explain()
    both = judged(term, divergence, labels, "Flipout", num_batches=BATCHES, num_data=EXAMPLES)
    assert both.verdict is Verdict.PASS, both.explain()


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.fault("B27", "kl.loss")
def test_a_weight_that_cannot_be_right_is_found(name: str) -> None:
    term, labels, divergence = WRONG[name]
    found = judged(term, divergence, labels, num_batches=BATCHES)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "expected" in found.headline


def test_pixels_count_as_examples_or_by_themselves() -> None:
    """A mean over pixels is one over examples, too: the KL is divided by the number of either."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, COLUMNS, 1)).eval()
    model = convert(network, moped_delta=0.1)
    images, labels = torch.randn(ROWS, 1, 4, 4), torch.randint(COLUMNS, (ROWS, 4, 4))

    def found(weight: float) -> Evidence:
        def loss(model: nn.Module, batch: Any) -> Tensor:
            value: Tensor = functional.cross_entropy(model(batch[0]), batch[1]) + weight * kl(model, convention="sum")
            return value

        return measure_kl_loss(model, loss=loss, images=images, labels=labels, num_data=EXAMPLES)

    assert found(1 / EXAMPLES).verdict is Verdict.PASS
    assert found(1 / EXAMPLES / 16).verdict is Verdict.PASS
    assert found(1 / BATCHES).verdict is Verdict.FAIL
