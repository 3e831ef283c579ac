"""What ``pytest-bnn audit`` takes, and how ``--help`` explains it; imports nothing heavy."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.audit.fields import ALLOW, ALLOW_HELP, KL_LOSS, PARTS
from pytest_bnn.checks import choices, own, registry
from pytest_bnn.commands import checkpoints
from pytest_bnn.commands.command import Parser
from pytest_bnn.options import OPTIONS

if TYPE_CHECKING:
    from pytest_bnn.commands.command import Commands

#: Where the report goes unless it is told.
REPORT = "audit.html"

_AUDIT = """\
Audit a Bayesian neural network that was converted from a deterministic one.

Without --model the subject is a ResNet18: the teacher is loaded (--weights), converted with bayesian-torch's
dnn_to_bnn, a copy is fine-tuned toward the teacher, and both conversions are audited. With --model, or --subject, your
own network is judged as it is, never trained or changed."""

_AUDIT_END = """\
MODULE:FACTORY names a function without arguments in a module of this folder or of the Python path. The module is
executed: audit only code that you would run. So are modules named with --plugin or in [tool.pytest-bnn] of the
pyproject.toml in this folder, and a conftest.py that declares checks with @pytest_bnn.check or imports a module that
does: this folder's, those above it up to the project's root, and those of test folders there.

exit codes: 0 every claim holds, or with --baseline nothing is new or worse; 1 a claim failed or stayed inconclusive;
2 the audit itself broke, or a check could not use what it was given; 3 no check applies; 4 wrong usage or input.

examples:
  pytest-bnn audit
  pytest-bnn audit --model my_net:bayesian --teacher my_net:teacher --data my_net:held_out -o audit.html
  pytest-bnn audit --model my_net:bayesian --data my_net:held_out --loss my_net:loss --num-batches 782"""


def add_to(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and all that it takes; return its parser."""
    audit = commands.add_parser(
        "audit",
        help="check a model and write a report",
        description=_AUDIT,
        epilog=_AUDIT_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    audit.add_argument("-h", "--help", nargs=0, action=_Help, help="show this message, with the checks, and exit")
    own = audit.add_argument_group("a network of your own")
    own.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        action="append",
        default=[],
        help="function that returns the Bayesian network; may be repeated: each is judged by itself, with the same "
        "teacher, data and loss",
    )
    own.add_argument(
        "--subject",
        metavar="NAME",
        action="append",
        default=[],
        help="a network of [tool.pytest-bnn.subjects.NAME] in the pyproject.toml of this folder; may be repeated",
    )
    for field in PARTS:
        own.add_argument(f"--{field.name}", **field.argument)
    checkpoints.add_to(audit)
    claims = audit.add_argument_group("what is claimed")
    claims.add_argument("--checks", metavar="ID,...", help="run these checks only, for example layers.replaced,kl.loss")
    claims.add_argument(f"--{ALLOW}", metavar="PATTERN=REASON", action="append", default=[], help=ALLOW_HELP)
    claims.add_argument("--set", metavar="ID.OPTION=VALUE", action="append", default=[],
                        help="an option of one check, for example noise.spread.band=0.01:0.5 or kl.loss.severity=warn; "
                        "may be repeated")  # fmt: skip
    claims.add_argument("--plugin", metavar="MODULE", action="append", default=[],
                        help="import a module that declares checks; may be repeated")  # fmt: skip
    weight = claims.add_mutually_exclusive_group()
    for field in KL_LOSS:
        (claims if field.key == "num_data" else weight).add_argument(f"--{field.name}", **field.argument)
    earlier = audit.add_argument_group("an earlier audit")
    earlier.add_argument("--baseline", metavar="FILE.json", help="fail only on what is new or worse than in this audit")
    earlier.add_argument(
        "--update-baseline", action="store_true", help="write the file of --baseline from what this audit finds"
    )
    settings = audit.add_argument_group("settings", "also from the environment, as PYTEST_BNN_SEED and so on")
    for option in OPTIONS:
        text = f"{option.help} (default: {option.shown})".replace("%", "%%")
        settings.add_argument(f"--{option.name}", help=text, **option.argument)
    audit.add_argument(
        "-o",
        "--report",
        metavar="FILE.html",
        default=REPORT,
        help="where to write the report; the JSON goes beside it (default: %(default)s)",
    )
    audit.add_argument(
        "--ctrf",
        metavar="FILE.json",
        help="write the verdicts into this file too, in the Common Test Report Format (https://ctrf.io)",
    )
    amount = audit.add_mutually_exclusive_group()
    amount.add_argument(
        "-v", "--verbose", action="store_true", help="show tracebacks, and the evidence of passed claims too"
    )
    amount.add_argument("-q", "--quiet", action="store_true", help="print the verdict alone, as one line")
    return audit


def read_named(given: argparse.Namespace) -> None:
    """Take the checks that the modules of the user's own network declare into the list; they are imported later."""
    for name in _NETWORK:
        named = getattr(given, name, None) or ()
        for text in [named] if isinstance(named, str) else named:
            registry.read_module(text.partition(":")[0])


#: The options that name modules, of which the user's own network is made.
_NETWORK = ("model", "teacher", "data", "loss")


def _naming_modules(words: Sequence[str]) -> argparse.Namespace:
    """Read the options that name modules, wherever they stand; what else there is, also a mistake, is left alone."""
    reader = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    reader.add_argument("--plugin", action="append", default=[])
    for name in _NETWORK:
        reader.add_argument(f"--{name}", action="append", default=[])
    try:
        return reader.parse_known_args(words)[0]
    except argparse.ArgumentError:
        return reader.parse_args([])


class _Help(argparse.Action):
    """Shows the help of an audit with every check that there is, others' too; imports none of them."""

    def __call__(
        self, parser: argparse.ArgumentParser, given: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        named = _naming_modules(parser.words if isinstance(parser, Parser) else ())
        with registry.kept():
            for module in [*named.plugin, *choices.from_project(Path.cwd()).plugins]:
                registry.read_module(module)
            own.read(Path.cwd())
            read_named(named)
            parser.epilog = f"{_checks_in_words()}\n\n{_AUDIT_END}"
            parser.print_help()
        parser.exit()


def _checks_in_words() -> str:
    """List the checks, each with its claim and its options, as wide as the terminal."""
    width = max(60, shutil.get_terminal_size().columns - 2)
    lines = ["checks, each with its options for --set ID.OPTION=VALUE (and severity=error|warn|off for all of them):"]
    for id in registry.ids():
        found = registry.declaration(id)
        lines.append(f"  {id}")
        words = [found.claim] if found is not None else ["(of an installed package)"]
        defaults = [f"{option.name} ({_shown(option.default)})" for option in found.options] if found else []
        words += [f"options: {', '.join(defaults)}"] if defaults else []
        for text in words:
            lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ":".join(map(str, default))
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default is None else str(default)
