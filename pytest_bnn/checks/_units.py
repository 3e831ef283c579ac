"""Do a model or its teacher know the numbers that occurred, in the units of their outputs?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pytest_bnn.checks.finding import NotHereError
from pytest_bnn.sampling.normals import Normals
from pytest_bnn.stats.intervals import clopper_pearson_lower

#: The chance at which numbers that nobody knows would count as known.
_CHANCE = 1e-3

#: Labels this many times as far apart as outputs, or as outputs as labels, are in other units, but for these errors.
_UNITS, _ERRORS = 2.0, 4.0

_UNKNOWN = (
    "neither the model nor its teacher is nearer to the labels than their median is, more often than by chance, so "
    "that there is nothing learned to be sure of{line}: give labels that the model was trained for, in the units of "
    "its outputs (--data, --evaluation)"
)
_OTHER_UNITS = (
    "the labels seem to be in other units than the outputs{line}: give labels in the units of the outputs (--data, "
    "--evaluation)"
)


def require_known(predictions: Sequence[Normals | None], occurred: Tensor, labels: Tensor, places: Tensor) -> None:
    """Refuse labels that none of the predictions knows, or has in other units.

    Args:
        predictions: The model's and its teacher's, of ``N`` numbers.
        occurred: These numbers, ``[N]``.
        labels: All labels, ``[rows, d]``.
        places: To which of the ``d`` outputs each number belongs, ``[N]``.

    Raises:
        NotHereError: None knows them: what is not known cannot be known rightly sure.
    """
    middles = labels.nanmedian(0).values
    centre = middles[places]
    spread = (labels - middles).abs().nanmedian(0).values.clamp_min(1e-300)[places]
    lines = []
    for one in predictions:
        if one is None:
            continue
        apart, alone = (occurred - one.mean).abs(), (occurred - centre).abs()
        won, lost = int((apart < alone).sum()), int((apart > alone).sum())
        line = _Line.of((one.mean - centre) / spread, (occurred - centre) / spread)
        knows = won + lost > 0 and clopper_pearson_lower(won, won + lost, _CHANCE) > 0.5
        if knows and not line.other_units:
            return
        lines.append((knows, line))
    words = next((line.words for _, line in lines if line.explained >= 0.5), "")
    raise NotHereError((_OTHER_UNITS if any(knows for knows, _ in lines) else _UNKNOWN).format(line=words))


@dataclass(frozen=True, slots=True)
class _Line:
    """The line by which labels follow outputs, both relative to the labels' median and spread."""

    slope: float
    error: float
    explained: float

    @classmethod
    def of(cls, outputs: Tensor, labels: Tensor) -> _Line:
        x, y = outputs - outputs.mean(), labels - labels.mean()
        squares, all_ = float(x.square().sum()), float(y.square().sum())
        if len(x) < 3 or not squares > 0 or not all_ > 0:
            return cls(1.0, 0.0, 0.0)
        slope = float((x * y).sum()) / squares
        left = float((y - slope * x).square().sum())
        return cls(slope, (left / (len(x) - 2) / squares) ** 0.5, 1 - left / all_)

    @property
    def other_units(self) -> bool:
        """Whether outputs and labels differ by a factor: predictions may be shrunk a little, or overdone."""
        if self.slope - _ERRORS * self.error > _UNITS:
            return True
        return self.slope + _ERRORS * self.error < 1 / _UNITS and self.explained >= 0.5

    @property
    def words(self) -> str:
        return f" (they follow the outputs with the slope {self.slope:.3g})"
