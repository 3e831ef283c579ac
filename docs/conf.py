"""Sphinx: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

from importlib.metadata import version as installed

project = "pytest-bnn"
author = "The pytest-bnn maintainers"
release = version = installed("pytest-bnn")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pytest-bnn {release}"

myst_heading_anchors = 3
# The mathematics of the checks' pages.
myst_enable_extensions = ["dollarmath"]

# Docstrings put code into single backticks.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# Aliases such as Loss are shown by name, not by what they stand for.
autodoc_type_aliases = {"Loss": "Loss", "Scalar": "Scalar", "Stage": "Stage"}
