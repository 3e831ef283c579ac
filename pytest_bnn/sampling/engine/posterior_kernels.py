"""Compiled loops over a posterior tensor: its closed-form KL, and a step of Adam with KL and next draw in one.

numba's cache of a function is renewed when its own file changes: after a change of `kernels`, touch this file too.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
from numba import njit

from pytest_bnn.sampling.engine.kernels import FLOAT, NUMBERS, compiled, exp, log, log1p, normal_block

_NAN = FLOAT(numpy.nan)

#: Below it six terms of the series of log(1 + e), e = exp(rho), are exact to half a rounding: e^6 / 7 < 5e-8.
_SMALL = FLOAT(-2.5)

# A sum may be taken in any order; that is what lets loops over sums be vectorised.
_summing: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})


@compiled
def _take_prior(prior_mu: Any, prior_sigma: Any, low: Any, size: Any, centers: Any, precisions: Any, last: Any) -> Any:
    """Fill a block of so many numbers with prior means and precisions; return the sum of the logarithms of their sigma.

    ``last`` holds the mean and sigma that the whole block is filled with from before, NaN where it is not.
    """
    c = prior_mu if prior_mu.size == 1 else prior_mu[low : low + size]
    s = prior_sigma if prior_sigma.size == 1 else prior_sigma[low : low + size]
    if _are_constant(c, s):  # as good as always
        if c[0] != last[0] or s[0] != last[1]:
            last[0], last[1] = c[0], s[0]
            centers[:] = c[0]
            precisions[:] = FLOAT(1) / (s[0] * s[0])
        return size * math.log(s[0])
    last[:] = _NAN
    logarithms = 0.0
    for j in range(size):
        centers[j] = c[j]
        precisions[j] = FLOAT(1) / (s[j] * s[j])
        logarithms += math.log(s[j])
    return logarithms


@compiled
def _are_constant(centers: Any, sigmas: Any) -> Any:
    center, sigma = centers[0], sigmas[0]
    others = numpy.int32(0)
    if centers.size == sigmas.size:
        for j in range(centers.size):
            others |= numpy.int32(centers[j] != center) | numpy.int32(sigmas[j] != sigma)
    else:
        for j in range(centers.size):
            others |= numpy.int32(centers[j] != center)
        for j in range(sigmas.size):
            others |= numpy.int32(sigmas[j] != sigma)
    return others == 0


@_summing
def _sum(values: Any, size: Any) -> Any:
    part: Any = FLOAT(0)
    for j in range(size):
        part += values[j]
    return part


@compiled
def _exponent(x: Any) -> Any:
    return numpy.int32(numpy.float32(x).view(numpy.int32) >> numpy.int32(23))


@compiled
def _mantissa(x: Any) -> Any:
    bits = numpy.float32(x).view(numpy.int32)
    return numpy.int32((bits & numpy.int32(0x007FFFFF)) | numpy.int32(0x3F800000)).view(numpy.float32)


@_summing
def sum_of_logarithms(values: Any) -> Any:
    """Return the sum of the logarithms of a block of positive, normal float32: one logarithm for eight mantissas."""
    rows = values.reshape(8, NUMBERS // 8)
    a, b, c, d, e, f, g, h = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    exponents = numpy.int32(0)
    part: Any = FLOAT(0)
    for j in range(NUMBERS // 8):
        first = _mantissa(a[j]) * _mantissa(b[j]) * (_mantissa(c[j]) * _mantissa(d[j]))
        second = _mantissa(e[j]) * _mantissa(f[j]) * (_mantissa(g[j]) * _mantissa(h[j]))
        exponents += numpy.int32(_exponent(a[j]) + _exponent(b[j]) + _exponent(c[j]) + _exponent(d[j]))
        exponents += numpy.int32(_exponent(e[j]) + _exponent(f[j]) + _exponent(g[j]) + _exponent(h[j]))
        part += log(first * second)
    return part + math.log(2) * (exponents - 127 * NUMBERS)


@_summing
def _squares(values: Any) -> Any:
    part: Any = FLOAT(0)
    for j in range(values.size):
        part += values[j] * values[j]
    return part


@compiled
def take_sigma(rho: Any, grown: Any, sigmas: Any) -> None:
    """Fill a block with exp(rho) and sigma = log(1 + exp(rho)): by the logarithm's series where all are small."""
    others = numpy.int32(0)
    for j in range(rho.size):
        e = exp(rho[j])
        p = FLOAT(-1 / 6) * e + FLOAT(1 / 5)
        p = p * e + FLOAT(-1 / 4)
        p = p * e + FLOAT(1 / 3)
        p = p * e + FLOAT(-1 / 2)
        grown[j] = e
        sigmas[j] = p * e * e + e
        others |= numpy.int32(not (rho[j] < _SMALL))
    if others != 0:
        for j in range(rho.size):
            sigmas[j] = log1p(grown[j])


@_summing
def _quadratic(mu: Any, rho: Any, sigmas: Any, centers: Any, precisions: Any) -> Any:
    """Return the sum of (sigma^2 + (mu - prior mean)^2) / (2 prior sigma^2) over a block; NaN if rho is beyond 87."""
    part: Any = FLOAT(0)
    beyond = numpy.int32(0)
    for j in range(mu.size):
        sigma, gap = sigmas[j], mu[j] - centers[j]
        part += precisions[j] * (sigma * sigma + gap * gap)
        beyond |= numpy.int32(not (abs(rho[j]) < FLOAT(87)))
    return _NAN if beyond != 0 else FLOAT(0.5) * part


@compiled
def divergence(mu: Any, rho: Any, prior_mu: Any, prior_sigma: Any, factor: Any, to_mu: Any, to_rho: Any) -> Any:
    """Return KL(N(mu, sigma^2) || prior), summed, with sigma = log(1 + exp(rho)); NaN where rho is beyond 87.

    All arrays are flat float32; the prior's have size 1 or the tensor's. ``factor`` times the gradient to mu and to rho
    is written into ``to_mu`` and ``to_rho``, where these are not empty.
    """
    total: Any = 0.0
    centers = numpy.empty(NUMBERS, dtype=numpy.float32)
    precisions = numpy.empty(NUMBERS, dtype=numpy.float32)
    sigmas = numpy.empty(NUMBERS, dtype=numpy.float32)
    grown = numpy.empty(NUMBERS, dtype=numpy.float32)
    last = numpy.full(2, _NAN)
    wanted = to_mu.size > 0
    for low in range(0, mu.size, NUMBERS):
        high = min(low + NUMBERS, mu.size)
        m, r = mu[low:high], rho[low:high]
        total += _take_prior(prior_mu, prior_sigma, low, m.size, centers, precisions, last)
        take_sigma(r, grown, sigmas)
        sigmas[m.size :] = FLOAT(1)
        total += _quadratic(m, r, sigmas, centers, precisions) - sum_of_logarithms(sigmas) - 0.5 * m.size
        if wanted:
            gm, gr = to_mu[low:high], to_rho[low:high]
            for j in range(m.size):
                sigma = sigmas[j]
                gm[j] = factor * (m[j] - centers[j]) * precisions[j]
                gr[j] = factor * (sigma * sigma * precisions[j] - FLOAT(1)) * grown[j] / (sigma + sigma * grown[j])
    return total


@_summing
def distance(mu: Any, prior_mu: Any, prior_sigma: Any, factor: Any, to_mu: Any) -> Any:
    """Return the sum of ((mu - prior mean) / prior sigma)^2 / 2, the part of `divergence` that mu has."""
    total: Any = 0.0
    one_prior = prior_mu.size == 1
    center, precision = prior_mu[0], FLOAT(1) / (prior_sigma[0] * prior_sigma[0])
    for low in range(0, mu.size, NUMBERS):
        high = min(low + NUMBERS, mu.size)
        m = mu[low:high]
        part: Any = FLOAT(0)
        if one_prior:
            for j in range(m.size):
                gap = m[j] - center
                part += gap * gap * precision
        else:
            c, s = prior_mu[low:high], prior_sigma[low:high]
            for j in range(m.size):
                gap = (m[j] - c[j]) / s[j]
                part += gap * gap
        total += 0.5 * part
    if to_mu.size > 0:
        for j in range(mu.size):
            gap = mu[j] - (center if one_prior else prior_mu[j])
            to_mu[j] = factor * gap * (precision if one_prior else FLOAT(1) / (prior_sigma[j] * prior_sigma[j]))
    return total


@compiled
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
    rest_1, rest_2 = FLOAT(1) - beta_1, FLOAT(1) - beta_2
    inverse_root = FLOAT(1) / root
    flat = normals.reshape(-1)
    centers = numpy.empty(NUMBERS, dtype=numpy.float32)
    precisions = numpy.empty(NUMBERS, dtype=numpy.float32)
    sigmas = numpy.empty(NUMBERS, dtype=numpy.float32)
    grown = numpy.empty(NUMBERS, dtype=numpy.float32)
    quadratic = numpy.empty(NUMBERS, dtype=numpy.float32)
    last = numpy.full(2, _NAN)
    kl: Any = 0.0
    squares_mu: Any = 0.0
    squares_rho: Any = 0.0
    for low in range(start, stop, NUMBERS):
        high = min(low + NUMBERS, stop)
        m, r, w, e, g = mu[low:high], rho[low:high], weight[low:high], eps[low:high], gradient[low:high]
        m1, m2, r1, r2 = moments[0, low:high], moments[1, low:high], moments[2, low:high], moments[3, low:high]
        kl += _take_prior(prior_mu, prior_sigma, low, m.size, centers, precisions, last)
        take_sigma(r, grown, sigmas)
        for j in range(m.size):
            sigma, gap = sigmas[j], m[j] - centers[j]
            quadratic[j] = FLOAT(0.5) * precisions[j] * (sigma * sigma + gap * gap)
            to_mu = g[j] + kl_factor * gap * precisions[j]
            to_sigma = g[j] * e[j] * sigma + kl_factor * (sigma * sigma * precisions[j] - FLOAT(1))
            to_rho = to_sigma * grown[j] / (sigma + sigma * grown[j])
            w[j] = to_mu
            e[j] = to_rho
            m1[j] = beta_1 * m1[j] + rest_1 * to_mu
            m2[j] = beta_2 * m2[j] + rest_2 * to_mu * to_mu
            r1[j] = beta_1 * r1[j] + rest_1 * to_rho
            r2[j] = beta_2 * r2[j] + rest_2 * to_rho * to_rho
            m[j] -= rate_mu * m1[j] / (FLOAT(math.sqrt(m2[j])) * inverse_root + tiny)
            r[j] -= rate_rho * r1[j] / (FLOAT(math.sqrt(r2[j])) * inverse_root + tiny)
        sigmas[m.size :] = FLOAT(1)
        kl += _sum(quadratic, m.size) - sum_of_logarithms(sigmas) - 0.5 * m.size
        squares_mu += _squares(w)
        squares_rho += _squares(e)
        normal_block(low // 4, stream, index, key_0, key_1, words, normals)
        take_sigma(r, grown, sigmas)
        for j in range(m.size):
            e[j] = flat[j]
            w[j] = m[j] + sigmas[j] * flat[j]
    sums[0] = kl
    sums[1] = squares_mu
    sums[2] = squares_rho
