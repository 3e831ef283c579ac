"""The ResNet18 that shows all of it: its weights, its images, and what is none of its task.

Names load when first used, as those of `pytest_bnn` do.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "audit": ("audit_resnet18",),
    "images": (
        "digits",
        "digits_batch",
        "imagenet_batch",
        "open_image",
        "outside_digits",
        "photograph",
        "photograph_crops",
        "suitable",
    ),
    "weights": ("Teacher", "load_teacher", "model_card"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
