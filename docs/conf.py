"""Sphinx: ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

What is built loads nothing from elsewhere: formulas are MathML, which browsers show without a script, and the search is
Sphinx's own, whose index is one of the files.
"""

import re
from importlib.metadata import version as installed
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "pytest-bnn"
author = "The pytest-bnn maintainers"
release = version = installed("pytest-bnn")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pytest-bnn {release}"
html_math_renderer = "mathml"

myst_heading_anchors = 3
# The terms and the mathematics of the checks' pages.
myst_enable_extensions = ["deflist", "dollarmath"]

# Docstrings put code into single backticks.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# Aliases such as Loss are shown by name, not by what they stand for.
autodoc_type_aliases = {"Loss": "Loss", "Scalar": "Scalar", "Stage": "Stage"}


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


def _aliases(*found: Any) -> tuple[str | None, str | None]:
    """Show `Loss` where autodoc shows how Python stores the name of an alias."""
    signature, returned = (text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in found[-2:])
    return signature, returned


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", _aliases)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
