"""Compiled loops: counter-based Gaussian noise, fused with what it is for.

Noise is a pure function of (key, pass, stream, position): Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011,
"Parallel random numbers: as easy as 1, 2, 3") through Box and Muller 1958, with the logarithm and the circular
functions as polynomials in float32 (Moshier's Cephes library), so that every loop over a block is vectorised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
from numba import njit

from pytest_bnn.sampling.engine.noise import BLOCK

#: Numbers of a block; each counter gives four. Always computed whole, so that a number does not depend on how long the
#: tensor is or who asks; small, so that all that a loop needs stays in the first cache while the next block comes.
NUMBERS = 4 * BLOCK

FLOAT = numpy.float32
_MULTIPLIER_0 = numpy.uint64(0xD2511F53)
_MULTIPLIER_1 = numpy.uint64(0xCD9E8D57)
_WEYL_0 = numpy.uint32(0x9E3779B9)
_WEYL_1 = numpy.uint32(0xBB67AE85)
_LN2 = FLOAT(0.6931471805599453)

compiled: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})


@compiled
def philox_block(first: Any, stream: Any, index: Any, purpose: Any, key_0: Any, key_1: Any, words: Any) -> None:
    """Fill ``words[4, BLOCK]`` with Philox4x32-10 of the counters (first + j, stream, index, purpose)."""
    out_0, out_1, out_2, out_3 = words[0], words[1], words[2], words[3]
    for j in range(BLOCK):
        x0 = numpy.uint32(first + j)
        x1 = numpy.uint32(stream)
        x2 = numpy.uint32(index)
        x3 = numpy.uint32(purpose)
        k0 = numpy.uint32(key_0)
        k1 = numpy.uint32(key_1)
        for _ in range(10):
            p0 = numpy.uint64(x0) * _MULTIPLIER_0
            p1 = numpy.uint64(x2) * _MULTIPLIER_1
            y0 = numpy.uint32(p1 >> numpy.uint64(32)) ^ x1 ^ k0
            y2 = numpy.uint32(p0 >> numpy.uint64(32)) ^ x3 ^ k1
            x0, x1, x2, x3 = y0, numpy.uint32(p1), y2, numpy.uint32(p0)
            k0 = numpy.uint32(k0 + _WEYL_0)
            k1 = numpy.uint32(k1 + _WEYL_1)
        out_0[j] = x0
        out_1[j] = x1
        out_2[j] = x2
        out_3[j] = x3


@compiled
def log(x: Any) -> Any:
    """Natural logarithm of a positive, normal float32, by Cephes' logf."""
    bits = numpy.float32(x).view(numpy.int32)
    exponent = numpy.int32((bits >> numpy.int32(23)) - numpy.int32(127))
    m = numpy.int32((bits & numpy.int32(0x007FFFFF)) | numpy.int32(0x3F800000)).view(numpy.float32)
    large = m > FLOAT(1.41421356)
    m = m * FLOAT(0.5) if large else m
    scale = numpy.float32(exponent) + (FLOAT(1) if large else FLOAT(0))
    z = m - FLOAT(1)
    p = FLOAT(7.0376836292e-2)
    p = p * z + FLOAT(-1.1514610310e-1)
    p = p * z + FLOAT(1.1676998740e-1)
    p = p * z + FLOAT(-1.2420140846e-1)
    p = p * z + FLOAT(1.4249322787e-1)
    p = p * z + FLOAT(-1.6668057665e-1)
    p = p * z + FLOAT(2.0000714765e-1)
    p = p * z + FLOAT(-2.4999993993e-1)
    p = p * z + FLOAT(3.3333331174e-1)
    q = z * z
    return p * z * q - FLOAT(0.5) * q + z + scale * _LN2


@compiled
def exp(x: Any) -> Any:
    """Exponential of a float32 between -87 and 88, by Cephes' expf; beyond, that of the nearer end."""
    x = min(max(x, FLOAT(-87)), FLOAT(88))
    n = numpy.float32(numpy.floor(x * FLOAT(1.44269504088896341) + FLOAT(0.5)))
    r = x - n * FLOAT(0.693359375) - n * FLOAT(-2.12194440e-4)
    p = FLOAT(1.9875691500e-4)
    p = p * r + FLOAT(1.3981999507e-3)
    p = p * r + FLOAT(8.3334519073e-3)
    p = p * r + FLOAT(4.1665795894e-2)
    p = p * r + FLOAT(1.6666665459e-1)
    p = p * r + FLOAT(5.0000001201e-1)
    p = p * r * r + r + FLOAT(1)
    return p * numpy.int32((numpy.int32(n) + numpy.int32(127)) << numpy.int32(23)).view(numpy.float32)


@compiled
def log1p(e: Any) -> Any:
    """Logarithm of 1 + e for e >= 0; what rounding takes from 1 + e is put back where it can be seen."""
    u = FLOAT(1) + e
    return log(u) + (e - (u - FLOAT(1)) if u < FLOAT(2) else FLOAT(0))


@compiled
def normal_block(first: Any, stream: Any, index: Any, key_0: Any, key_1: Any, words: Any, normals: Any) -> None:
    """Fill ``normals[4, BLOCK]`` with standard normal numbers."""
    philox_block(first, stream, index, 0, key_0, key_1, words)
    for half in range(2):
        radii, angles = words[2 * half], words[2 * half + 1]
        out_0, out_1 = normals[2 * half], normals[2 * half + 1]
        for j in range(BLOCK):
            # (word + 1/2) / 2^32 lies in (0, 1], so the radius reaches 6.7 and is finite.
            u = numpy.float32(numpy.float32(radii[j]) + FLOAT(0.5))
            square = FLOAT(2) * (FLOAT(32) * _LN2 - log(u))
            radius = FLOAT(math.sqrt(max(square, FLOAT(0))))
            word = angles[j]
            quadrant = numpy.uint32(word >> numpy.uint32(30))
            # The lower 30 bits, centred: an angle in (-pi/4, pi/4) within the quadrant.
            fraction = numpy.float32(numpy.int32(word & numpy.uint32(0x3FFFFFFF))) + FLOAT(0.5 - 2**29)
            t = fraction * FLOAT(math.pi / 2**31)
            s = t * t
            sine = ((FLOAT(-1.9515295891e-4) * s + FLOAT(8.3321608736e-3)) * s + FLOAT(-1.6666654611e-1)) * s * t + t
            cosine = (FLOAT(2.443315711809948e-5) * s + FLOAT(-1.388731625493765e-3)) * s
            cosine = (cosine + FLOAT(4.166664568298827e-2)) * s * s - FLOAT(0.5) * s + FLOAT(1)
            turned = (quadrant & numpy.uint32(1)) != 0
            x = sine if turned else cosine
            y = cosine if turned else -sine
            radius = -radius if (quadrant & numpy.uint32(2)) != 0 else radius
            out_0[j] = radius * x
            out_1[j] = radius * y


@compiled
def draw(
    out: Any,
    mean: Any,
    spread: Any,
    place: Any,
    stream: Any,
    index: Any,
    key_0: Any,
    key_1: Any,
    words: Any,
    normals: Any,
) -> None:
    """Write ``mean + spread * eps`` into ``out``; all are flat float32, ``words`` and ``normals`` are scratch.

    ``place`` is the number of the first entry in its tensor, a multiple of `NUMBERS`.
    """
    flat = normals.reshape(-1)
    size = out.size
    for start in range(0, size, NUMBERS):
        normal_block((place + start) // 4, stream, index, key_0, key_1, words, normals)
        stop = min(start + NUMBERS, size)
        o, m, s = out[start:stop], mean[start:stop], spread[start:stop]
        for j in range(o.size):
            o[j] = m[j] + s[j] * flat[j]


@compiled
def mean_row(out: Any, source: Any, offsets: Any, step: Any, factor: Any) -> None:
    """Write ``source[offsets[tap] + channel * step] * factor`` into ``out``, tap by tap."""
    channels = out.size // offsets.size
    for tap in range(offsets.size):
        o, s = out[tap * channels : (tap + 1) * channels], source[offsets[tap] :]
        if step == 1:
            for channel in range(channels):
                o[channel] = s[channel] * factor
        else:
            for channel in range(channels):
                o[channel] = s[channel * step] * factor


@compiled
def draw_around(
    out: Any,
    source: Any,
    offsets: Any,
    steps: Any,
    scale: Any,
    spread: Any,
    place: Any,
    stream: Any,
    index: Any,
    key_0: Any,
    key_1: Any,
    words: Any,
    normals: Any,
) -> None:
    """Write ``mean * scale + spread * eps`` into ``out``, for a mean that lies in memory in another order.

    ``out`` has rows of taps of channels; the mean of an entry is at ``row * steps[0] + offsets[tap] + channel *
    steps[1]`` of ``source``. ``scale`` is a number for each row. Rounds as `draw` does with a mean scaled before.
    """
    flat = normals.reshape(-1)
    size, rows = out.size, scale.size
    wide = size // rows
    row = 0
    for start in range(0, size, NUMBERS):
        normal_block((place + start) // 4, stream, index, key_0, key_1, words, normals)
        stop = min(start + NUMBERS, size)
        while row * wide < stop:
            mean_row(out[row * wide : (row + 1) * wide], source[row * steps[0] :], offsets, steps[1], scale[row])
            row += 1
        o, s = out[start:stop], spread[start:stop]
        for j in range(o.size):
            o[j] += s[j] * flat[j]


@compiled
def draw_zero_mean(
    out: Any, spread: Any, stream: Any, index: Any, key_0: Any, key_1: Any, words: Any, normals: Any
) -> None:
    """Write ``spread * eps`` into ``out``."""
    flat = normals.reshape(-1)
    size = out.size
    for start in range(0, size, NUMBERS):
        normal_block(start // 4, stream, index, key_0, key_1, words, normals)
        stop = min(start + NUMBERS, size)
        o, s = out[start:stop], spread[start:stop]
        for j in range(o.size):
            o[j] = s[j] * flat[j]


@compiled
def flip_signs(out: Any, values: Any, stream: Any, index: Any, rows: Any, key_0: Any, key_1: Any, words: Any) -> None:
    """Write ``values[row, :]`` times random signs into ``out``, the signs of a row keyed by ``rows[row]``."""
    size = values.shape[1]
    lanes = words.reshape(-1)
    sign = numpy.uint32(0x80000000)
    for row in range(values.shape[0]):
        source = values[row].view(numpy.uint32)
        target = out[row].view(numpy.uint32)
        for start in range(0, size, 32 * NUMBERS):
            philox_block(start // 128, stream, index, rows[row], key_0, key_1, words)
            for bit in range(32):
                low = start + bit * NUMBERS
                high = min(low + NUMBERS, size)
                if low >= high:
                    break
                shift = numpy.uint32(31 - bit)
                o, v = target[low:high], source[low:high]
                for j in range(o.size):
                    o[j] = v[j] ^ (numpy.uint32(lanes[j] << shift) & sign)
