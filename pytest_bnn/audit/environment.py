"""The installation that an audit runs in: are the packages whole, and which versions are they?"""

from __future__ import annotations

import importlib
import platform
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from pytest_bnn.errors import BrokenEnvironmentError

PACKAGES = ("pytest-bnn", "torch", "torchvision", "bayesian-torch", "numpy", "scipy", "pytest", "hypothesis")


def versions() -> dict[str, str]:
    """Return the version of Python and of every package that shapes an audit; ``"missing"`` where there is none."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def torchvision() -> ModuleType:
    """Import torchvision, with its models.

    Raises:
        BrokenEnvironmentError: torchvision is missing, or was built for another torch (then torch says
            ``operator torchvision::nms does not exist``).
    """
    try:
        importlib.import_module("torchvision.models")
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        found = versions()
        raise BrokenEnvironmentError(
            f"torchvision {found['torchvision']} cannot be used with torch {found['torch']} ({error})",
            fix="install the two together so that pip picks a matching pair: "
            "pip install --upgrade --force-reinstall torch torchvision",
        ) from error
