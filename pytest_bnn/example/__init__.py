"""The ResNet18 that shows all of it: weights, images, digits.

What examples and tests are made of is importable from here and loads when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_bnn.example.audit import audit_resnet18 as audit_resnet18
    from pytest_bnn.example.images import digits as digits
    from pytest_bnn.example.images import digits_batch as digits_batch
    from pytest_bnn.example.images import imagenet_batch as imagenet_batch
    from pytest_bnn.example.images import open_image as open_image
    from pytest_bnn.example.images import outside_digits as outside_digits
    from pytest_bnn.example.images import photograph as photograph
    from pytest_bnn.example.weights import Teacher as Teacher
    from pytest_bnn.example.weights import load_teacher as load_teacher
    from pytest_bnn.example.weights import model_card as model_card

_HOMES = {
    "audit": ("audit_resnet18",),
    "images": ("digits", "digits_batch", "imagenet_batch", "open_image", "outside_digits", "photograph"),
    "weights": ("Teacher", "load_teacher", "model_card"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
