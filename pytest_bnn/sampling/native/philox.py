"""Counter-based noise in torch's integer operations: the same on every device, and that of the compiled kernels.

A number is a function of key, pass, stream and position alone: Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011,
"Parallel random numbers: as easy as 1, 2, 3") through Box and Muller 1958, with the counters laid out as in
`pytest_bnn.sampling.engine.kernels`. Words are equal to the bit; normal numbers up to the rounding of a device's
logarithm and circular functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pytest_bnn.sampling.engine.noise import BLOCK, Key

#: A part of a counter: one number for all, or a tensor (int64) that broadcasts with the others.
Part: TypeAlias = Tensor | int

_NUMBERS = 4 * BLOCK
_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

#: Counters that are worked on at a time, over all passes: it bounds the memory of the integers.
_AT_ONCE = 1 << 21


def words(counter: tuple[Tensor, Part, Part, Part], key: Key) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return Philox4x32-10 of counters: four words of 32 bits each, in int64.

    Args:
        counter: The four words of the counters.
        key: The two words of the key.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two words fills 64 bits: as int64 it wraps, and its bits are the same.
        p0, p1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1 = (p1 >> 32 & _LOW) ^ x1 ^ k0, p1 & _LOW  # type: ignore[assignment]
        x2, x3 = (p0 >> 32 & _LOW) ^ x3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    found = torch.broadcast_tensors(*(torch.as_tensor(x, device=counter[0].device) for x in (x0, x1, x2, x3)))
    return found[0], found[1], found[2], found[3]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Which numbers several tensors take: all of them are drawn together, as a device likes it.

    Attributes:
        first: The first counter of each block, int64 ``[blocks, 1]``.
        stream: The stream of each block, likewise.
        places: Where each tensor's numbers begin and end.
    """

    first: Tensor
    stream: Tensor
    places: tuple[slice, ...]

    @classmethod
    def of(cls, wanted: Sequence[tuple[int, int]], device: torch.device) -> Layout:
        """Lay numbers out for tensors, each with its stream and its size."""
        first, streams, places, start = [], [], [], 0
        for stream, size in wanted:
            blocks = -(-size // _NUMBERS)
            first.append(torch.arange(0, blocks * BLOCK, BLOCK, device=device))
            streams.append(torch.full((blocks,), stream, dtype=torch.int64, device=device))
            places.append(slice(start, start + size))
            start += blocks * _NUMBERS
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(torch.cat([none, *first])[:, None], torch.cat([none, *streams])[:, None], tuple(places))

    def draw(self, passes: Tensor, key: Key) -> list[Tensor]:
        """Return standard normal numbers for each tensor, float32 ``[passes, size]``.

        Args:
            passes: The numbers of the passes, int64 ``[passes]``, on the layout's device.
            key: The two words of the key.
        """
        count, lanes = len(passes), torch.arange(BLOCK, device=passes.device)
        out = torch.empty(count, len(self.first), 4, BLOCK, device=passes.device)
        step = max(1, _AT_ONCE // (BLOCK * max(1, count)))
        for start in range(0, len(self.first), step):
            part = slice(start, start + step)
            drawn = words((self.first[part] + lanes, self.stream[part], passes.view(-1, 1, 1), 0), key)
            for half in (0, 2):
                out[:, part, half], out[:, part, half + 1] = _two_normals(drawn[half], drawn[half + 1])
        flat = out.view(count, -1)
        return [flat[:, place] for place in self.places]


def _two_normals(radii: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Return Box and Muller's two normal numbers of two uniform words, each step as the compiled kernels take it."""
    u = radii.to(torch.float32) + 0.5
    radius = (2 * (32 * math.log(2) - u.log())).clamp_min(0).sqrt()
    # The lower 30 bits, centred: an angle in (-pi/4, pi/4) within the quadrant that the upper two say.
    t = ((angles & 0x3FFFFFFF).to(torch.float32) - 2.0**29) * (math.pi / 2**31)
    sine, cosine = t.sin(), t.cos()
    turned, opposite = (angles & 1 << 30) != 0, (angles & 1 << 31) != 0
    radius = torch.where(opposite, -radius, radius)
    return radius * torch.where(turned, sine, cosine), radius * torch.where(turned, cosine, -sine)


def signs(size: int, stream: int, index: Part, rows: Tensor, key: Key) -> Tensor:
    """Return fair signs, 1 or -1 in float32 ``[rows, size]``: those of a row depend on its number alone.

    Args:
        size: How many a row has.
        stream: The stream of what they are for.
        index: The number of the pass.
        rows: The numbers of the rows, int64 ``[rows]``, on the device where the signs are wanted.
        key: The two words of the key.
    """
    blocks = -(-size // (32 * _NUMBERS))
    counters = torch.arange(blocks * BLOCK, device=rows.device).view(1, blocks, 1, BLOCK)
    drawn = words((counters, stream, index, rows.view(-1, 1, 1, 1) + 1), key)  # 0 is the normals'
    lanes = torch.cat(drawn, 2).flatten(2)
    bits = lanes[:, :, None] >> torch.arange(32, device=rows.device)[:, None] & 1
    return 1 - 2 * bits.flatten(1)[:, :size].to(torch.float32)
