"""``pytest-bnn schema``: the JSON Schema of an audit."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from pytest_bnn.commands.command import PASSED, reader_may_leave

if TYPE_CHECKING:
    from pytest_bnn.commands.command import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    commands.add_parser("schema", help="print the JSON Schema of an audit").set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the schema."""
    from pytest_bnn.records.run import json_schema

    with reader_may_leave():
        print(json.dumps(json_schema(), indent=2))
    return PASSED
