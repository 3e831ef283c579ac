"""What every command has: its exit codes, and its place in the command line."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn, TypeAlias

PASSED, FAILED, BROKEN, NOTHING_APPLIES, USAGE = range(5)
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Ends with the exit code for wrong usage."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in two lines, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


if TYPE_CHECKING:
    #: Where a command adds its parser.
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
