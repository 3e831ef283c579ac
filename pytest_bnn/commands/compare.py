"""``pytest-bnn compare``: what is new, worse, known and fixed between two audits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.commands import terminal
from pytest_bnn.commands.command import FAILED, PASSED, reader_may_leave
from pytest_bnn.errors import InputError

if TYPE_CHECKING:
    from pytest_bnn.commands.command import Commands

_END = """\
exit codes: 0 nothing is new or worse; 1 something is; 4 wrong usage or input.

example:
  pytest-bnn compare main.json branch.json -o comment.md"""


def add(commands: Commands) -> None:
    """Add the command."""
    compare = commands.add_parser(
        "compare",
        help="show what is new, worse, known and fixed between two audits",
        description="Compare two audits claim by claim.",
        epilog=_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("before", metavar="OLD.json", help="the JSON of the earlier audit, or a baseline")
    compare.add_argument("now", metavar="NEW.json", help="the JSON of the later audit")
    compare.add_argument("-o", "--output", metavar="FILE", default=None,
                         help="write it, too: .html for a page, .md for a comment in a pull request")  # fmt: skip
    compare.add_argument("--inconclusive", choices=("fail", "warn"), default="fail",
                         help="whether an undecided claim counts as a failure (default: %(default)s)")  # fmt: skip
    compare.add_argument("-v", "--verbose", action="store_true", help="show tracebacks, and rows that did not change")
    compare.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print and write the comparison; return 1 where something is new or worse."""
    from pytest_bnn.records import audits
    from pytest_bnn.records.compare import compare
    from pytest_bnn.report.files import require_ours, write_texts

    target = None if given.output is None else Path(given.output)
    if target is not None and target.suffix not in (".html", ".md"):
        raise InputError(f"the output is {given.output!r}", fix="give a path that ends in .html or .md")
    if target is not None:
        require_ours(target)
    before, now = audits.read(given.before), audits.read(given.now)
    comparison = compare(before, now, inconclusive=given.inconclusive)
    with reader_may_leave():
        terminal.show_comparison(comparison, everything=given.verbose)
    if target is not None:
        from pytest_bnn.report import comparison as written

        text = written.html(comparison, before, now) if target.suffix == ".html" else written.markdown(comparison)
        write_texts({target: text})
        with reader_may_leave():
            print(target)
    return FAILED if comparison.failing else PASSED
