"""A broken installation is told apart from a broken model, with the command that mends it."""

from __future__ import annotations

import importlib
import platform
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision as real_torchvision

from pytest_bnn.audit import environment
from pytest_bnn.errors import BrokenEnvironmentError, PytestBnnError
from pytest_bnn.example.weights import load_teacher


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        ModuleNotFoundError("No module named 'torchvision'"),
        OSError("libcudart.so.13: cannot open shared object file"),
        AttributeError("partially initialized module 'torchvision' has no attribute 'extension'"),
    ],
)
def test_a_torchvision_that_does_not_fit_torch_names_both_and_the_cure(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own message names an operator and nothing that the reader could do."""

    def broken(name: str, package: str | None = None) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(BrokenEnvironmentError) as caught:
        environment.torchvision()
    message = str(caught.value)
    assert f"torchvision {metadata.version('torchvision')}" in message
    assert f"torch {metadata.version('torch')}" in message
    assert str(error) in message
    assert message.endswith("pip install --upgrade --force-reinstall torch torchvision.")
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, PytestBnnError)


def test_loading_a_teacher_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call that needs torchvision is `load_teacher`; its users never see an ImportError."""

    def broken(name: str, package: str | None = None) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    for source in ("digits", "imagenet"):
        with pytest.raises(BrokenEnvironmentError):
            load_teacher(source)


def test_a_sound_torchvision_is_the_module_itself() -> None:
    found = environment.torchvision()
    assert found is real_torchvision
    assert callable(found.models.resnet18)


def test_versions_are_those_of_the_running_packages() -> None:
    """They go into every report's provenance."""
    found = environment.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__ or torch.__version__.startswith(found["torch"])
    assert set(environment.PACKAGES) < set(found)
    assert all(found[name] == metadata.version(name) for name in environment.PACKAGES)


def test_a_missing_package_is_reported_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report must not fail for a package that it only mentions."""

    def version(name: str) -> str:
        if name == "hypothesis":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(environment, "version", version)
    found: dict[str, Any] = environment.versions()
    assert found["hypothesis"] == "missing"
    assert found["torch"] == "1.0"


def test_every_error_ends_with_its_fix() -> None:
    """One form for all: the problem, a full stop, the fix as a sentence of its own."""
    error = PytestBnnError("the cat is out", fix="close the door")
    assert str(error) == "the cat is out. Close the door."
    assert (error.problem, error.fix) == ("the cat is out", "close the door")
