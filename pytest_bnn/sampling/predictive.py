"""The predictive distribution of a network: what its Monte-Carlo passes say together, without keeping them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn

from pytest_bnn.data.batch import Inputs
from pytest_bnn.data.fitting import fitted
from pytest_bnn.data.given import does_not_accept, given_samples, require_weights
from pytest_bnn.data.probing import probe
from pytest_bnn.errors import InputError
from pytest_bnn.network.calling import ForwardError
from pytest_bnn.sampling.bank import PassBank, probabilities
from pytest_bnn.sampling.threads import limited, share
from pytest_bnn.stats.moments import Mean, Moments

#: Numbers of the outputs that are held at a time, the classes expected before the first pass, and passes a thread.
_BLOCK_NUMBERS, _CLASSES, _BLOCK_PASSES = 4_000_000, 1000, 8


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Predictive:
    """What ``passes`` passes say about ``N`` images and ``C`` classes; entropies in nats, floats in float64 on the CPU.

    It holds tensors, to compute with; unlike `Evidence` it is no part of an audit's JSON.

    Attributes:
        passes: The number of passes drawn.
        seed: The seed of the passes.
        sampler: The sampler that drew them, and why; both in turn, where that changed on the way.
        mean: The mean of the outputs over passes, ``[N, C]``.
        variance: The variance of the outputs over passes, ``[N, C]``, divided by ``passes - 1``; NaN for a single pass.
        probabilities: The mean of the class probabilities over passes, ``[N, C]``.
        votes: The number of passes in which a class led, ``[N, C]``, whole numbers; of equal classes the first leads.
        confidence: Histogram over passes of the leading class's probability, ``[N, bins]``, whole numbers; equal bins
            from 0 to 1, which hold their lower edge, and the last one its upper edge too.
        predictive_entropy: The entropy of the mean probabilities, ``[N]``: the total uncertainty.
        expected_entropy: The mean entropy of a pass, ``[N]``: the aleatoric part.
        mutual_information: That between class and weights, ``[N]``: the epistemic part, the difference of the two.
    """

    passes: int
    seed: int
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
    progress: Callable[[int, int], object] | None = None,
) -> Predictive:
    """Draw Monte-Carlo passes of a classifier and return its predictive distribution.

    Pass k is that of every `PassBank` with the same seed. Passes are drawn a few at a time and forgotten, so memory
    does not grow with their number. The number drawn at a time changes no count, and floats by rounding alone.
    Outputs count as probabilities where those of all passes are distributions over classes, and as logits otherwise,
    as in `probabilities`.

    Args:
        model: The Bayesian network; judged in eval mode, and left undisturbed.
        images: Inputs ``[N, ...]``, moved to the model's device and dtype.
        passes: The number of passes.
        seed: The seed of the passes.
        bins: The number of bins of the histogram.
        sampler: ``"auto"``, ``"own"``, ``"engine"`` or ``"native"``; the setting in force when None.
        progress: Called with the passes done and their number, after every few. What it raises ends the passes.

    Raises:
        InputError: The images cannot be used, or the outputs are not finite scores ``[N, C]`` of two or more classes.
        TypeError: An argument is of the wrong type.
        ValueError: A number is out of range, or there is no such sampler.

    Source: Chan, Golub and LeVeque 1983 for the merged moments; Gal 2016 and Depeweg et al. 2018 for the split of the
    uncertainty.
    """
    for name, value in (("passes", passes), ("bins", bins)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, not {value!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, not {seed!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, ...], not {type(images).__name__}")
    inputs = _inputs(model, images, seed)
    bank = PassBank(model, inputs, seed, sampler=sampler)
    running = _Running(len(inputs), bins)
    while running.passes < passes:
        with limited():
            stop = min(passes, running.passes + running.block())
            try:
                outputs = bank.draw(running.passes, stop)
            except ForwardError as error:
                raise does_not_accept("model", model, inputs, error) from error
            running.take(outputs)
        if progress is not None:
            progress(stop, passes)
    return running.result(seed, ", then ".join(bank.used))


def _inputs(model: nn.Module, images: Tensor, seed: int) -> Inputs:
    require_weights("model", model)
    samples, _ = given_samples(images, None)
    assert samples is not None
    probed = probe(samples, model, None, seed=seed)
    if probed.rowless:
        raise InputError(
            f"{probed.rowless}: its outputs belong to no single example",
            fix="wrap the model so that it returns one row of class scores for each image",
        )
    inputs: Inputs = fitted(probed.inputs, model)
    return inputs


class _Shares:
    """What the class probabilities of the passes so far say."""

    def __init__(self, images: int, bins: int) -> None:
        self.shares, self.entropy = Mean(), Mean()
        self.confidence = torch.zeros(images, bins, dtype=torch.int64)
        self.edges = torch.from_numpy(numpy.linspace(0, 1, bins + 1)[1:-1])

    def take(self, shares: Tensor) -> None:
        """Take a block ``[passes, N, C]``."""
        self.shares.take(shares)
        self.entropy.take(torch.special.entr(shares).sum(2))
        places = torch.bucketize(shares.amax(2).T.contiguous(), self.edges, right=True)
        self.confidence.scatter_add_(1, places, torch.ones_like(places))


class _Running:
    """What the passes so far say."""

    def __init__(self, images: int, bins: int) -> None:
        self.images = images
        self.outputs = Moments()
        self.votes = torch.zeros(0, dtype=torch.int64)
        self.softmaxed, self.as_given = _Shares(images, bins), _Shares(images, bins)
        self.given_are_shares = True

    @property
    def passes(self) -> int:
        """How many were taken."""
        return self.outputs.count

    def block(self) -> int:
        """Return how many passes to draw next."""
        classes = self.votes.shape[1] if self.passes else _CLASSES
        return max(1, min(_BLOCK_PASSES * share(), _BLOCK_NUMBERS // (self.images * classes)))

    def take(self, outputs: Tensor) -> None:
        """Take a block ``[passes, N, C]``.

        Raises:
            InputError: It is none, or not finite.
        """
        self._require_usable(outputs)
        outputs = outputs.detach().cpu().double()
        if not self.passes:
            self.votes = torch.zeros(outputs.shape[1:], dtype=torch.int64)
        leading = outputs.argmax(2).T
        self.votes.scatter_add_(1, leading, torch.ones_like(leading))
        shares = probabilities(outputs)
        # One block may look like probabilities by chance; what the outputs are must not depend on the blocks.
        self.given_are_shares &= shares is outputs
        if self.given_are_shares:
            self.as_given.take(outputs)
        self.softmaxed.take(torch.softmax(outputs, 2) if shares is outputs else shares)
        self.outputs.take(outputs)

    def _require_usable(self, outputs: Tensor) -> None:
        if outputs.ndim != 3 or outputs.shape[1] != self.images or outputs.shape[2] < 2:
            raise InputError(
                f"the model's outputs for {self.images} images have the shape {list(outputs.shape[1:])}, not "
                "[images, classes] with two or more classes",
                fix="wrap the model so that it returns one row of class scores for each image (a single logit z as the "
                "two scores 0 and z)",
            )
        bad = (~torch.isfinite(outputs)).nonzero()
        if len(bad):
            index, image, _ = bad[0].tolist()
            raise InputError(
                f"in pass {self.passes + index} the outputs for image {image} are NaN or infinite",
                fix="run assert_noise_varies on the model: it names the layers with such parameters",
            )

    def result(self, seed: int, sampler: str) -> Predictive:
        """Return the predictive distribution over the passes so far."""
        found = self.as_given if self.given_are_shares else self.softmaxed
        total, expected = torch.special.entr(found.shares.mean).sum(1), found.entropy.mean
        return Predictive(
            passes=self.passes,
            seed=seed,
            sampler=sampler,
            mean=self.outputs.mean,
            variance=self.outputs.variance,
            probabilities=found.shares.mean,
            votes=self.votes,
            confidence=found.confidence,
            predictive_entropy=total,
            expected_entropy=expected,
            mutual_information=(total - expected).clamp(min=0),
        )
