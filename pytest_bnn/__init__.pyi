# Written by python -m pytest_bnn.checks.stubs.
from pytest_bnn.audit.plan import Thresholds as Thresholds
from pytest_bnn.audit.run import audit_model as audit_model
from pytest_bnn.checks import (
    assert_estimator_flipout as assert_estimator_flipout,
)
from pytest_bnn.checks import (
    assert_gradient_samples as assert_gradient_samples,
)
from pytest_bnn.checks import (
    assert_kl_loss as assert_kl_loss,
)
from pytest_bnn.checks import (
    assert_kl_present as assert_kl_present,
)
from pytest_bnn.checks import (
    assert_layers_replaced as assert_layers_replaced,
)
from pytest_bnn.checks import (
    assert_mean_equals_teacher as assert_mean_equals_teacher,
)
from pytest_bnn.checks import (
    assert_memory_separate as assert_memory_separate,
)
from pytest_bnn.checks import (
    assert_noise_posterior as assert_noise_posterior,
)
from pytest_bnn.checks import (
    assert_noise_source as assert_noise_source,
)
from pytest_bnn.checks import (
    assert_noise_spread as assert_noise_spread,
)
from pytest_bnn.checks import (
    assert_noise_varies as assert_noise_varies,
)
from pytest_bnn.checks import (
    assert_teacher_agreement as assert_teacher_agreement,
)
from pytest_bnn.checks import (
    measure_estimator_flipout as measure_estimator_flipout,
)
from pytest_bnn.checks import (
    measure_gradient_samples as measure_gradient_samples,
)
from pytest_bnn.checks import (
    measure_kl_loss as measure_kl_loss,
)
from pytest_bnn.checks import (
    measure_kl_present as measure_kl_present,
)
from pytest_bnn.checks import (
    measure_layers_replaced as measure_layers_replaced,
)
from pytest_bnn.checks import (
    measure_mean_equals_teacher as measure_mean_equals_teacher,
)
from pytest_bnn.checks import (
    measure_memory_separate as measure_memory_separate,
)
from pytest_bnn.checks import (
    measure_noise_posterior as measure_noise_posterior,
)
from pytest_bnn.checks import (
    measure_noise_source as measure_noise_source,
)
from pytest_bnn.checks import (
    measure_noise_spread as measure_noise_spread,
)
from pytest_bnn.checks import (
    measure_noise_varies as measure_noise_varies,
)
from pytest_bnn.checks import (
    measure_teacher_agreement as measure_teacher_agreement,
)
from pytest_bnn.checks.check import Finding as Finding
from pytest_bnn.checks.check import check as check
from pytest_bnn.conversion import Conversion as Conversion
from pytest_bnn.conversion import convert as convert
from pytest_bnn.conversion import convert_with as convert_with
from pytest_bnn.errors import (
    BrokenEnvironmentError as BrokenEnvironmentError,
)
from pytest_bnn.errors import (
    ConversionError as ConversionError,
)
from pytest_bnn.errors import (
    InputError as InputError,
)
from pytest_bnn.errors import (
    PytestBnnError as PytestBnnError,
)
from pytest_bnn.errors import (
    WeightsError as WeightsError,
)
from pytest_bnn.example.audit import audit_resnet18 as audit_resnet18
from pytest_bnn.example.images import (
    digits as digits,
)
from pytest_bnn.example.images import (
    digits_batch as digits_batch,
)
from pytest_bnn.example.images import (
    imagenet_batch as imagenet_batch,
)
from pytest_bnn.example.images import (
    open_image as open_image,
)
from pytest_bnn.example.images import (
    photograph as photograph,
)
from pytest_bnn.example.weights import Teacher as Teacher
from pytest_bnn.example.weights import load_teacher as load_teacher
from pytest_bnn.example.weights import model_card as model_card
from pytest_bnn.records.evidence import (
    AuditRun as AuditRun,
)
from pytest_bnn.records.evidence import (
    Evidence as Evidence,
)
from pytest_bnn.records.evidence import (
    Measurement as Measurement,
)
from pytest_bnn.records.evidence import (
    Threshold as Threshold,
)
from pytest_bnn.records.evidence import (
    Verdict as Verdict,
)
from pytest_bnn.report import render_html as render_html
from pytest_bnn.report import render_markdown as render_markdown
from pytest_bnn.report.files import write_report as write_report
from pytest_bnn.sampling.bank import PassBank as PassBank
from pytest_bnn.sampling.bank import probabilities as probabilities
from pytest_bnn.sampling.predictive import Predictive as Predictive
from pytest_bnn.sampling.predictive import predict as predict
from pytest_bnn.stats.intervals import Budget as Budget
from pytest_bnn.subject import Subject as Subject
from pytest_bnn.training.divergence import FixedSigma as FixedSigma
from pytest_bnn.training.divergence import fixed_sigma as fixed_sigma
from pytest_bnn.training.divergence import kl as kl
from pytest_bnn.training.finetune import distillation_loss as distillation_loss
from pytest_bnn.training.finetune import finetune as finetune

_HOMES: dict[str, tuple[str, ...]]
_HOME_OF: dict[str, str]
__all__: list[str]
