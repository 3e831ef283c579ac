"""The predictive distribution of a network: what its Monte-Carlo passes say together, without keeping them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bnn.errors import InputError
from pytest_bnn.sampling import ForwardError, PassBank, probabilities
from pytest_bnn.subject import Subject, does_not_accept
from pytest_bnn.threads import limited

#: Numbers of the outputs that are held at a time, and the most passes in a block.
_BLOCK_NUMBERS, _BLOCK_PASSES = 4_000_000, 16


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Predictive:
    """What ``passes`` passes say about ``N`` images and ``C`` classes; entropies in nats, floats in float64.

    Attributes:
        passes: How many were drawn.
        sampler: What drew them, and why.
        mean: Of the outputs, ``[N, C]``.
        variance: Of the outputs over passes, ``[N, C]``, divided by ``passes - 1``; 0 for a single pass.
        probabilities: The mean over passes, ``[N, C]``.
        votes: In how many passes a class led, ``[N, C]``, whole numbers.
        confidence: Histogram over passes of the leading class's probability, ``[N, bins]``: equal bins from 0 to 1.
        predictive_entropy: Of the mean probabilities, ``[N]``: the total uncertainty.
        expected_entropy: The mean entropy of a pass, ``[N]``: the aleatoric part.
        mutual_information: Between class and weights, ``[N]``: the epistemic part, the difference of the two.
    """

    passes: int
    sampler: str
    mean: Tensor
    variance: Tensor
    probabilities: Tensor
    votes: Tensor
    confidence: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor


def predict(
    model: nn.Module,
    images: Tensor,
    *,
    passes: int = 100,
    seed: int = 0,
    bins: int = 20,
    sampler: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predictive:
    """Draw Monte-Carlo passes of a classifier and give its predictive distribution, pass k as in every `PassBank`.

    Passes are drawn a few at a time and forgotten, so memory does not grow with their number. Mean and variance are
    merged by Chan, Golub and LeVeque 1983, uncertainty is split as in Depeweg et al. 2018.

    Args:
        model: The Bayesian network; judged in eval mode, and left undisturbed.
        images: Inputs ``[N, ...]``, moved to the model's device and dtype.
        passes: How many.
        seed: Of the passes.
        bins: Of the histogram.
        sampler: ``"auto"``, ``"own"`` or ``"engine"``; the setting in force when None.
        progress: Called with the passes done and their number, after every few.

    Raises:
        InputError: The images cannot be used, or the outputs are not ``[N, C]``.
        ValueError: A number is out of range.
    """
    if passes < 1 or bins < 1:
        raise ValueError(f"passes and bins must be at least 1, not {passes} and {bins}")
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, ...], not {type(images).__name__}")
    subject = Subject(model, images=images, seed=seed)
    inputs = subject.require_images()
    bank = PassBank(model, inputs, seed, sampler=sampler)
    running: _Running | None = None
    with limited():
        while running is None or running.passes < passes:
            done = 0 if running is None else running.passes
            stop = min(passes, 1 if running is None else done + running.block)
            try:
                outputs = bank.draw(done, stop)
            except ForwardError as error:
                raise does_not_accept("model", model, inputs, error) from error
            running = running or _Running(outputs[0], bins)
            running.take(outputs)
            if progress is not None:
                progress(stop, passes)
    return running.result(bank.sampler)


class _Running:
    """Sums over the passes so far."""

    def __init__(self, output: Tensor, bins: int) -> None:
        if output.ndim != 2 or not output.is_floating_point():
            raise InputError(
                f"the model's outputs have the shape {list(output.shape)} and not [images, classes]",
                fix="give a classifier's logits: wrap the model so that it returns them",
            )
        images, classes = output.shape
        self.passes = 0
        self.block = max(1, min(_BLOCK_PASSES, _BLOCK_NUMBERS // max(1, output.numel())))
        self.mean, self.squares, self.shares = torch.zeros(3, images, classes, dtype=torch.float64)
        self.entropy = torch.zeros(images, dtype=torch.float64)
        self.votes = torch.zeros(images, classes, dtype=torch.int64)
        self.confidence = torch.zeros(images, bins, dtype=torch.int64)

    def take(self, outputs: Tensor) -> None:
        """Take a block ``[passes, N, C]``."""
        outputs = outputs.detach().cpu().double()
        count = len(outputs)
        mean = outputs.mean(0)
        gap, total = mean - self.mean, self.passes + count
        self.squares += (outputs - mean).square().sum(0) + gap.square() * (self.passes * count / total)
        self.mean += gap * (count / total)
        self.passes = total
        shares = probabilities(outputs)
        self.shares += shares.sum(0)
        self.entropy += torch.special.entr(shares).sum((0, 2))
        leads, leader = shares.max(2)
        self.votes.scatter_add_(1, leader.T, torch.ones_like(leader.T))
        bins = self.confidence.shape[1]
        places = (leads.T * bins).long().clamp(0, bins - 1)
        self.confidence.scatter_add_(1, places, torch.ones_like(places))

    def result(self, sampler: str) -> Predictive:
        """Give what they say."""
        shares, expected = self.shares / self.passes, self.entropy / self.passes
        total = torch.special.entr(shares).sum(1)
        return Predictive(
            passes=self.passes,
            sampler=sampler,
            mean=self.mean,
            variance=self.squares / max(1, self.passes - 1),
            probabilities=shares,
            votes=self.votes,
            confidence=self.confidence,
            predictive_entropy=total,
            expected_entropy=expected,
            mutual_information=(total - expected).clamp(min=0),
        )
