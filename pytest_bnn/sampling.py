"""The Monte-Carlo passes of a subject, drawn once and shared by its checks."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor, nn

from pytest_bnn.isolation import raised_in, seed_everything, undisturbed

#: Numbers in the images of one chunk: 64 images of 3x224x224. Bounds the memory of a pass.
_CHUNK = 64 * 3 * 224 * 224


class ForwardError(Exception):
    """A model's own forward raised; the cause is chained."""

    def __init__(self, error: BaseException, place: str = "") -> None:
        first = next(iter(str(error).strip().splitlines()), "")
        super().__init__(f"{type(error).__name__}: {first}" + (f", in {place}" if place else ""))


def output_tensor(output: Any) -> Tensor:
    """Take the logits from what a model returned: a tensor, ``(out, kl)``, or an object or dict with logits."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and "logits" in output:
        return output_tensor(output["logits"])
    if isinstance(output, tuple | list) and output:
        return output_tensor(output[0])
    if hasattr(output, "logits"):
        return output_tensor(output.logits)
    raise TypeError(f"the model returned {type(output).__name__}, not a tensor or (tensor, kl)")


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model once on a batch, without gradients.

    Raises:
        ForwardError: The model raised, or returned something that is no tensor.
    """
    try:
        with torch.no_grad():
            return output_tensor(model(images))
    except Exception as error:
        raise ForwardError(error, raised_in(model, error)) from error


def pass_seed(seed: int, index: int) -> int:
    """Give pass number ``index`` its own seed, so that a pass does not depend on which ones ran before it."""
    return int(
        numpy.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, numpy.uint64)[0] >> numpy.uint64(1)
    )


def probabilities(outputs: Tensor) -> Tensor:
    """Turn class scores ``[..., classes]`` into probabilities; scores that already are some stay as they are."""
    sums = outputs.sum(-1)
    if bool((outputs >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4)):
        return outputs
    return torch.softmax(outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs, dim=-1)


class PassBank:
    """The outputs of a model on a set of images, pass after pass: pass k is the same whoever asks first.

    One draw of the weights serves all images of a pass, as in the library, whatever the chunking (Flipout's
    signs repeat from chunk to chunk, which no statement about single images can notice).
    """

    def __init__(self, model: nn.Module, images: Tensor, seed: int) -> None:
        self.model = model
        self.images = images
        self.seed = seed
        self._stored: list[Tensor] = []

    @property
    def drawn(self) -> int:
        """How many passes on all images are there already."""
        return len(self._stored)

    def first(self, passes: int) -> Tensor:
        """Give the first passes on all images, ``[passes, images, ...]``, drawing those that are missing."""
        if len(self._stored) < passes:
            self._stored.extend(self.draw(len(self._stored), passes))
        return torch.stack(self._stored[:passes])

    def draw(self, start: int, stop: int, rows: Tensor | None = None) -> Tensor:
        """Give the passes from ``start`` up to ``stop``, on some images or all, without keeping them."""
        images = self.images if rows is None else self.images[rows]
        parts = images.split(max(1, _CHUNK // max(1, images[0].numel())))
        passes = []
        with undisturbed(self.model, seed=self.seed):
            for index in range(start, stop):
                outputs = []
                for part in parts:
                    seed_everything(pass_seed(self.seed, index))
                    outputs.append(forward(self.model, part))
                passes.append(torch.cat(outputs))
        return torch.stack(passes)
