"""``pytest-bnn render``: the report of an audit, from its JSON."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.commands.command import PASSED, reader_may_leave
from pytest_bnn.errors import InputError

if TYPE_CHECKING:
    from pytest_bnn.commands.command import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    render = commands.add_parser("render", help="make a report from the JSON of an audit")
    render.add_argument("audit", metavar="AUDIT.json", help="the JSON that an audit wrote")
    render.add_argument("-o", "--output", metavar="FILE", default=None,
                        help="the report to write, .html or .md (default: the JSON's name with .html)")  # fmt: skip
    render.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    render.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Write the report, and say where it is."""
    from pytest_bnn.records import audits
    from pytest_bnn.report import render_html, render_markdown
    from pytest_bnn.report.files import require_ours, write_texts

    source = Path(given.audit)
    target = source.with_suffix(".html") if given.output is None else Path(given.output)
    if target.suffix not in (".html", ".md"):
        raise InputError(f"the output is {str(target)!r}", fix="give a path that ends in .html or .md")
    if os.path.realpath(target) == os.path.realpath(source):
        raise InputError(f"{given.audit!r} would be overwritten by its own report", fix="give the .json of an audit")
    require_ours(target)
    run = audits.read(source)
    write_texts({target: render_html(run) if target.suffix == ".html" else render_markdown(run)})
    with reader_may_leave():
        print(target)
    return PASSED
