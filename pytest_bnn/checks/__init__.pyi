# Written by python -m pytest_bnn.checks.stubs.
from collections.abc import Mapping
from typing import Literal, Unpack

from torch import nn

from pytest_bnn.records.evidence import Evidence
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import Given, Subject

NAMES: dict[str, str]

def assert_calibration_classes(
    model: nn.Module | Subject,
    *,
    most: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_calibration_temperature(
    model: nn.Module | Subject,
    *,
    band: tuple[float, float] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_data_sane(
    model: nn.Module | Subject,
    *,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_estimator_flipout(
    model: nn.Module | Subject,
    *,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_gradient_samples(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def assert_kl_loss(
    model: nn.Module | Subject,
    *,
    kl_weight: float | None = ...,
    num_batches: int | None = ...,
    num_data: int | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_kl_present(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def assert_layers_replaced(
    model: nn.Module | Subject,
    *,
    allow: Mapping[str, str] | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_loss_data(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def assert_mean_equals_teacher(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def assert_memory_separate(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def assert_noise_fresh(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def assert_noise_posterior(
    model: nn.Module | Subject,
    *,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_noise_source(
    model: nn.Module | Subject,
    *,
    max_passes: int = ...,
    min_spread: float = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_noise_spread(
    model: nn.Module | Subject,
    *,
    band: tuple[float, float] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_noise_varies(
    model: nn.Module | Subject,
    *,
    max_passes: int = ...,
    min_spread: float = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_posterior_start(
    model: nn.Module | Subject,
    *,
    allow: Mapping[str, str] | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_predictions_rows(
    model: nn.Module | Subject,
    *,
    allow: Mapping[str, str] | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_regression_coverage(
    model: nn.Module | Subject,
    *,
    band: tuple[float, float] = ...,
    max_distance: float = ...,
    noise: float | None = ...,
    head: Literal["auto", "mean", "variance", "log_variance", "std", "log_std"] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_regression_scores(
    model: nn.Module | Subject,
    *,
    margin: float = ...,
    noise: float | None = ...,
    head: Literal["auto", "mean", "variance", "log_variance", "std", "log_std"] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_scores_against_teacher(
    model: nn.Module | Subject,
    *,
    margin: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_slices_scores(
    model: nn.Module | Subject,
    *,
    margin: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_slices_temperature(
    model: nn.Module | Subject,
    *,
    band: tuple[float, float] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_teacher_agreement(
    model: nn.Module | Subject,
    *,
    min_agreement: float = ...,
    max_passes: int = ...,
    population: bool = ...,
    tolerance: float = ...,
    distance: float = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_teacher_tensors(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def assert_uncertainty_errors(
    model: nn.Module | Subject,
    *,
    margin: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_uncertainty_ood(
    model: nn.Module | Subject,
    *,
    min_auroc: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def assert_uncertainty_shift(
    model: nn.Module | Subject,
    *,
    min_trend: float = ...,
    examples: int = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_calibration_classes(
    model: nn.Module | Subject,
    *,
    most: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_calibration_temperature(
    model: nn.Module | Subject,
    *,
    band: tuple[float, float] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_data_sane(
    model: nn.Module | Subject,
    *,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_estimator_flipout(
    model: nn.Module | Subject,
    *,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_gradient_samples(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def measure_kl_loss(
    model: nn.Module | Subject,
    *,
    kl_weight: float | None = ...,
    num_batches: int | None = ...,
    num_data: int | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_kl_present(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def measure_layers_replaced(
    model: nn.Module | Subject,
    *,
    allow: Mapping[str, str] | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_loss_data(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def measure_mean_equals_teacher(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def measure_memory_separate(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def measure_noise_fresh(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def measure_noise_posterior(
    model: nn.Module | Subject,
    *,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_noise_source(
    model: nn.Module | Subject,
    *,
    max_passes: int = ...,
    min_spread: float = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_noise_spread(
    model: nn.Module | Subject,
    *,
    band: tuple[float, float] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_noise_varies(
    model: nn.Module | Subject,
    *,
    max_passes: int = ...,
    min_spread: float = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_posterior_start(
    model: nn.Module | Subject,
    *,
    allow: Mapping[str, str] | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_predictions_rows(
    model: nn.Module | Subject,
    *,
    allow: Mapping[str, str] | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_regression_coverage(
    model: nn.Module | Subject,
    *,
    band: tuple[float, float] = ...,
    max_distance: float = ...,
    noise: float | None = ...,
    head: Literal["auto", "mean", "variance", "log_variance", "std", "log_std"] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_regression_scores(
    model: nn.Module | Subject,
    *,
    margin: float = ...,
    noise: float | None = ...,
    head: Literal["auto", "mean", "variance", "log_variance", "std", "log_std"] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_scores_against_teacher(
    model: nn.Module | Subject,
    *,
    margin: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_slices_scores(
    model: nn.Module | Subject,
    *,
    margin: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_slices_temperature(
    model: nn.Module | Subject,
    *,
    band: tuple[float, float] = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_teacher_agreement(
    model: nn.Module | Subject,
    *,
    min_agreement: float = ...,
    max_passes: int = ...,
    population: bool = ...,
    tolerance: float = ...,
    distance: float = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_teacher_tensors(model: nn.Module | Subject, **given: Unpack[Given]) -> Evidence: ...
def measure_uncertainty_errors(
    model: nn.Module | Subject,
    *,
    margin: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_uncertainty_ood(
    model: nn.Module | Subject,
    *,
    min_auroc: float = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
def measure_uncertainty_shift(
    model: nn.Module | Subject,
    *,
    min_trend: float = ...,
    examples: int = ...,
    max_passes: int = ...,
    budget: Budget | None = ...,
    **given: Unpack[Given],
) -> Evidence: ...
