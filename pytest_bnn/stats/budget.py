"""How often verdicts by sampling may be wrong, and how checks share it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How often verdicts by sampling may be wrong.

    ``alpha`` bounds the chance of a false alarm, a sound model that fails; ``beta`` that of a missed fault, a model
    beyond the threshold that passes. Both hold for all checks of a run together.
    """

    alpha: float = 1e-6
    beta: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 0.5:
                raise ValueError(f"{name} must lie between 0 and 0.5, not {value!r}")

    def split(self, parts: int) -> Budget:
        """Return the share of one of so many checks: together they stay within the budget (Bonferroni)."""
        return Budget(alpha=self.alpha / max(1, parts), beta=self.beta / max(1, parts))
