# Written by python -m pytest_bnn.checks.stubs.
# ruff: noqa: I001
from pytest_bnn.audit.plan import Thresholds as Thresholds
from pytest_bnn.audit.run import audit_model as audit_model
from pytest_bnn.checks import (
    assert_calibration_classes as assert_calibration_classes,
    assert_calibration_temperature as assert_calibration_temperature,
    assert_data_sane as assert_data_sane,
    assert_estimator_flipout as assert_estimator_flipout,
    assert_gradient_samples as assert_gradient_samples,
    assert_kl_loss as assert_kl_loss,
    assert_kl_present as assert_kl_present,
    assert_layers_replaced as assert_layers_replaced,
    assert_loss_data as assert_loss_data,
    assert_mean_equals_teacher as assert_mean_equals_teacher,
    assert_memory_separate as assert_memory_separate,
    assert_noise_fresh as assert_noise_fresh,
    assert_noise_posterior as assert_noise_posterior,
    assert_noise_source as assert_noise_source,
    assert_noise_spread as assert_noise_spread,
    assert_noise_varies as assert_noise_varies,
    assert_posterior_start as assert_posterior_start,
    assert_predictions_rows as assert_predictions_rows,
    assert_regression_coverage as assert_regression_coverage,
    assert_regression_scores as assert_regression_scores,
    assert_scores_against_teacher as assert_scores_against_teacher,
    assert_slices_scores as assert_slices_scores,
    assert_slices_temperature as assert_slices_temperature,
    assert_teacher_agreement as assert_teacher_agreement,
    assert_teacher_tensors as assert_teacher_tensors,
    assert_uncertainty_errors as assert_uncertainty_errors,
    assert_uncertainty_ood as assert_uncertainty_ood,
    assert_uncertainty_shift as assert_uncertainty_shift,
    measure_calibration_classes as measure_calibration_classes,
    measure_calibration_temperature as measure_calibration_temperature,
    measure_data_sane as measure_data_sane,
    measure_estimator_flipout as measure_estimator_flipout,
    measure_gradient_samples as measure_gradient_samples,
    measure_kl_loss as measure_kl_loss,
    measure_kl_present as measure_kl_present,
    measure_layers_replaced as measure_layers_replaced,
    measure_loss_data as measure_loss_data,
    measure_mean_equals_teacher as measure_mean_equals_teacher,
    measure_memory_separate as measure_memory_separate,
    measure_noise_fresh as measure_noise_fresh,
    measure_noise_posterior as measure_noise_posterior,
    measure_noise_source as measure_noise_source,
    measure_noise_spread as measure_noise_spread,
    measure_noise_varies as measure_noise_varies,
    measure_posterior_start as measure_posterior_start,
    measure_predictions_rows as measure_predictions_rows,
    measure_regression_coverage as measure_regression_coverage,
    measure_regression_scores as measure_regression_scores,
    measure_scores_against_teacher as measure_scores_against_teacher,
    measure_slices_scores as measure_slices_scores,
    measure_slices_temperature as measure_slices_temperature,
    measure_teacher_agreement as measure_teacher_agreement,
    measure_teacher_tensors as measure_teacher_tensors,
    measure_uncertainty_errors as measure_uncertainty_errors,
    measure_uncertainty_ood as measure_uncertainty_ood,
    measure_uncertainty_shift as measure_uncertainty_shift,
)
from pytest_bnn.checks.check import Finding as Finding, check as check
from pytest_bnn.conversion import Conversion as Conversion, convert as convert, convert_with as convert_with
from pytest_bnn.data.batch import Batch as Batch
from pytest_bnn.data.loss import Loss as Loss
from pytest_bnn.errors import (
    BrokenEnvironmentError as BrokenEnvironmentError,
    ConversionError as ConversionError,
    InputError as InputError,
    PytestBnnError as PytestBnnError,
    WeightsError as WeightsError,
    WriteError as WriteError,
)
from pytest_bnn.example.audit import audit_resnet18 as audit_resnet18
from pytest_bnn.example.images import (
    digits as digits,
    digits_batch as digits_batch,
    imagenet_batch as imagenet_batch,
    open_image as open_image,
    photograph as photograph,
)
from pytest_bnn.example.weights import Teacher as Teacher, load_teacher as load_teacher, model_card as model_card
from pytest_bnn.fixtures.audits import Audit as Audit
from pytest_bnn.many.index import audit_many as audit_many
from pytest_bnn.progress import Event as Event
from pytest_bnn.records.collection import Collection as Collection, CollectionRow as CollectionRow
from pytest_bnn.records.evidence import (
    Evidence as Evidence,
    Measurement as Measurement,
    Threshold as Threshold,
    Verdict as Verdict,
)
from pytest_bnn.records.run import AuditRun as AuditRun
from pytest_bnn.report import render_html as render_html, render_markdown as render_markdown
from pytest_bnn.report.files import write_report as write_report
from pytest_bnn.sampling.bank import PassBank as PassBank, probabilities as probabilities
from pytest_bnn.sampling.predictive import Predictive as Predictive, predict as predict
from pytest_bnn.stats.budget import Budget as Budget
from pytest_bnn.subject import Subject as Subject
from pytest_bnn.training.divergence import FixedSigma as FixedSigma, fixed_sigma as fixed_sigma, kl as kl
from pytest_bnn.training.finetune import distillation_loss as distillation_loss, finetune as finetune
from pytest_bnn.version import __version__ as __version__

_HOMES: dict[str, tuple[str, ...]]
_HOME_OF: dict[str, str]
__all__: list[str]
