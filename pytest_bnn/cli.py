"""The command ``pytest-bnn``. Starts fast: torch loads when an audit begins."""

from __future__ import annotations

import argparse
import io
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pytest_bnn.commands import audit, compare, digest, init, merge, render, schema
from pytest_bnn.commands.command import BROKEN, INTERRUPTED, USAGE, Parser, on_stderr, reader_may_leave
from pytest_bnn.errors import InputError, PytestBnnError

#: In the order of ``--help``.
_COMMANDS = (audit, compare, digest, init, merge, render, schema)


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="pytest-bnn", description="Audit Bayesian conversions of deterministic networks.")
    parser.add_argument("-V", "--version", nargs=0, action=_Version, help="show the version, and exit")
    names = " | ".join(module.__name__.rpartition(".")[2] for module in _COMMANDS)
    commands = parser.add_subparsers(dest="command", metavar=names, required=True)
    for module in _COMMANDS:
        module.add(commands)
    return parser


class _Version(argparse.Action):
    """Shows the version, which nothing else has to look up."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from pytest_bnn.version import __version__

        print(f"pytest-bnn {__version__}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    with _any_text():
        try:
            return _main(arguments)
        finally:
            with reader_may_leave():  # what a command printed may still be in a buffer
                pass


@contextmanager
def _any_text() -> Iterator[None]:
    """Let standard output and error show what their encoding lacks as an escape, in place of raising."""
    before = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            before.append((stream, stream.errors))
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in before:
            stream.reconfigure(errors=errors)


def _main(arguments: Sequence[str] | None) -> int:
    given_to_us = list(sys.argv[1:] if arguments is None else arguments)
    try:
        given = parser().parse_args(given_to_us)
    except InputError as error:  # what --help lists
        on_stderr(f"pytest-bnn: {error}")
        return USAGE
    given.command_line = given_to_us
    verbose = getattr(given, "verbose", False)
    try:
        exit_code: int = given.run(given)
    except PytestBnnError as error:
        if verbose:
            traceback.print_exc()
        on_stderr(f"pytest-bnn: {error}")
        return USAGE if isinstance(error, InputError) else BROKEN
    except KeyboardInterrupt:
        on_stderr("pytest-bnn: interrupted")
        return INTERRUPTED
    except BaseException as error:  # an exit inside what the user gave must not end as a success
        if verbose:
            traceback.print_exc()
        hint = "" if verbose else "; -v shows where"
        on_stderr(f"pytest-bnn: the audit broke: {type(error).__name__}: {error}{hint}")
        return BROKEN
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
