"""pytest-bnn: audit Bayesian neural networks that were converted from deterministic ones.

Everything public is importable from here and loads when first used: importing the package loads neither torch
nor numpy. For type checkers there is a stub, which ``python -m pytest_bnn.checks.stubs`` writes.
"""

from __future__ import annotations

import importlib
from typing import Any

from pytest_bnn.checks import NAMES

_HOMES = {
    "audit.plan": ("Thresholds",),
    "audit.run": ("audit_model",),
    "checks": tuple(NAMES),
    "checks.check": ("Finding", "check"),
    "conversion": ("Conversion", "convert", "convert_with"),
    "data.batch": ("Batch",),
    "data.loss": ("Loss",),
    "errors": (
        "BrokenEnvironmentError",
        "ConversionError",
        "InputError",
        "PytestBnnError",
        "WeightsError",
        "WriteError",
    ),
    "many.index": ("audit_many",),
    "records.collection": ("Collection", "CollectionRow"),
    "records.evidence": ("Evidence", "Measurement", "Threshold", "Verdict"),
    "records.run": ("AuditRun",),
    "example.audit": ("audit_resnet18",),
    "example.images": ("digits", "digits_batch", "imagenet_batch", "open_image", "photograph"),
    "example.weights": ("Teacher", "load_teacher", "model_card"),
    "fixtures.audits": ("Audit",),
    "progress": ("Event",),
    "report": ("render_html", "render_markdown"),
    "report.files": ("write_report",),
    "sampling.bank": ("PassBank", "probabilities"),
    "sampling.predictive": ("Predictive", "predict"),
    "stats.budget": ("Budget",),
    "subject": ("Subject",),
    "training.divergence": ("FixedSigma", "fixed_sigma", "kl"),
    "training.finetune": ("distillation_loss", "finetune"),
    "version": ("__version__",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
