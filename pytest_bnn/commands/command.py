"""What every command has: its exit codes, and its place in the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

PASSED, FAILED, BROKEN, NOTHING_APPLIES, USAGE = range(5)
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Ends with the exit code for wrong usage; ``words`` are what it was last given to parse."""

    words: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # overloaded there
        """Note the words, which an option's action may need whole, and parse them."""
        self.words = tuple(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in two lines, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Print inside: what reads standard output may stop, as ``head -1`` does, and the exit code stays the verdict's.

    Only what is printed goes inside: a broken pipe of a model's own is an error.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What the buffers still hold goes nowhere, also when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def on_stderr(words: str) -> None:
    """Write a line to standard error, which changes nothing where nobody reads it any more."""
    try:
        print(words, file=sys.stderr, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def exit_code_of(verdict: Verdict, *, inconclusive: Inconclusive) -> int:
    """Return the exit code of an audit's verdict, or of the worst of several.

    Args:
        verdict: The verdict.
        inconclusive: Whether an undecided claim counts as a failure.
    """
    from pytest_bnn.records.evidence import Verdict, is_failure

    if verdict is Verdict.ERROR:
        return BROKEN
    if is_failure(verdict, inconclusive=inconclusive):
        return FAILED
    return NOTHING_APPLIES if verdict is Verdict.NOT_APPLICABLE else PASSED


if TYPE_CHECKING:
    from pytest_bnn.records.evidence import Inconclusive, Verdict

    #: Where a command adds its parser.
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
