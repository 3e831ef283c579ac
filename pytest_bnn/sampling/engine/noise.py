"""Where the engine's noise comes from: a pure function of seed, pass, stream and position."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy
import torch
from torch import Tensor

from pytest_bnn.errors import in_a_line

#: Counters of one block of compiled noise. What is compiled holds it: touch `kernels` after a change.
BLOCK = 128


@dataclass(frozen=True, slots=True, eq=False)
class Strided:
    """A mean that stays where it is, in memory of another order than what is drawn around it.

    That has rows of taps of channels. The mean of an entry is ``source[row * steps[0] + offsets[tap] + channel *
    steps[1]] * scale[row]``, and all of it, in the order it has there, is ``mean * scale``.
    """

    mean: Tensor
    scale: Tensor
    source: Any
    offsets: Any
    steps: tuple[int, int]

    @classmethod
    def of(cls, mean: Tensor, scale: Tensor | None, *, channels_last: bool) -> Strided | None:
        """Return a mean whose rows are its first dimension; None where no such steps lead through it.

        Args:
            mean: Float32, with two dimensions or more; none of them backwards.
            scale: A number for each row; 1 where None.
            channels_last: Whether the taps come before the channels in what is drawn.
        """
        shape, strides = mean.shape, mean.stride()
        if channels_last:
            taps, step = [(n, s) for n, s in zip(shape[2:], strides[2:], strict=True)], strides[1]
        elif mean[0].is_contiguous():
            taps, step = [], 1
        else:
            return None
        offsets = numpy.zeros(1, dtype=numpy.int64)
        for size, stride in taps:
            offsets = (offsets[:, None] + stride * numpy.arange(size)).reshape(-1)
        factors = torch.ones(shape[0]) if scale is None else scale
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        source = mean.as_strided((last + 1,), (1,)).numpy()
        return cls(mean, factors, source, offsets, (strides[0], step))

    def __getitem__(self, rows: slice) -> Strided:
        source = self.source[rows.start * self.steps[0] :]
        return Strided(self.mean[rows], self.scale[rows], source, self.offsets, self.steps)

    def laid_out(self, out: Tensor) -> Tensor:
        """Write the mean into a tensor of its shape; return that tensor."""
        return out.copy_(self.mean).mul_(self.scale.reshape(-1, *[1] * (self.mean.ndim - 1)))


#: The two words of a key.
Key: TypeAlias = tuple[int, int]


class Scratch:
    """Working memory of one thread."""

    def __init__(self) -> None:
        self.words = numpy.empty((4, BLOCK), dtype=numpy.uint32)
        self.normals = numpy.empty((4, BLOCK), dtype=numpy.float32)


class Noise(Protocol):
    """A source of noise. Numbers depend on the seed, ``stream``, ``index`` and the place alone."""

    name: str

    @property
    def step(self) -> int | None:
        """What ``place`` must be a multiple of; None where it must be 0."""

    def draw(
        self,
        out: Tensor,
        mean: Tensor | Strided | None,
        spread: Tensor,
        stream: int,
        index: int,
        scratch: Scratch,
        place: int = 0,
    ) -> None:
        """Write ``mean + spread * eps`` into ``out``; all float32, dense and of one layout; a mean of None is 0.

        A `Strided` mean has a layout of its own. ``place`` is the number of the first entry in a tensor of which this
        is a part with a mean, a multiple of `step`; 0 where that is None.
        """

    def flipped(self, values: Tensor, rows: Tensor, stream: int, index: int, scratch: Scratch) -> Tensor:
        """Return dense float32 values ``[rows, ...]`` with random signs, keyed by the number (int64) of each row."""


def flat(tensor: Tensor) -> Tensor:
    """Return a dense tensor's memory as one dimension, whatever its layout, without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,))


def key_of(seed: int) -> Key:
    """Return the two words of the key that Philox takes for a seed."""
    return seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF


class PhiloxNoise:
    """Compiled Philox noise; see `pytest_bnn.sampling.engine.kernels`.

    Raises:
        ImportError, or whatever numba raises: It is missing or cannot compile.
    """

    name = "Philox4x32-10, compiled"
    step: int | None = 4 * BLOCK

    def __init__(self, seed: int) -> None:
        import numba

        if getattr(numba.config, "DISABLE_JIT", False):
            raise ImportError("its compiler is switched off by NUMBA_DISABLE_JIT")
        # By its full name: see `pytest_bnn.training.divergence`.
        self.kernels: Any = importlib.import_module("pytest_bnn.sampling.engine.kernels")
        self.key = key_of(seed)
        one = torch.ones(1)
        self.draw(one, one, one, 0, 0, Scratch())

    def draw(
        self,
        out: Tensor,
        mean: Tensor | Strided | None,
        spread: Tensor,
        stream: int,
        index: int,
        scratch: Scratch,
        place: int = 0,
    ) -> None:
        """As `Noise.draw`."""
        target, width = flat(out).numpy(), flat(spread).numpy()
        work = (stream, index, *self.key, scratch.words, scratch.normals)
        if mean is None:
            self.kernels.draw_zero_mean(target, width, *work)
        elif isinstance(mean, Strided):
            lies = mean.source, mean.offsets, mean.steps, mean.scale.numpy()
            self.kernels.draw_around(target, *lies, width, place, *work)
        else:
            self.kernels.draw(target, flat(mean).numpy(), width, place, *work)

    def flipped(self, values: Tensor, rows: Tensor, stream: int, index: int, scratch: Scratch) -> Tensor:
        """As `Noise.flipped`."""
        out = torch.empty_like(values)
        height = len(values)
        self.kernels.flip_signs(
            flat(out).view(height, -1).numpy(),
            flat(values).view(height, -1).numpy(),
            stream,
            index,
            (rows + 1).numpy(),  # 0 is the normals'
            *self.key,
            scratch.words,
        )
        return out


class TorchNoise:
    """torch's generator, seeded for each pass and stream: slower, for machines without numba."""

    name = "torch's generator"
    step: int | None = None

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def draw(
        self,
        out: Tensor,
        mean: Tensor | Strided | None,
        spread: Tensor,
        stream: int,
        index: int,
        scratch: Scratch,
        place: int = 0,
    ) -> None:
        """As `Noise.draw`."""
        target = flat(out)
        if isinstance(mean, Strided):
            mean = mean.laid_out(torch.empty_like(out))
        target.normal_(generator=self._generator(stream, index, 0))
        if mean is None:
            target.mul_(flat(spread))
        else:
            torch.addcmul(flat(mean), target, flat(spread), out=target)

    def flipped(self, values: Tensor, rows: Tensor, stream: int, index: int, scratch: Scratch) -> Tensor:
        """As `Noise.flipped`."""
        out = torch.empty_like(values)
        for row, number in enumerate(rows.tolist()):
            signs = torch.empty(values[row].numel()).bernoulli_(
                0.5, generator=self._generator(stream, index, number + 1)
            )
            flat(out[row]).copy_(flat(values[row]) * (2 * signs - 1))
        return out

    def _generator(self, *place: int) -> torch.Generator:
        state = numpy.random.SeedSequence(self._seed, spawn_key=place).generate_state(1, numpy.uint64)
        return torch.Generator().manual_seed(int(state[0] >> numpy.uint64(1)))


def make_noise(seed: int) -> tuple[Noise, str]:
    """Return the fastest source there is, and why it is not the compiled one, empty where it is."""
    try:
        return PhiloxNoise(seed), ""
    except Exception as error:
        return TorchNoise(seed), f"numba cannot be used: {in_a_line(error)}"
