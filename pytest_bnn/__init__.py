"""pytest-bnn: audit Bayesian neural networks that were converted from deterministic ones.

Everything public is importable from here and loads when first used: importing the package loads neither torch
nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_bnn.audit.run import Thresholds, audit_model, audit_resnet18
    from pytest_bnn.checks import (
        assert_estimator_flipout,
        assert_gradient_samples,
        assert_kl_loss,
        assert_kl_present,
        assert_layers_replaced,
        assert_mean_equals_teacher,
        assert_memory_separate,
        assert_noise_posterior,
        assert_noise_source,
        assert_noise_spread,
        assert_noise_varies,
        assert_teacher_agreement,
        measure_estimator_flipout,
        measure_gradient_samples,
        measure_kl_loss,
        measure_kl_present,
        measure_layers_replaced,
        measure_mean_equals_teacher,
        measure_memory_separate,
        measure_noise_posterior,
        measure_noise_source,
        measure_noise_spread,
        measure_noise_varies,
        measure_teacher_agreement,
    )
    from pytest_bnn.conversion import Conversion, convert, convert_with
    from pytest_bnn.errors import (
        BrokenEnvironmentError,
        ConversionError,
        InputError,
        PytestBnnError,
        WeightsError,
    )
    from pytest_bnn.example.images import digits, digits_batch, imagenet_batch, open_image, photograph
    from pytest_bnn.example.weights import Teacher, load_teacher, model_card
    from pytest_bnn.records.evidence import Evidence, Measurement, Threshold, Verdict
    from pytest_bnn.records.run import AuditRun
    from pytest_bnn.report import render_html, render_markdown
    from pytest_bnn.report.files import write_report
    from pytest_bnn.sampling.bank import PassBank, probabilities
    from pytest_bnn.sampling.predictive import Predictive, predict
    from pytest_bnn.stats.budget import Budget
    from pytest_bnn.subject import Subject
    from pytest_bnn.training.divergence import FixedSigma, fixed_sigma, kl
    from pytest_bnn.training.finetune import distillation_loss, finetune

_HOMES = {
    "audit.run": ("Thresholds", "audit_model", "audit_resnet18"),
    "checks": (
        "assert_estimator_flipout",
        "assert_gradient_samples",
        "assert_kl_loss",
        "assert_kl_present",
        "assert_layers_replaced",
        "assert_mean_equals_teacher",
        "assert_memory_separate",
        "assert_noise_posterior",
        "assert_noise_source",
        "assert_noise_spread",
        "assert_noise_varies",
        "assert_teacher_agreement",
        "measure_estimator_flipout",
        "measure_gradient_samples",
        "measure_kl_loss",
        "measure_kl_present",
        "measure_layers_replaced",
        "measure_mean_equals_teacher",
        "measure_memory_separate",
        "measure_noise_posterior",
        "measure_noise_source",
        "measure_noise_spread",
        "measure_noise_varies",
        "measure_teacher_agreement",
    ),
    "conversion": ("Conversion", "convert", "convert_with"),
    "training.divergence": ("FixedSigma", "fixed_sigma", "kl"),
    "errors": ("BrokenEnvironmentError", "ConversionError", "InputError", "PytestBnnError", "WeightsError"),
    "records.evidence": ("Evidence", "Measurement", "Threshold", "Verdict"),
    "records.run": ("AuditRun",),
    "example.images": ("digits", "digits_batch", "imagenet_batch", "open_image", "photograph"),
    "sampling.predictive": ("Predictive", "predict"),
    "report": ("render_html", "render_markdown"),
    "report.files": ("write_report",),
    "sampling.bank": ("PassBank", "probabilities"),
    "stats.budget": ("Budget",),
    "subject": ("Subject",),
    "training.finetune": ("distillation_loss", "finetune"),
    "example.weights": ("Teacher", "load_teacher", "model_card"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AuditRun",
    "BrokenEnvironmentError",
    "Budget",
    "Conversion",
    "ConversionError",
    "Evidence",
    "FixedSigma",
    "InputError",
    "Measurement",
    "PassBank",
    "Predictive",
    "PytestBnnError",
    "Subject",
    "Teacher",
    "Threshold",
    "Thresholds",
    "Verdict",
    "WeightsError",
    "assert_estimator_flipout",
    "assert_gradient_samples",
    "assert_kl_loss",
    "assert_kl_present",
    "assert_layers_replaced",
    "assert_mean_equals_teacher",
    "assert_memory_separate",
    "assert_noise_posterior",
    "assert_noise_source",
    "assert_noise_spread",
    "assert_noise_varies",
    "assert_teacher_agreement",
    "audit_model",
    "audit_resnet18",
    "convert",
    "convert_with",
    "digits",
    "digits_batch",
    "distillation_loss",
    "finetune",
    "fixed_sigma",
    "imagenet_batch",
    "kl",
    "load_teacher",
    "measure_estimator_flipout",
    "measure_gradient_samples",
    "measure_kl_loss",
    "measure_kl_present",
    "measure_layers_replaced",
    "measure_mean_equals_teacher",
    "measure_memory_separate",
    "measure_noise_posterior",
    "measure_noise_source",
    "measure_noise_spread",
    "measure_noise_varies",
    "measure_teacher_agreement",
    "model_card",
    "open_image",
    "photograph",
    "predict",
    "probabilities",
    "render_html",
    "render_markdown",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOME_OF[name]}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
