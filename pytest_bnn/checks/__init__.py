"""What is asserted: one claim family a file, each with ``measure_x`` -> Evidence and ``assert_x``.

Knows no pytest. Inside pytest, what runs here reaches the report through `pytest_bnn.records.recorder`.
"""

from __future__ import annotations

from pytest_bnn.checks.estimator.flipout import assert_estimator_flipout, measure_estimator_flipout
from pytest_bnn.checks.gradient.samples import assert_gradient_samples, measure_gradient_samples
from pytest_bnn.checks.kl.loss import assert_kl_loss, measure_kl_loss
from pytest_bnn.checks.kl.present import assert_kl_present, measure_kl_present
from pytest_bnn.checks.layers.replaced import assert_layers_replaced, measure_layers_replaced
from pytest_bnn.checks.mean.equals_teacher import assert_mean_equals_teacher, measure_mean_equals_teacher
from pytest_bnn.checks.memory.separate import assert_memory_separate, measure_memory_separate
from pytest_bnn.checks.noise.posterior import assert_noise_posterior, measure_noise_posterior
from pytest_bnn.checks.noise.source import assert_noise_source, measure_noise_source
from pytest_bnn.checks.noise.spread import assert_noise_spread, measure_noise_spread
from pytest_bnn.checks.noise.varies import assert_noise_varies, measure_noise_varies
from pytest_bnn.checks.teacher.agreement import assert_teacher_agreement, measure_teacher_agreement

__all__ = [
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
]
