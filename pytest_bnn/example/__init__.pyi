# Written by python -m pytest_bnn.checks.stubs.
# ruff: noqa: I001
from pytest_bnn.example.audit import audit_resnet18 as audit_resnet18
from pytest_bnn.example.images import (
    digits as digits,
    digits_batch as digits_batch,
    imagenet_batch as imagenet_batch,
    open_image as open_image,
    outside_digits as outside_digits,
    photograph as photograph,
    photograph_crops as photograph_crops,
    suitable as suitable,
)
from pytest_bnn.example.weights import Teacher as Teacher, load_teacher as load_teacher, model_card as model_card

_HOMES: dict[str, tuple[str, ...]]
_HOME_OF: dict[str, str]
__all__: list[str]
