"""The command ``pytest-bnn``: audit | render | schema. Starts fast: torch loads when an audit begins."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from pytest_bnn.checks import choices, registry
from pytest_bnn.checks.choices import choosing
from pytest_bnn.errors import InputError, PytestBnnError
from pytest_bnn.options import OPTIONS, DrawnSeed, Settings, positive, resolve_with_sources, using, whole

if TYPE_CHECKING:
    from pytest_bnn.audit.plan import Explicit
    from pytest_bnn.audit.run import Progress
    from pytest_bnn.records.run import AuditRun

T = TypeVar("T")

PASSED, FAILED, BROKEN, NOTHING_APPLIES, USAGE = range(5)
_INTERRUPTED = 130

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

exit codes: 0 every claim holds; 1 a claim failed or stayed inconclusive; 2 the audit itself broke, or a check could
not use what it was given; 3 no check applies; 4 wrong usage or input.

examples:
  pytest-bnn audit
  pytest-bnn audit --model my_net:bayesian --teacher my_net:teacher --data my_net:held_out -o audit.html
  pytest-bnn audit --model my_net:bayesian --data my_net:held_out --loss my_net:loss --num-batches 782"""


class _Parser(argparse.ArgumentParser):
    """Ends with the exit code for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pytest-bnn", description="Audit Bayesian conversions of deterministic networks.")
    commands = parser.add_subparsers(dest="command", metavar="audit | render | schema", required=True)

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
    own.add_argument("--model", metavar="MODULE:FACTORY", help="returns the Bayesian network")
    own.add_argument(
        "--teacher", metavar="MODULE:FACTORY", help="returns the deterministic network that it was made from"
    )
    own.add_argument(
        "--data",
        metavar="MODULE:FACTORY",
        help="returns the examples: images, (images, labels), any tree of tensors, a Dataset or a DataLoader",
    )
    own.add_argument(
        "--images",
        metavar="N",
        type=_reading(whole(1)),
        help="use at most N examples of these data, a random subset of more (default: 512)",
    )
    own.add_argument(
        "--loss",
        metavar="MODULE:FUNCTION",
        help="the training loss, called as loss(model, batch); the batch has the structure of the data",
    )
    own.add_argument("--stage", choices=("auto", "converted", "finetuned"),
                     help="what the model is; auto reads it from its weights and the teacher's")  # fmt: skip
    own.add_argument(
        "--task",
        metavar="|".join(_TASKS),
        choices=_TASKS,
        help="what the outputs mean; auto asks the labels, the loss and the names of the outputs",
    )
    own.add_argument(
        "--output",
        metavar="NAME",
        help="name of the output that claims about predictions are about, where there are several",
    )
    own.add_argument(
        "--batch-dim",
        metavar="N",
        type=_reading(whole(0)),
        help="dimension of the inputs that counts the examples; 1 where time comes first (default: 0)",
    )
    claims = audit.add_argument_group("what is claimed")
    claims.add_argument("--checks", metavar="ID,...", help="run these checks only, for example layers.replaced,kl.loss")
    claims.add_argument("--allow", metavar="PATTERN=REASON", action="append", default=[],
                        help="layers that are deterministic on purpose, by path; may be repeated")  # fmt: skip
    claims.add_argument("--set", metavar="ID.OPTION=VALUE", action="append", default=[],
                        help="an option of one check, for example noise.spread.band=0.01:0.5 or kl.loss.severity=warn; "
                        "may be repeated")  # fmt: skip
    claims.add_argument("--plugin", metavar="MODULE", action="append", default=[],
                        help="import a module that declares checks; may be repeated")  # fmt: skip
    weight = claims.add_mutually_exclusive_group()
    weight.add_argument(
        "--kl-weight", metavar="W", type=_reading(positive), help="weight that the KL term of the loss should have"
    )
    weight.add_argument("--num-batches", metavar="M", type=_reading(whole(1)), help="expect the KL weight 1/M")
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
        "-v", "--verbose", action="store_true", help="show tracebacks, and the evidence of passed claims too"
    )

    render = commands.add_parser("render", help="make a report from the JSON of an audit")
    render.add_argument("audit", metavar="AUDIT.json", help="what an audit wrote")
    render.add_argument("-o", "--output", metavar="FILE", default=None,
                        help="where to write; .html or .md (default: the JSON's name with .html)")  # fmt: skip
    render.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")

    commands.add_parser("schema", help="print the JSON Schema of an audit")
    return parser


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit code."""
    try:
        given = _parser().parse_args(arguments)
    except InputError as error:  # what --help lists
        print(f"pytest-bnn: {error}", file=sys.stderr)
        return USAGE
    verbose = getattr(given, "verbose", False)
    try:
        if given.command == "schema":
            return _schema()
        if given.command == "render":
            return _render(given)
        with registry.kept():
            return _audit(given, list(sys.argv[1:] if arguments is None else arguments))
    except PytestBnnError as error:
        if verbose:
            traceback.print_exc()
        print(f"pytest-bnn: {error}", file=sys.stderr)
        return USAGE if isinstance(error, InputError) else BROKEN
    except KeyboardInterrupt:
        print("pytest-bnn: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BaseException as error:  # an exit inside what the user gave must not end as a success
        if verbose:
            traceback.print_exc()
        hint = "" if verbose else "; -v shows where"
        print(f"pytest-bnn: the audit broke: {type(error).__name__}: {error}{hint}", file=sys.stderr)
        return BROKEN


def _schema() -> int:
    from pytest_bnn.records.run import json_schema

    print(json.dumps(json_schema(), indent=2))
    return PASSED


def _render(given: argparse.Namespace) -> int:
    from pytest_bnn.records.run import AuditRun
    from pytest_bnn.report import render_html, render_markdown

    source = Path(given.audit)
    target = source.with_suffix(".html") if given.output is None else Path(given.output)
    if target.suffix not in (".html", ".md"):
        raise InputError(f"the output is {str(target)!r}", fix="give a path that ends in .html or .md")
    if target == source:
        raise InputError(f"{given.audit!r} would be overwritten by its own report", fix="give the .json of an audit")
    try:
        run = AuditRun.from_json(source.read_text(encoding="utf-8"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render_html(run) if target.suffix == ".html" else render_markdown(run), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} could not be rendered into {target} ({error})", fix="check both paths") from error
    print(target)
    return PASSED


def _audit(given: argparse.Namespace, arguments: list[str]) -> int:
    from pytest_bnn.report.files import require_writable, write_report

    settings, sources = resolve_with_sources(
        {option.key: getattr(given, option.key) for option in OPTIONS}, prefix="--"
    )
    _take_old_name_of_report(given)
    allow = _allowed(given.allow)
    output = Path(given.report)
    require_writable(output)
    _require_fitting_options(given)
    chosen = _chosen(given)
    with using(settings, sources), choosing(chosen), _progress() as say:
        say("loading torch")
        from pytest_bnn.audit.plan import shorthands
        from pytest_bnn.audit.provenance import provenance

        run = _run(given, settings, shorthands(given.kl_weight, given.num_batches, allow), say)
        say("writing the report")
        run = _with_provenance(run, provenance(seed=settings.seed, command=["pytest-bnn", *arguments]))
        page, data = write_report(run, output)
    _show(run, verbose=given.verbose)
    if isinstance(settings.seed, DrawnSeed):
        print(f"seed {settings.seed} was drawn; --seed {settings.seed} repeats this audit")
    print(f"report: {page}  data: {data}")
    return _exit_code(run, settings)


def _take_old_name_of_report(given: argparse.Namespace) -> None:
    """Take ``--output FILE.html``, which named the report before it named a field of the model's output."""
    if given.output is not None and given.output.endswith((".html", ".htm")):
        given.report, given.output = given.output, None


def _chosen(given: argparse.Namespace) -> choices.Choices:
    """Take the options of checks from --set and pyproject.toml, with the checks of plugins and of conftest.py."""
    folder = Path.cwd()
    project = choices.from_project(folder)
    chosen = project.and_also(choices.from_texts(given.set, "--set"))
    for module in given.plugin:
        registry.import_module(module, "--plugin")
    for module in project.plugins:
        registry.import_module(module, "plugins in pyproject.toml")
    if registry.read_conftest(folder):
        registry.import_conftest(folder)
    choices.require_usable(chosen, finally_=True)
    return chosen


def _require_fitting_options(given: argparse.Namespace) -> None:
    """Refuse what would be ignored without a word: options of the one kind of audit in the other."""
    if given.model is None:
        for name in ("teacher", "data", "loss", "images", "stage", "task", "output", "batch_dim"):
            if getattr(given, name) is not None:
                option = name.replace("_", "-")
                raise InputError(f"--{option} without --model", fix="name your own network with --model MODULE:FACTORY")
        return
    for name in ("weights", "type", "delta"):
        if getattr(given, name) is not None:
            raise InputError(
                f"--{name} with --model: it is for the ResNet18 that is converted here, and yours is judged as it is",
                fix="leave it out; the deterministic network is named with --teacher MODULE:FACTORY",
            )


def _run(given: argparse.Namespace, settings: Settings, options: Explicit, say: Progress) -> AuditRun:
    from pytest_bnn.audit.run import audit_model

    checks = None if given.checks is None else [id.strip() for id in given.checks.split(",") if id.strip()]
    if checks == []:
        raise InputError(f"--checks is {given.checks!r}", fix=f"name some of {', '.join(registry.ids())}")
    if given.model is None:
        from pytest_bnn.conversion import Conversion
        from pytest_bnn.example.audit import audit_resnet18
        from pytest_bnn.example.weights import load_teacher

        conversion = Conversion(type=settings.type, moped_delta=settings.delta)  # type: ignore[arg-type]
        say("loading the teacher")
        teacher = load_teacher(settings.weights)
        return audit_resnet18(teacher, conversion, checks=checks, options=options, progress=say)
    from pytest_bnn.data import sources
    from pytest_bnn.data.samples import MAX_EXAMPLES

    say("loading the model")
    max_images = given.images or MAX_EXAMPLES
    with _reading_what_was_named():
        model = sources.load_model(given.model, "--model")
        teacher_network = None if given.teacher is None else sources.load_model(given.teacher, "--teacher")
        data = (
            None
            if given.data is None
            else sources.load_data(given.data, "--data", max_images, seed=settings.seed, dim=given.batch_dim or 0)
        )
        loss = None if given.loss is None else sources.load_loss(given.loss, "--loss")
    return audit_model(
        model,
        teacher=teacher_network,
        data=data,
        loss=loss,
        checks=checks,
        name=given.model,
        stage=given.stage or "auto",
        options=options,
        progress=say,
        max_images=max_images,
        task=given.task or "auto",
        output=given.output,
        batch_dim=given.batch_dim or 0,
    )


@contextmanager
def _reading_what_was_named() -> Iterator[None]:
    """Let whatever a factory or a data set raises be wrong input, an exit too."""
    try:
        yield
    except (PytestBnnError, KeyboardInterrupt):
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise InputError(
            f"reading the model, the teacher, the data and the loss raised {said}",
            fix="make it work in Python first; -v shows the traceback",
        ) from error


def _with_provenance(run: AuditRun, said: dict[str, str]) -> AuditRun:
    from dataclasses import replace

    return replace(run, provenance={**said, **{k: v for k, v in run.provenance.items() if k not in said}})


def _exit_code(run: AuditRun, settings: Settings) -> int:
    from pytest_bnn.records.evidence import Verdict, is_failure

    if run.verdict is Verdict.ERROR:
        return BROKEN
    if is_failure(run.verdict, inconclusive=settings.inconclusive):
        return FAILED
    return NOTHING_APPLIES if run.verdict is Verdict.NOT_APPLICABLE else PASSED


def _show(run: AuditRun, *, verbose: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pytest_bnn.records.codec import clean
    from pytest_bnn.records.evidence import Verdict

    style = {"pass": "green", "warn": "yellow", "fail": "bold red", "error": "bold red", "inconclusive": "magenta"}
    console = Console(highlight=False)
    for subject in dict.fromkeys(check.subject for check in run.checks):
        console.print(Text(subject, style="bold"))
        table = Table(box=None, pad_edge=False, show_edge=False, show_header=False)
        for name in ("verdict", "check", "finding"):
            table.add_column(no_wrap=name != "finding", overflow="fold")
        for check in run.checks:
            if check.subject == subject:
                word = Text(check.verdict.replace("_", " "), style=style.get(check.verdict, "dim"))
                table.add_row(word, check.id, Text(clean(check.headline)))
        console.print(table)
        for sampler in dict.fromkeys(c.sampler for c in run.checks if c.subject == subject and c.sampler):
            console.print(Text(f"passes: {sampler}", style="dim"))
        for trainer in dict.fromkeys(
            s.trainer for r in run.subjects if r.name == subject for s in r.training if s.trainer
        ):
            console.print(Text(f"fine-tuning: {trainer}", style="dim"))
        console.print()
    told = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.WARN)
    for check in run.checks:
        if check.verdict in told or verbose:
            console.print(Text(check.explain()), soft_wrap=True)
            console.print()
    console.print(Text(f"verdict: {run.verdict.replace('_', ' ')}", style=style.get(run.verdict, "bold")))


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("starting") as status:
        yield status.update


def _allowed(texts: list[str]) -> dict[str, str]:
    allowed = {}
    for text in texts:
        pattern, sign, reason = text.partition("=")
        if not (pattern.strip() and sign and reason.strip()):
            raise InputError(f"--allow is {text!r}", fix="give a reason too: --allow 'fc=kept for speed'")
        allowed[pattern.strip()] = reason.strip()
    return allowed


def _reading(read: Callable[[str], T]) -> Callable[[str], T]:
    """Let argparse say what a text should have been."""

    def of_argument(text: str) -> T:
        try:
            return read(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r} is not {read.__doc__}") from None

    return of_argument
