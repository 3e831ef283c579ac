"""The noise of one tensor beside itself: blocks, rows and columns of a draw that are independent do not correlate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pytest_bnn.stats.normal import any_dependence, correlation_scores, masked_cosines, score_p, squares_p

#: Into how many equal blocks a tensor is cut: a repeat of 6 or 8 blocks is one of 2, too.
_PARTS = (2, 3, 4)

#: Entries of a draw that are compared along each of the two directions: all rows and some columns, or the reverse.
_ENTRIES = 1 << 16

#: Rows that are compared with each other, each with each.
_ROWS = 256

#: Kinds of comparisons: blocks, paired lines, any two lines. Each has its share of the error rate.
_KINDS = 3


@dataclass(slots=True)
class _Compared:
    """Cosines of the same comparisons in draw after draw, with the entries that both sides have."""

    names: list[str]
    together: bool = False
    cosines: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)

    def p(self) -> tuple[float, str]:
        """Return the smallest p-value times their number and what it is about; of all together by their squares."""
        cosines, sizes = torch.stack(self.cosines), torch.stack(self.sizes)
        scores = torch.zeros_like(cosines)
        usable = sizes > 1
        scores[usable] = correlation_scores(cosines[usable], sizes[usable])
        if self.together:
            found = [squares_p(float(s.square().sum()), int(u.sum())) for s, u in zip(scores, usable, strict=True)]
            typical = float(cosines.square().mean(1).sqrt().median())
            return float(any_dependence(torch.tensor(found, dtype=torch.float64))), f"{self.names[0]} {typical:.3g}"
        values = any_dependence(torch.where(usable, score_p(scores), 1.0))
        best = int(values.argmin())
        return float(values[best]) * len(values), f"{self.names[best]} {float(cosines[:, best].median()):.3g}"


@dataclass(slots=True)
class _Closest:
    """In draw after draw, the largest cosine of any two of some lines, and which lines these are."""

    lines: int
    entries: int
    found: list[tuple[float, int, int]] = field(default_factory=list)

    def p(self, name: str) -> tuple[float, str]:
        """Return the p-value of all draws together, and what the typical draw shows."""
        cosines = torch.tensor([cosine for cosine, _, _ in self.found], dtype=torch.float64)
        values = score_p(correlation_scores(cosines, torch.full_like(cosines, self.entries)))
        cosine, i, j = sorted(self.found, reverse=True)[(len(self.found) - 1) // 2]
        pairs = self.lines * (self.lines - 1) / 2
        return float(any_dependence(values * pairs)), f"{name} {j} correlates with {name} {i}: {cosine:.3g}"


@dataclass(slots=True)
class Within:
    """What the draws of one tensor, as they come, tell of dependence between its entries.

    Attributes:
        rows: Outputs of the layer, the first dimension of the tensor.
        columns: All other dimensions together.
        used: Which entries are judged, flat; all when None.
    """

    rows: int
    columns: int
    used: Tensor | None
    _found: dict[str, _Compared] = field(default_factory=dict)
    _closest: dict[str, _Closest] = field(default_factory=dict)

    @classmethod
    def of(cls, shape: torch.Size, used: Tensor | None) -> Within:
        """Prepare for draws of a tensor of this shape."""
        count = shape.numel()
        rows = shape[0] if shape else 1
        return cls(rows, count // max(1, rows), used)

    def take(self, z: Tensor) -> None:
        """Take one draw, the entries that are used, standardised."""
        if self.rows * self.columns < 2:
            return
        if self.used is None:
            whole, here = z, torch.ones(1, device=z.device).expand(len(z))
        else:
            whole = torch.zeros(len(self.used), dtype=z.dtype, device=z.device)
            whole[self.used] = z
            here = self.used.to(z.dtype)
        grid, places = (t.reshape(self.rows, self.columns) for t in (whole, here))
        for name, lines, has in (("row", grid, places), ("column", grid.T, places.T)):
            if len(lines) > 1:
                width = max(2, _ENTRIES // len(lines))
                self._compare(name, lines[:, :width].double().cpu(), has[:, :width].double().cpu())

    def _compare(self, name: str, lines: Tensor, has: Tensor) -> None:
        for parts in _PARTS:
            if len(lines) % parts == 0 and len(lines) // parts * lines.shape[1] > 1:
                blocks = (lines.reshape(parts, -1), has.reshape(parts, -1))
                cosines, sizes = masked_cosines(blocks, blocks)
                above = torch.triu_indices(parts, parts, 1)
                names = [
                    f"{_ordinal(j)} of {parts} blocks of {name}s correlates with the {_ordinal(i)}:"
                    for i, j in zip(*above.tolist(), strict=True)
                ]
                self._add(f"{name}s by {parts}", names, cosines[above[0], above[1]], sizes[above[0], above[1]])
        if lines.shape[1] < 2:
            return
        first, half = lines[:_ROWS], len(lines) // 2
        pairs = {
            f"neighbouring {name}s": (slice(0, min(2 * half, 4 * _ROWS), 2), slice(1, min(2 * half, 4 * _ROWS), 2)),
            f"{name}s of the one half and of the other": (
                slice(0, min(half, 2 * _ROWS)),
                slice(half, half + min(half, 2 * _ROWS)),
            ),
        }
        for words, (one, other) in pairs.items():
            a, b, has_a, has_b = lines[one], lines[other], has[one], has[other]
            lengths = ((a.square() * has_b).sum(1) * (b.square() * has_a).sum(1)).sqrt()
            cosines = (a * b).sum(1) / lengths.clamp_min(1e-300)
            sizes = torch.where(lengths > 0, (has_a * has_b).sum(1), 0)
            self._add(words, [f"{words} correlate, by root mean square"], cosines, sizes, together=True)
        if self.used is None and len(first) > 2:
            self._look_for_the_closest(name, first)

    def _add(self, key: str, names: list[str], cosines: Tensor, sizes: Tensor, *, together: bool = False) -> None:
        found = self._found.setdefault(key, _Compared(names, together))
        found.cosines.append(cosines)
        found.sizes.append(sizes)

    def _look_for_the_closest(self, name: str, lines: Tensor) -> None:
        """Compare any two lines of one draw: all have as many entries, so that the largest cosine decides."""
        unit = lines / lines.norm(dim=1, keepdim=True).clamp_min(1e-300)
        cosines = (unit @ unit.T).abs().triu(1)
        i, j = divmod(int(cosines.argmax()), len(lines))
        self._closest.setdefault(name, _Closest(*lines.shape)).found.append((float(cosines[i, j]), i, j))

    @property
    def tests(self) -> int:
        """How many tests there are."""
        return len(self._closest) + sum(1 if f.together else len(f.names) for f in self._found.values())

    def dependent(self) -> tuple[float, str]:
        """Return the smallest p-value of independent entries, times the number of tests, and what it is about."""
        return min(self._families(), default=(1.0, ""))

    def _families(self) -> Iterator[tuple[float, str]]:
        for together in (False, True):
            members = [found for found in self._found.values() if found.together is together]
            for found in members:
                p, words = found.p()
                yield min(1.0, p * len(members) * _KINDS), words if together else f"the {words}"
        for name, closest in self._closest.items():
            p, words = closest.p(name)
            yield min(1.0, p * len(self._closest) * _KINDS), words


def _ordinal(index: int) -> str:
    return ("first", "second", "third", "fourth")[index]
