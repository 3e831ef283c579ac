"""Draws of a layer's noise, standardised by sigma: where the noise is the posterior's they are N(0, 1) and independent.

Each draw is reduced to sums and to its first entries as it comes; of a tensor, the last draw alone is kept whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pytest_bnn.checks.noise._within import Within
from pytest_bnn.libraries.posterior import PosteriorTensor
from pytest_bnn.stats.normal import ROUNDING, Sums, compared, correlation_scores, score_p

#: Entries of each draw that are kept for the shape and for comparisons between passes and between layers.
HEAD = 4096


@dataclass(slots=True, eq=False)
class TensorDraws:
    """The draws of one posterior tensor, as they come."""

    tensor: PosteriorTensor
    count: int
    used: Tensor | None
    slack: float
    within: Within
    sums: Sums = field(default_factory=Sums)
    heads: list[Tensor] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    largest_slack: float = 0.0
    not_finite: int = 0
    _last: Tensor | None = None
    _last_squares: float = 0.0
    _scores: list[tuple[float, int]] = field(default_factory=list)

    @classmethod
    def of(cls, tensor: PosteriorTensor, noise: Tensor, *, about_mu: bool) -> TensorDraws:
        """Prepare for draws like the first; ``about_mu`` where mu + noise is what gets rounded, not the noise alone.

        Entries that the layer sets to exactly 0, as Swin V2 its key's bias, are no part of what it computes.
        """
        limits = torch.finfo(tensor.mu.dtype)
        moves = torch.empty(tensor.count, dtype=tensor.wide, device=tensor.mu.device)
        used, cut = (torch.empty_like(moves, dtype=torch.bool) for _ in range(2))
        start = 0
        for mu, seen, sigma in tensor.with_sigma(tensor.mu.detach(), noise):
            part = slice(start, start := start + len(mu))
            size = mu.to(sigma.dtype).abs() if about_mu else torch.zeros_like(sigma)
            rounding = size * limits.eps + limits.tiny * limits.eps
            torch.logical_and(rounding <= ROUNDING * sigma, torch.isfinite(sigma), out=used[part])
            cut[part] = seen == -mu if about_mu else seen == 0
            # Half a unit in the last place, of mu + noise and of the noise alone, for noise up to six sigma.
            moves[part] = rounding / sigma / 2 + 6 * limits.eps
        if not bool(cut.all()):
            used &= ~cut
        some = None if bool(used.all()) else used
        moves = moves if some is None else moves[some]
        return cls(
            tensor,
            moves.numel(),
            some,
            float(moves.mean()) if moves.numel() else 0.0,
            Within.of(tensor.mu.shape, some),
            largest_slack=float(moves.max()) if moves.numel() else 0.0,
        )

    @property
    def left_out(self) -> int:
        """How many entries have a sigma at the size of mu's rounding, or none that is finite, or are put out of use."""
        return self.tensor.count - self.count

    def take(self, noise: Tensor, number: int) -> None:
        """Reduce one draw of pass ``number``, in units of the weights."""
        z = torch.empty(self.count, dtype=self.tensor.wide, device=noise.device)
        total = squares = product = 0.0
        start = 0
        for seen, used, sigma in self.tensor.with_sigma(noise, self.used):
            judged = (seen.to(z.dtype), sigma) if used is None else (seen.to(z.dtype)[used], sigma[used])
            part = slice(start, start := start + len(judged[0]))
            torch.div(*judged, out=z[part])
            total += float(z[part].sum(dtype=torch.float64))
            squares += float(z[part].square().sum(dtype=torch.float64))
            if self._last is not None:
                product += float((z[part] * self._last[part]).sum(dtype=torch.float64))
        if not math.isfinite(total + squares):
            self.not_finite += 1
            return
        self.sums += Sums(count=len(z), total=total, squares=squares, slack=self.slack)
        if self._last is not None and len(z) > 1:
            size = math.sqrt(squares * self._last_squares)
            self._scores.append((product / size if size else 0.0, len(z)))
        self._last, self._last_squares = z, squares
        self.within.take(z)
        # On the CPU, wherever the model is: what is compared later is small, and scipy's.
        self.heads.append(z[:HEAD].clone().cpu())
        self.passes.append(number)

    @property
    def draws(self) -> int:
        """How many draws came."""
        return len(self.heads)

    def head(self, number: int, *, last: bool = False) -> Tensor:
        """Return the head of the first draw of a pass, or of its last; empty where there is none."""
        found = [head for head, of in zip(self.heads, self.passes, strict=True) if of == number]
        return found[-1 if last else 0] if found else torch.empty(0)

    @property
    def tests_between_passes(self) -> int:
        """How many tests `reused` makes: one on all entries, and one for each pair of draws."""
        return 1 + self.draws * (self.draws - 1) // 2 if self.count > 1 and self.draws > 1 else 0

    def reused(self) -> tuple[float, str]:
        """Return the smallest p-value of independent draws, times the number of tests, and what it is about."""
        if not self.tests_between_passes:
            return 1.0, ""
        cosines, sizes = (torch.tensor(values, dtype=torch.float64) for values in zip(*self._scores, strict=True))
        # Two short draws on a coarse grid may lie in one direction exactly.
        most = 1.0 if self.tensor.mu.dtype.itemsize > 2 else 1 - 4 * torch.finfo(self.tensor.mu.dtype).eps
        score = correlation_scores(cosines.clamp(-most, most), sizes).sum() / math.sqrt(len(cosines))
        found = [(float(score_p(score)), f"draws that follow each other correlate with {float(cosines.mean()):.3g}")]
        heads = torch.stack(self.heads).double()
        unit = heads / heads.norm(dim=1, keepdim=True).clamp_min(1e-300)
        rows, columns = torch.triu_indices(len(heads), len(heads), 1)
        pairs = (unit @ unit.T)[rows, columns]
        values = score_p(correlation_scores(pairs.clamp(-most, most), torch.full_like(pairs, heads.shape[1])))
        best = int(values.argmin())
        at = f"the noise of draw {int(columns[best]) + 1} correlates with that of draw {int(rows[best]) + 1}"
        found.append((float(values[best]), f"{at}: {float(pairs[best]):.3g}"))
        p, words = min(found)
        return min(1.0, p * self.tests_between_passes), words


def between_layers(tensors: list[TensorDraws]) -> tuple[Tensor, Tensor]:
    """Return the p-values of independence of each two tensors, ``[tensors, tensors]``, and their mean cosines.

    The first `HEAD` entries of both are compared draw by draw; where one tensor has no draw to compare, p is 1.
    """
    draws = range(max((t.draws for t in tensors), default=0))
    rounds = [[t.heads[index] if index < t.draws else torch.empty(0) for t in tensors] for index in draws]
    return compared(len(tensors), ((heads, heads) for heads in rounds))


def across_passes(tensors: list[TensorDraws]) -> tuple[Tensor, Tensor]:
    """Return the p-values of independence of what a tensor (row) drew and another (column) in the pass before; cosines.

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
