"""Is noise a posterior's? Exact tests of standardised draws, which are N(0, 1) and independent where it is.

Each draw is reduced to sums and to its first entries as it comes: one draw of a tensor is kept beside the newest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pytest_bnn.libraries.posterior import PosteriorTensor

#: Entries of each draw that are kept for the shape and for comparisons between passes and between layers.
HEAD = 4096

#: The most draws in a test of the shape: enough for a Kolmogorov-Smirnov distance of 0.05 at any error rate in use.
SHAPE_DRAWS = 16384

#: Entries are left out where the rounding of mu exceeds this share of sigma: their noise is the grid's.
ROUNDING = 0.1

_LARGEST_SCORE = 37.0  # beyond it, normal tails underflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What the tests of mean and variance need: sums over ``count`` standardised draws.

    ``slack`` is the mean, over the draws, of the most by which rounding moves one of them.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    slack: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        count = self.count + other.count
        slack = (self.slack * self.count + other.slack * other.count) / max(1, count)
        return Sums(count=count, total=self.total + other.total, squares=self.squares + other.squares, slack=slack)

    @property
    def scale(self) -> float:
        """The root mean square: 1 where sigma is what the posterior says."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def mean_p(self) -> float:
        """Give the p-value of a mean of 0: the z-test, two-sided; variance 1 is part of the hypothesis."""
        from scipy.stats import norm

        z = abs(self.total) / math.sqrt(self.count) - self.slack * math.sqrt(self.count)
        return min(1.0, 2 * float(norm.sf(z)))

    def variance_p(self) -> float:
        """Give the p-value of variance 1 about mean 0: the chi-square test, two-sided.

        Rounding by at most r a draw moves the mean square by at most 2 r E|z| + r^2 = r (1.6 + r).
        """
        from scipy.stats import chi2

        low, high = _bounds(self.slack)
        upper = float(chi2.sf(self.squares / high, self.count))
        lower = float(chi2.cdf(self.squares / low, self.count)) if low > 0 else 1.0
        return min(1.0, 2 * min(upper, lower))


def _bounds(slack: float) -> tuple[float, float]:
    by = slack * (2 * math.sqrt(2 / math.pi) + slack)
    return 1 - by, 1 + by


def effect(count: int, level: float, power: float, slack: float = 0.0) -> float:
    """Give the relative error of sigma that ``count`` draws show at ``level`` with this power, in either direction.

    Source: the power function of the chi-square test of a variance, solved for the ratio of variances.
    """
    from scipy.stats import chi2

    low, high = _bounds(slack)
    wider = math.sqrt(float(chi2.isf(level / 2, count)) * high / float(chi2.ppf(1 - power, count))) - 1
    least = float(chi2.ppf(level / 2, count)) * max(low, 0.0)
    narrower = 1 - math.sqrt(least / float(chi2.isf(1 - power, count)))
    return max(wider, narrower)


def draws_needed(target: float, level: float, power: float) -> int:
    """Give how many draws show a relative error ``target`` of sigma at ``level`` with this power."""
    low, high = 1, 2
    while effect(high, level, power) > target:
        low, high = high, 2 * high
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if effect(middle, level, power) > target else (low, middle)
    return high


def shape_p(draws: Tensor, slack: float) -> float:
    """Give the p-value of N(0, 1) by the exact Kolmogorov-Smirnov test; rounding moves the distribution by ``slack``.

    Source: Massey 1951; the exact distribution is scipy's ``kstwo``.
    """
    from scipy.stats import kstwo, norm

    found = norm.cdf(draws.double().cpu().sort().values.numpy())
    n = len(found)
    steps = torch.arange(n + 1, dtype=torch.float64).numpy() / n
    distance = max(float((steps[1:] - found).max()), float((found - steps[:-1]).max()))
    return float(kstwo.sf(max(0.0, distance - slack / math.sqrt(2 * math.pi)), n))


def correlation_scores(cosines: Tensor, sizes: Tensor) -> Tensor:
    """Turn cosines of independent isotropic vectors of these sizes into standard normal scores, exactly.

    Whatever the other vector is, ``r sqrt((n - 1) / (1 - r^2))`` has Student's t distribution with n - 1 degrees of
    freedom. Source: Fisher 1915; Muirhead 1982, theorem 1.5.7. Needs sizes of at least 2.
    """
    from scipy.stats import norm, t

    r = cosines.double().clamp(-1, 1)
    freedom = (sizes - 1).double()
    student = r.abs() * (freedom / (1 - r.square()).clamp_min(1e-30)).sqrt()
    scores = norm.isf(t.sf(student.numpy(), freedom.numpy()))
    return r.sign() * torch.as_tensor(scores, dtype=torch.float64).clamp_max(_LARGEST_SCORE)


def score_p(scores: Tensor) -> Tensor:
    """Give the two-sided p-values of standard normal scores."""
    from scipy.stats import norm

    return torch.as_tensor(2 * norm.sf(scores.abs().numpy()), dtype=torch.float64)


@dataclass(slots=True, eq=False)
class TensorDraws:
    """The draws of one posterior tensor, as they come."""

    tensor: PosteriorTensor
    sigma: Tensor
    used: Tensor | None
    slack: float
    sums: Sums = field(default_factory=Sums)
    heads: list[Tensor] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    largest_slack: float = 0.0
    not_finite: int = 0
    _last: Tensor | None = None
    _scores: list[tuple[float, int]] = field(default_factory=list)

    @classmethod
    def of(cls, tensor: PosteriorTensor, noise: Tensor, *, about_mu: bool) -> TensorDraws:
        """Prepare for draws like the first; ``about_mu`` where mu + noise is what gets rounded, not the noise alone.

        Entries that the layer sets to exactly 0, as Swin V2 its key's bias, are no part of what it computes.
        """
        limits = torch.finfo(tensor.mu.dtype)
        sigma = tensor.sigma.flatten().float() if tensor.mu.dtype != torch.float64 else tensor.sigma.flatten()
        mu = tensor.mu.detach().flatten().to(sigma.dtype).abs() if about_mu else torch.zeros_like(sigma)
        rounding = mu * limits.eps + limits.tiny * limits.eps
        used = (rounding <= ROUNDING * sigma) & torch.isfinite(sigma)
        cut = (noise == -tensor.mu.detach() if about_mu else noise == 0).flatten()
        if not bool(cut.all()):
            used &= ~cut
        # Half a unit in the last place, of mu + noise and of the noise alone, for noise up to six sigma.
        moves = (rounding / sigma)[used] / 2 + 6 * limits.eps
        return cls(
            tensor,
            sigma[used],
            None if bool(used.all()) else used,
            float(moves.mean()) if moves.numel() else 0.0,
            largest_slack=float(moves.max()) if moves.numel() else 0.0,
        )

    @property
    def count(self) -> int:
        """How many entries of the tensor are judged."""
        return self.sigma.numel()

    @property
    def left_out(self) -> int:
        """How many entries have a sigma at the size of mu's rounding, or none that is finite, or are put out of use."""
        return self.tensor.count - self.count

    def take(self, noise: Tensor, number: int) -> None:
        """Reduce one draw of pass ``number``, in units of the weights."""
        flat = noise.flatten().to(self.sigma.dtype)
        z = (flat if self.used is None else flat[self.used]) / self.sigma
        total = float(z.sum(dtype=torch.float64))
        squares = float(z.square().sum(dtype=torch.float64))
        if not math.isfinite(total + squares):
            self.not_finite += 1
            return
        self.sums += Sums(count=len(z), total=total, squares=squares, slack=self.slack)
        if self._last is not None and len(z) > 1:
            self._scores.append((_cosine(z, self._last), len(z)))
        self._last = z
        # On the CPU, wherever the model is: what is compared later is small, and scipy's.
        self.heads.append(z[:HEAD].clone().cpu())
        self.passes.append(number)

    @property
    def draws(self) -> int:
        """How many draws came."""
        return len(self.heads)

    def head(self, number: int, *, last: bool = False) -> Tensor:
        """Give the head of the first draw of a pass, or of its last; empty where there is none."""
        found = [head for head, of in zip(self.heads, self.passes, strict=True) if of == number]
        return found[-1 if last else 0] if found else self.sigma[:0].cpu()

    @property
    def tests_between_passes(self) -> int:
        """How many tests `reused` makes: one on all entries, and one for each pair of draws."""
        return 1 + self.draws * (self.draws - 1) // 2 if self.count > 1 and self.draws > 1 else 0

    def reused(self) -> tuple[float, str]:
        """Give the smallest p-value of independent draws, times the number of tests, and what it is about."""
        if not self.tests_between_passes:
            return 1.0, ""
        cosines, sizes = (torch.tensor(values, dtype=torch.float64) for values in zip(*self._scores, strict=True))
        score = correlation_scores(cosines, sizes).sum() / math.sqrt(len(cosines))
        found = [(float(score_p(score)), f"draws that follow each other correlate with {float(cosines.mean()):.3g}")]
        heads = torch.stack(self.heads).double()
        unit = heads / heads.norm(dim=1, keepdim=True).clamp_min(1e-300)
        rows, columns = torch.triu_indices(len(heads), len(heads), 1)
        pairs = (unit @ unit.T)[rows, columns]
        values = score_p(correlation_scores(pairs, torch.full_like(pairs, heads.shape[1])))
        best = int(values.argmin())
        at = f"the noise of draw {int(columns[best]) + 1} correlates with that of draw {int(rows[best]) + 1}"
        found.append((float(values[best]), f"{at}: {float(pairs[best]):.3g}"))
        p, words = min(found)
        return min(1.0, p * self.tests_between_passes), words


def _cosine(one: Tensor, other: Tensor) -> float:
    size = math.sqrt(float(one.square().sum(dtype=torch.float64)) * float(other.square().sum(dtype=torch.float64)))
    return float((one * other).sum(dtype=torch.float64)) / size if size else 0.0


def between_layers(tensors: list[TensorDraws]) -> tuple[Tensor, Tensor]:
    """Give the p-values of independence of each two tensors, ``[tensors, tensors]``, and their mean cosines.

    The first `HEAD` entries of both are compared draw by draw; where one tensor has no draw to compare, p is 1.
    """
    draws = range(max((t.draws for t in tensors), default=0))
    rounds = [[t.heads[index] if index < t.draws else t.sigma[:0].cpu() for t in tensors] for index in draws]
    return compared(len(tensors), ((heads, heads) for heads in rounds))


def across_passes(tensors: list[TensorDraws]) -> tuple[Tensor, Tensor]:
    """Give the p-values of independence of what a tensor (row) drew and another (column) in the pass before; cosines.

    A pass's first draw of the one is compared with the last draw of the other, as `between_layers` compares. No two
    of these pairs share a draw, so their scores are independent.
    """
    passes = sorted({number for t in tensors for number in t.passes})
    return compared(
        len(tensors),
        (
            ([t.head(number) for t in tensors], [t.head(number - 1, last=True) for t in tensors])
            for number in passes[1:]
        ),
    )


def compared(size: int, rounds: Iterable[tuple[list[Tensor], list[Tensor]]]) -> tuple[Tensor, Tensor]:
    """Give the p-values of independence of each of so many heads (row) and each of as many others; mean cosines.

    Each round is compared on the entries that two heads have in common; scores add up over rounds, which are
    independent. Without entries in common p is 1.
    """
    found = [_cosines(one, other) for one, other in rounds]
    cosines = torch.stack([torch.zeros(size, size, dtype=torch.float64), *(cosine for cosine, _ in found)])
    common = torch.stack([torch.zeros(size, size, dtype=torch.float64), *(common for _, common in found)])
    usable = common > 1
    scores = torch.zeros_like(cosines)
    scores[usable] = correlation_scores(cosines[usable], common[usable])
    compared = usable.sum(0)
    p = torch.where(compared > 0, score_p(scores.sum(0) / compared.clamp_min(1).sqrt()), 1.0)
    return p, torch.where(usable, cosines, 0).sum(0) / compared.clamp_min(1)


def _cosines(one: list[Tensor], other: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Give the cosines of each two heads on the entries that both have, and how many these are."""
    width = max(len(head) for head in [*one, *other])
    (a, has_a), (b, has_b) = _rows(one, width), _rows(other, width)
    lengths = ((a.square() @ has_b.T) * (has_a @ b.square().T)).sqrt()
    return torch.where(lengths > 0, a @ b.T / lengths.clamp_min(1e-300), 0), has_a @ has_b.T


def _rows(heads: list[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Stack heads of several lengths, filled up with 0; and which entries they have."""
    values = torch.zeros(len(heads), width, dtype=torch.float64)
    here = torch.zeros_like(values)
    for row, head in enumerate(heads):
        values[row, : len(head)] = head.double()
        here[row, : len(head)] = 1
    return values, here
