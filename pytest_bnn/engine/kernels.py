"""Compiled loops: counter-based Gaussian noise fused with what it is for, the closed-form KL, and Adam with both.

Noise is a pure function of (key, pass, stream, position): Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011,
"Parallel random numbers: as easy as 1, 2, 3") through Box and Muller 1958, with the logarithm and the circular
functions as polynomials in float32 (Moshier's Cephes library), so that every loop over a block is vectorised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
from numba import njit

#: Counters of one block; each gives four words, so a block is 2048 numbers. Always computed whole, so that a
#: number does not depend on how long the tensor is or who asks.
BLOCK = 512
NUMBERS = 4 * BLOCK

_FLOAT = numpy.float32
_MULTIPLIER_0 = numpy.uint64(0xD2511F53)
_MULTIPLIER_1 = numpy.uint64(0xCD9E8D57)
_WEYL_0 = numpy.uint32(0x9E3779B9)
_WEYL_1 = numpy.uint32(0xBB67AE85)
_LN2 = _FLOAT(0.6931471805599453)
_NAN = _FLOAT(numpy.nan)

_compiled: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})


@_compiled
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


@_compiled
def _log(x: Any) -> Any:
    """Natural logarithm of a positive, normal float32, by Cephes' logf."""
    bits = numpy.float32(x).view(numpy.int32)
    exponent = numpy.int32((bits >> numpy.int32(23)) - numpy.int32(127))
    m = numpy.int32((bits & numpy.int32(0x007FFFFF)) | numpy.int32(0x3F800000)).view(numpy.float32)
    large = m > _FLOAT(1.41421356)
    m = m * _FLOAT(0.5) if large else m
    scale = numpy.float32(exponent) + (_FLOAT(1) if large else _FLOAT(0))
    z = m - _FLOAT(1)
    p = _FLOAT(7.0376836292e-2)
    p = p * z + _FLOAT(-1.1514610310e-1)
    p = p * z + _FLOAT(1.1676998740e-1)
    p = p * z + _FLOAT(-1.2420140846e-1)
    p = p * z + _FLOAT(1.4249322787e-1)
    p = p * z + _FLOAT(-1.6668057665e-1)
    p = p * z + _FLOAT(2.0000714765e-1)
    p = p * z + _FLOAT(-2.4999993993e-1)
    p = p * z + _FLOAT(3.3333331174e-1)
    q = z * z
    return p * z * q - _FLOAT(0.5) * q + z + scale * _LN2


@_compiled
def _exp(x: Any) -> Any:
    """Exponential of a float32 between -87 and 88, by Cephes' expf; beyond, that of the nearer end."""
    x = min(max(x, _FLOAT(-87)), _FLOAT(88))
    n = numpy.float32(numpy.floor(x * _FLOAT(1.44269504088896341) + _FLOAT(0.5)))
    r = x - n * _FLOAT(0.693359375) - n * _FLOAT(-2.12194440e-4)
    p = _FLOAT(1.9875691500e-4)
    p = p * r + _FLOAT(1.3981999507e-3)
    p = p * r + _FLOAT(8.3334519073e-3)
    p = p * r + _FLOAT(4.1665795894e-2)
    p = p * r + _FLOAT(1.6666665459e-1)
    p = p * r + _FLOAT(5.0000001201e-1)
    p = p * r * r + r + _FLOAT(1)
    return p * numpy.int32((numpy.int32(n) + numpy.int32(127)) << numpy.int32(23)).view(numpy.float32)


@_compiled
def _log1p(e: Any) -> Any:
    """Logarithm of 1 + e for e >= 0; what rounding takes from 1 + e is put back where it can be seen."""
    u = _FLOAT(1) + e
    return _log(u) + (e - (u - _FLOAT(1)) if u < _FLOAT(2) else _FLOAT(0))


@_compiled
def normal_block(first: Any, stream: Any, index: Any, key_0: Any, key_1: Any, words: Any, normals: Any) -> None:
    """Fill ``normals[4, BLOCK]`` with standard normal numbers."""
    philox_block(first, stream, index, 0, key_0, key_1, words)
    for half in range(2):
        radii, angles = words[2 * half], words[2 * half + 1]
        out_0, out_1 = normals[2 * half], normals[2 * half + 1]
        for j in range(BLOCK):
            # (word + 1/2) / 2^32 lies in (0, 1], so the radius reaches 6.7 and is finite.
            u = numpy.float32(numpy.float32(radii[j]) + _FLOAT(0.5))
            square = _FLOAT(2) * (_FLOAT(32) * _LN2 - _log(u))
            radius = _FLOAT(math.sqrt(max(square, _FLOAT(0))))
            word = angles[j]
            quadrant = numpy.uint32(word >> numpy.uint32(30))
            # The lower 30 bits, centred: an angle in (-pi/4, pi/4) within the quadrant.
            fraction = numpy.float32(numpy.int32(word & numpy.uint32(0x3FFFFFFF))) + _FLOAT(0.5 - 2**29)
            t = fraction * _FLOAT(math.pi / 2**31)
            s = t * t
            sine = ((_FLOAT(-1.9515295891e-4) * s + _FLOAT(8.3321608736e-3)) * s + _FLOAT(-1.6666654611e-1)) * s * t + t
            cosine = (_FLOAT(2.443315711809948e-5) * s + _FLOAT(-1.388731625493765e-3)) * s
            cosine = (cosine + _FLOAT(4.166664568298827e-2)) * s * s - _FLOAT(0.5) * s + _FLOAT(1)
            turned = (quadrant & numpy.uint32(1)) != 0
            x = sine if turned else cosine
            y = cosine if turned else -sine
            radius = -radius if (quadrant & numpy.uint32(2)) != 0 else radius
            out_0[j] = radius * x
            out_1[j] = radius * y


@_compiled
def draw(
    out: Any, mean: Any, spread: Any, stream: Any, index: Any, key_0: Any, key_1: Any, words: Any, normals: Any
) -> None:
    """Write ``mean + spread * eps`` into ``out``; all are flat float32, ``words`` and ``normals`` are scratch."""
    flat = normals.reshape(-1)
    size = out.size
    for start in range(0, size, NUMBERS):
        normal_block(start // 4, stream, index, key_0, key_1, words, normals)
        stop = min(start + NUMBERS, size)
        o, m, s = out[start:stop], mean[start:stop], spread[start:stop]
        for j in range(o.size):
            o[j] = m[j] + s[j] * flat[j]


@_compiled
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


@_compiled
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


@_compiled
def _take_prior(prior_mu: Any, prior_sigma: Any, low: Any, size: Any, centers: Any, precisions: Any) -> Any:
    """Fill a block of so many numbers with prior means and precisions; give the sum of the logarithms of their sigma."""
    if prior_mu.size == 1:
        centers[:size] = prior_mu[0]
        precisions[:size] = _FLOAT(1) / (prior_sigma[0] * prior_sigma[0])
        return size * math.log(prior_sigma[0])
    c, s = prior_mu[low : low + size], prior_sigma[low : low + size]
    centers[:size] = c
    if _is_constant(s):  # as good as always; a logarithm and a division saved
        precisions[:size] = _FLOAT(1) / (s[0] * s[0])
        return size * math.log(s[0])
    logarithms = 0.0
    for j in range(size):
        precisions[j] = _FLOAT(1) / (s[j] * s[j])
        logarithms += math.log(s[j])
    return logarithms


@_compiled
def _is_constant(values: Any) -> Any:
    others = numpy.int32(0)
    for j in range(values.size):
        others |= numpy.int32(values[j] != values[0])
    return others == 0


@_compiled
def divergence(mu: Any, rho: Any, prior_mu: Any, prior_sigma: Any, factor: Any, to_mu: Any, to_rho: Any) -> Any:
    """Give KL(N(mu, sigma^2) || prior), summed, with sigma = log(1 + exp(rho)); NaN where rho is beyond 87.

    All arrays are flat float32; the prior's have size 1 or the tensor's. ``factor`` times the gradient to mu and to rho
    is written into ``to_mu`` and ``to_rho``, where these are not empty.
    """
    total: Any = 0.0
    centers = numpy.empty(NUMBERS, dtype=numpy.float32)
    precisions = numpy.empty(NUMBERS, dtype=numpy.float32)
    sigmas = numpy.empty(NUMBERS, dtype=numpy.float32)
    squares = numpy.empty(NUMBERS, dtype=numpy.float32)
    wanted = to_mu.size > 0
    for low in range(0, mu.size, NUMBERS):
        high = min(low + NUMBERS, mu.size)
        m, r = mu[low:high], rho[low:high]
        total += _take_prior(prior_mu, prior_sigma, low, m.size, centers, precisions)
        for j in range(m.size):
            sigma = _log1p(_exp(r[j]))
            gap = m[j] - centers[j]
            square = _FLOAT(0.5) * precisions[j] * (sigma * sigma + gap * gap)
            squares[j] = square if abs(r[j]) < _FLOAT(87) else _NAN
            sigmas[j] = sigma
        total += _divergence(squares, sigmas, m.size) - 0.5 * m.size
        if wanted:
            gm, gr = to_mu[low:high], to_rho[low:high]
            for j in range(m.size):
                grown, sigma = _exp(r[j]), sigmas[j]
                gm[j] = factor * (m[j] - centers[j]) * precisions[j]
                gr[j] = factor * (sigma * sigma * precisions[j] - _FLOAT(1)) * grown / (sigma + sigma * grown)
    return total


# A sum may be taken in any order; that is what lets these be vectorised.
@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
def _divergence(squares: Any, sigmas: Any, size: Any) -> Any:
    part: Any = _FLOAT(0)
    for j in range(size):
        part += squares[j] - _log(sigmas[j])
    return part


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
def _squares(values: Any) -> Any:
    part: Any = _FLOAT(0)
    for j in range(values.size):
        part += values[j] * values[j]
    return part


@_compiled
def adam_step(
    mu: Any, rho: Any, weight: Any, eps: Any, gradient: Any, moments: Any, prior_mu: Any, prior_sigma: Any,
    kl_factor: Any, rates: Any, start: Any, stop: Any, stream: Any, index: Any, key_0: Any, key_1: Any,
    words: Any, normals: Any, sums: Any,
) -> None:  # fmt: skip
    """Take one step of Adam (Kingma and Ba 2015) on part of a posterior tensor, and draw its next weights.

    All arrays are flat float32; the part is ``start`` (a multiple of `NUMBERS`) to ``stop``. ``mu`` and ``rho`` are
    moved. ``gradient`` is that of the data term to the weights, ``eps`` the noise in them; it receives the next noise,
    ``weight`` the next weights. ``moments`` ``[4, size]`` are Adam's first and second of mu and of rho; the prior has
    size 1 or the tensor's. ``kl_factor`` is what KL(posterior || prior), summed over the tensor, counts in the loss.
    ``rates`` holds the step size of mu and of rho (0: frozen) over the bias correction of the first moment, the decay
    of both moments, the root of the bias correction of the second, and Adam's epsilon. ``sums`` receives the KL before
    the step, and the squares of the loss's gradient to mu and to rho.
    """
    rate_mu, rate_rho, beta_1, beta_2, root, tiny = rates[0], rates[1], rates[2], rates[3], rates[4], rates[5]
    rest_1, rest_2 = _FLOAT(1) - beta_1, _FLOAT(1) - beta_2
    inverse_root = _FLOAT(1) / root
    flat = normals.reshape(-1)
    centers = numpy.empty(NUMBERS, dtype=numpy.float32)
    precisions = numpy.empty(NUMBERS, dtype=numpy.float32)
    sigmas = numpy.empty(NUMBERS, dtype=numpy.float32)
    quadratic = numpy.empty(NUMBERS, dtype=numpy.float32)
    kl: Any = 0.0
    squares_mu: Any = 0.0
    squares_rho: Any = 0.0
    for low in range(start, stop, NUMBERS):
        high = min(low + NUMBERS, stop)
        m, r, w, e, g = mu[low:high], rho[low:high], weight[low:high], eps[low:high], gradient[low:high]
        m1, m2, r1, r2 = moments[0, low:high], moments[1, low:high], moments[2, low:high], moments[3, low:high]
        kl += _take_prior(prior_mu, prior_sigma, low, m.size, centers, precisions)
        for j in range(m.size):
            grown = _exp(r[j])
            sigma = _log1p(grown)
            gap = m[j] - centers[j]
            quadratic[j] = _FLOAT(0.5) * precisions[j] * (sigma * sigma + gap * gap)
            sigmas[j] = sigma
            to_mu = g[j] + kl_factor * gap * precisions[j]
            to_sigma = g[j] * e[j] * sigma + kl_factor * (sigma * sigma * precisions[j] - _FLOAT(1))
            to_rho = to_sigma * grown / (sigma + sigma * grown)
            w[j] = to_mu
            e[j] = to_rho
            m1[j] = beta_1 * m1[j] + rest_1 * to_mu
            m2[j] = beta_2 * m2[j] + rest_2 * to_mu * to_mu
            r1[j] = beta_1 * r1[j] + rest_1 * to_rho
            r2[j] = beta_2 * r2[j] + rest_2 * to_rho * to_rho
            m[j] -= rate_mu * m1[j] / (_FLOAT(math.sqrt(m2[j])) * inverse_root + tiny)
            r[j] -= rate_rho * r1[j] / (_FLOAT(math.sqrt(r2[j])) * inverse_root + tiny)
        kl += _divergence(quadratic, sigmas, m.size) - 0.5 * m.size
        squares_mu += _squares(w)
        squares_rho += _squares(e)
        normal_block(low // 4, stream, index, key_0, key_1, words, normals)
        for j in range(m.size):
            e[j] = flat[j]
            w[j] = m[j] + _log1p(_exp(r[j])) * flat[j]
    sums[0] = kl
    sums[1] = squares_mu
    sums[2] = squares_rho
