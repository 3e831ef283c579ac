"""The version of this package, from the metadata of its installation."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pytest-bnn")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"
