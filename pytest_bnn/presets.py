"""Presets: names for sets of settings and options of checks, the weakest of all sources above the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a preset changes.

    ``settings`` are texts by the setting's key, ``options`` those of checks by id and name. ``leaves_out`` are ids of
    checks, of which a last part ``*`` is any. ``images`` is the most examples that are used where nobody says, None for
    the default. ``fine_tunes`` says whether the audit of the bundled ResNet18 judges a fine-tuned copy too. ``words``
    says what is left out, and is empty where nothing is.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    leaves_out: tuple[str, ...] = ()
    images: int | None = None
    fine_tunes: bool = True
    words: str = ""


DEFAULT: Final = "default"

PRESETS: Final[Mapping[str, Preset]] = {
    "smoke": Preset(
        # Enough to fail noise that is dead: 62 at its error rate with 32 examples. What is healthy takes 30.
        settings={"samples": "72"},
        leaves_out=(
            "noise.posterior",
            "noise.fresh",
            "estimator.flipout",
            "gradient.samples",
            "predictions.rows",
            "calibration.*",
            "scores.*",
            "uncertainty.*",
            "slices.*",
            "regression.*",
        ),
        images=32,
        fine_tunes=False,
        words="the preset smoke judges whether layers, noise and KL are there and the mean is the teacher's, on at "
        "most 32 examples; whether the noise is drawn rightly and what the predictions are worth is not judged",
    ),
    DEFAULT: Preset(),
    "strict": Preset(
        settings={
            "samples": "512",
            "spread": "0.005:0.5",
            "population": "yes",
            "inconclusive": "fail",
        },
        options={
            "noise.posterior": {"max_passes": 64},
            "calibration.temperature": {"band": (0.67, 1.5), "max_passes": 128},
            "calibration.classes": {"max_passes": 128},
            "scores.against_teacher": {"margin": 0.01, "max_passes": 128},
            "uncertainty.errors": {"margin": 0.01, "max_passes": 128},
            "uncertainty.ood": {"max_passes": 128},
            "regression.scores": {"max_passes": 128},
        },
    ),
}
