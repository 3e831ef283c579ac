"""What ``pytest-bnn audit`` takes, and how ``--help`` explains it; imports nothing heavy."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pytest_bnn.checks import choices, registry
from pytest_bnn.options import OPTIONS, positive, whole

if TYPE_CHECKING:
    from pytest_bnn.commands.command import Commands

T = TypeVar("T")

_TASKS = ("auto", "classification", "binary", "regression", "dense")

_AUDIT = """\
Audit a Bayesian neural network that was converted from a deterministic one.

Without --model the subject is a ResNet18: the teacher is loaded (--weights), converted with bayesian-torch's
dnn_to_bnn, a copy is fine-tuned toward the teacher, and both conversions are audited. With --model your own network
is judged as it is, never trained or changed."""

_AUDIT_END = """\
MODULE:FACTORY names a function without arguments in a module of this folder or of the Python path. The module is
executed: audit only code that you would run. So are modules named with --plugin or in [tool.pytest-bnn] of the
pyproject.toml in this folder, and this folder's conftest.py where it declares checks with @pytest_bnn.check.

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
    own.add_argument("--model", metavar="MODULE:FACTORY", help="function that returns the Bayesian network")
    own.add_argument(
        "--teacher",
        metavar="MODULE:FACTORY",
        help="function that returns the deterministic network that it was converted from",
    )
    own.add_argument(
        "--data",
        metavar="MODULE:FACTORY",
        help="function that returns the examples: images, (images, labels), any tree of tensors, a Dataset or a "
        "DataLoader",
    )
    own.add_argument(
        "--images",
        metavar="N",
        type=reading(whole(1)),
        help="use at most N examples of the data; of more, a random subset (default: 512)",
    )
    own.add_argument(
        "--loss",
        metavar="MODULE:FUNCTION",
        help="the training loss, called as loss(model, batch); the batch has the structure of the data",
    )
    own.add_argument(
        "--evaluation",
        metavar="MODULE:FACTORY",
        help="returns labelled examples on which claims about the predictions are judged, where --data are too easy "
        "for that (default: the data)",
    )
    own.add_argument(
        "--ood",
        metavar="MODULE:FACTORY",
        help="returns examples that are none of the model's task, or several such sets by name",
    )
    own.add_argument(
        "--shifts",
        metavar="MODULE:FACTORY",
        help="returns the data at growing amounts of a shift, the least first: a list of data sets, or several lists "
        "by name (default: corruptions made of the data, where these are images)",
    )
    own.add_argument(
        "--slices",
        metavar="MODULE:FUNCTION",
        help="returns the group of an example by its number in the data; claims about predictions are judged by group",
    )
    own.add_argument("--stage", choices=("auto", "converted", "finetuned"),
                     help="what the model is; auto reads it from its weights and the teacher's")  # fmt: skip
    own.add_argument(
        "--task",
        metavar="|".join(_TASKS),
        choices=_TASKS,
        help="what the outputs mean; auto infers it from the labels, the loss and the names of the outputs",
    )
    own.add_argument(
        "--output",
        metavar="NAME",
        help="name of the output whose predictions are judged, where the network has several",
    )
    own.add_argument(
        "--batch-dim",
        metavar="N",
        type=reading(whole(0)),
        help="dimension of the inputs along which the examples lie; 1 where time comes first (default: 0)",
    )
    claims = audit.add_argument_group("what is claimed")
    claims.add_argument("--checks", metavar="ID,...", help="run these checks only, for example layers.replaced,kl.loss")
    claims.add_argument("--allow", metavar="PATTERN=REASON", action="append", default=[],
                        help="layers that are deterministic on purpose, and modules in which the examples of a batch "
                        "meet on purpose, by path; may be repeated")  # fmt: skip
    claims.add_argument("--set", metavar="ID.OPTION=VALUE", action="append", default=[],
                        help="an option of one check, for example noise.spread.band=0.01:0.5 or kl.loss.severity=warn; "
                        "may be repeated")  # fmt: skip
    claims.add_argument("--plugin", metavar="MODULE", action="append", default=[],
                        help="import a module that declares checks; may be repeated")  # fmt: skip
    weight = claims.add_mutually_exclusive_group()
    weight.add_argument(
        "--kl-weight", metavar="W", type=reading(positive), help="expect this weight of the KL term in the loss"
    )
    weight.add_argument(
        "--num-batches", metavar="M", type=reading(whole(1)), help="expect the weight 1/M, for M batches an epoch"
    )
    claims.add_argument(
        "--num-data",
        metavar="N",
        type=reading(whole(1)),
        help="number of training examples: expect the weight 1/N of a summed KL beside a mean data term",
    )
    earlier = audit.add_argument_group("an earlier audit")
    earlier.add_argument("--baseline", metavar="FILE.json", help="fail only on what is new or worse than in this audit")
    earlier.add_argument(
        "--update-baseline", action="store_true", help="write the file of --baseline from what this audit finds"
    )
    settings = audit.add_argument_group("settings", "also from the environment, as PYTEST_BNN_SEED and so on")
    for option in OPTIONS:
        text = f"{option.help} (default: {option.default})".replace("%", "%%")
        settings.add_argument(f"--{option.name}", help=text, **option.argument)
    audit.add_argument(
        "-o",
        "--report",
        metavar="FILE.html",
        default="audit.html",
        help="where to write the report; the JSON goes beside it (default: %(default)s)",
    )
    audit.add_argument(
        "--ctrf",
        metavar="FILE.json",
        help="write the verdicts into this file too, in the Common Test Report Format (https://ctrf.io)",
    )
    audit.add_argument(
        "-v", "--verbose", action="store_true", help="show tracebacks, and the evidence of passed claims too"
    )
    return audit


class _Help(argparse.Action):
    """Shows the help of an audit with every check that there is, others' too; imports none of them."""

    def __call__(
        self, parser: argparse.ArgumentParser, given: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        with registry.kept():
            for module in [*given.plugin, *choices.from_project(Path.cwd()).plugins]:
                registry.read_module(module)
            registry.read_conftest(Path.cwd())
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


def reading(read: Callable[[str], T]) -> Callable[[str], T]:
    """Let argparse say what a text should have been."""

    def of_argument(text: str) -> T:
        try:
            return read(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r} is not {read.__doc__}") from None

    return of_argument
