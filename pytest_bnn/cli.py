"""The command ``pytest-bnn``: audit | render | schema. Starts fast: torch loads when an audit begins."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.arguments import USAGE as USAGE
from pytest_bnn.arguments import parser
from pytest_bnn.checks import choices, registry
from pytest_bnn.checks.choices import choosing
from pytest_bnn.errors import InputError, PytestBnnError
from pytest_bnn.options import OPTIONS, DrawnSeed, Settings, resolve_with_sources, using

if TYPE_CHECKING:
    from pytest_bnn.audit.plan import Explicit
    from pytest_bnn.audit.run import Progress
    from pytest_bnn.records.run import AuditRun

PASSED, FAILED, BROKEN, NOTHING_APPLIES = range(4)
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        given = parser().parse_args(arguments)
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

        run = _run(given, settings, shorthands(given.kl_weight, given.num_batches, allow, given.num_data), say)
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
        for name in ("teacher", "data", "evaluation", "ood", "shifts", "slices", "loss", "images", "stage", "task",
                     "output", "batch_dim"):  # fmt: skip
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
        model, factory = sources.load_model_and_factory(given.model, "--model")
        teacher_network = None if given.teacher is None else sources.load_model(given.teacher, "--teacher")
        data, evaluation = (
            None
            if name is None
            else sources.load_data(name, option, max_images, seed=settings.seed, dim=given.batch_dim or 0)
            for name, option in ((given.data, "--data"), (given.evaluation, "--evaluation"))
        )
        ood, shifts = (
            None if name is None else sources.load_named(name, option)
            for name, option in ((given.ood, "--ood"), (given.shifts, "--shifts"))
        )
        slices = None if given.slices is None else sources.load_function(given.slices, "--slices")
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
        factory=factory,
        evaluation=evaluation,
        ood=ood,
        shifts=shifts,
        slices=slices,
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
