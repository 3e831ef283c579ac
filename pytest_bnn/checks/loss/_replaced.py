"""The loss where other outputs take the place of the model's: what it does with them, whatever the network can give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytest_bnn.checks._objective import Evaluation, evaluate
from pytest_bnn.checks._outputs import output_of
from pytest_bnn.checks.finding import LossError
from pytest_bnn.errors import InputError
from pytest_bnn.libraries.posterior import BayesianLayer
from pytest_bnn.network.tree import mapped
from pytest_bnn.subject import Subject


def largest_at_the_labels(subject: Subject, layers: tuple[BayesianLayer, ...], left: Evaluation) -> bool:
    """Return whether the loss is larger where the outputs are the labels than on both sides of them.

    That is what a distance whose sign was lost is. A loss that compares the outputs with something else than the labels
    (a residual, a logarithm, other units) rises toward one side.
    """
    labels = subject.loss_labels(subject.loss_batch())
    held = [output_of(call.output, subject.task.field) for call in left.outputs]
    if labels is None or not held or any(leaf is None or leaf.numel() != labels.numel() for leaf in held):
        return False
    size = max(float((leaf.detach() - labels.reshape(leaf.shape)).abs().mean()) for leaf in held if leaf is not None)

    def value(offset: float) -> float:
        def at_the_labels(output: Any) -> Any:
            leaf = output_of(output, subject.task.field)
            if leaf is None:
                return output
            other = (labels.reshape(leaf.shape).to(leaf) + offset).requires_grad_(leaf.requires_grad)
            return mapped(output, lambda part: other if part is leaf else part)

        return evaluate(subject, layers, noise="cut", free_rho=True, backward=False, replaced=at_the_labels).value

    try:
        middle = value(0.0)
        return all(value(offset) < middle for offset in (size, -size))
    except (InputError, LossError):
        return False


def moves_with_the_outputs(subject: Subject, layers: list[BayesianLayer], left: Evaluation) -> bool:
    """Return whether the loss changes where random numbers, large or all 0, take the place of the model's outputs.

    Hinges are 0 wherever the network is sure enough, and no change of its weights may bring them back.
    """

    def value(times: float) -> float:
        generator = torch.Generator().manual_seed(4)

        def random(part: Any) -> Any:
            if not isinstance(part, Tensor) or not part.is_floating_point() or not part.ndim:
                return part
            size = times * (float(part.detach().double().square().mean().sqrt()) or 1.0)
            other = size * torch.randn(part.shape, generator=generator, dtype=torch.float64)
            return other.to(part).requires_grad_(part.requires_grad)

        def replaced(output: Any) -> Any:
            return mapped(output, random)

        return evaluate(subject, layers, noise="cut", free_rho=True, backward=False, replaced=replaced).value

    rounding = 1e-5 * abs(left.value)
    try:
        return any(abs(value(times) - left.value) > rounding for times in (1.0, 10.0, 0.0))
    except (InputError, LossError):
        return True
