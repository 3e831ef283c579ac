"""The command ``pytest-bnn``. Starts fast: torch loads when an audit begins."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence

from pytest_bnn.commands import audit, digest, render, schema
from pytest_bnn.commands.command import BROKEN, INTERRUPTED, USAGE, Parser
from pytest_bnn.errors import InputError, PytestBnnError

#: In the order of ``--help``.
_COMMANDS = (audit, render, digest, schema)


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="pytest-bnn", description="Audit Bayesian conversions of deterministic networks.")
    names = " | ".join(module.__name__.rpartition(".")[2] for module in _COMMANDS)
    commands = parser.add_subparsers(dest="command", metavar=names, required=True)
    for module in _COMMANDS:
        module.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    _show_every_name()
    given_to_us = list(sys.argv[1:] if arguments is None else arguments)
    try:
        given = parser().parse_args(given_to_us)
    except InputError as error:  # what --help lists
        print(f"pytest-bnn: {error}", file=sys.stderr)
        return USAGE
    given.command_line = given_to_us
    verbose = getattr(given, "verbose", False)
    try:
        exit_code: int = given.run(given)
    except PytestBnnError as error:
        if verbose:
            traceback.print_exc()
        print(f"pytest-bnn: {error}", file=sys.stderr)
        return USAGE if isinstance(error, InputError) else BROKEN
    except KeyboardInterrupt:
        print("pytest-bnn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BaseException as error:  # an exit inside what the user gave must not end as a success
        if verbose:
            traceback.print_exc()
        hint = "" if verbose else "; -v shows where"
        print(f"pytest-bnn: the audit broke: {type(error).__name__}: {error}{hint}", file=sys.stderr)
        return BROKEN
    return exit_code


def _show_every_name() -> None:
    """Let characters that the terminal cannot show be escaped, in place of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
