"""``pytest-bnn audit``: judge a model, write a report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.checks import choices, registry
from pytest_bnn.checks.choices import choosing
from pytest_bnn.commands import audit_arguments, terminal
from pytest_bnn.commands.command import BROKEN, FAILED, NOTHING_APPLIES, PASSED
from pytest_bnn.errors import InputError, PytestBnnError
from pytest_bnn.options import OPTIONS, DrawnSeed, Settings, resolve_with_sources, using

if TYPE_CHECKING:
    from pytest_bnn.audit.plan import Explicit
    from pytest_bnn.audit.run import Progress
    from pytest_bnn.commands.command import Commands
    from pytest_bnn.records.run import AuditRun


def add(commands: Commands) -> None:
    """Add the command."""
    audit_arguments.add_to(commands).set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the audit; return the exit code of its verdict."""
    with registry.kept():
        return _audit(given, given.command_line)


def _audit(given: argparse.Namespace, arguments: list[str]) -> int:
    from pytest_bnn.report.files import require_writable, write_report

    settings, sources = resolve_with_sources(
        {option.key: getattr(given, option.key) for option in OPTIONS}, prefix="--"
    )
    _take_old_name_of_report(given)
    allow = _allowed(given.allow)
    require_writable(given.report)
    output = Path(given.report).absolute()  # a factory may change the folder
    _require_fitting_options(given)
    chosen = _chosen(given)
    with using(settings, sources), choosing(chosen), terminal.progress() as say:
        say("loading torch")
        from pytest_bnn.audit.plan import shorthands
        from pytest_bnn.audit.provenance import provenance

        run = _run(given, settings, shorthands(given.kl_weight, given.num_batches, allow, given.num_data), say)
        run = _with_provenance(run, provenance(seed=settings.seed, command=["pytest-bnn", *arguments]))
    try:
        write_report(run, output)
    finally:  # whatever becomes of the report, the verdicts are known
        terminal.show(run, verbose=given.verbose)
    if isinstance(settings.seed, DrawnSeed):
        print(f"seed {settings.seed} was drawn; --seed {settings.seed} repeats this audit")
    print(f"report: {given.report}  data: {Path(given.report).with_suffix('.json')}")
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
    from pytest_bnn.data.origin import Origin, files_read, named

    checks = None if given.checks is None else [id.strip() for id in given.checks.split(",") if id.strip()]
    if checks == []:
        raise InputError(f"--checks is {given.checks!r}", fix=f"name some of {', '.join(registry.ids())}")
    if given.model is None:
        from pytest_bnn.conversion import Conversion
        from pytest_bnn.example.audit import audit_resnet18
        from pytest_bnn.example.weights import load_teacher

        conversion = Conversion(type=settings.type, moped_delta=settings.delta)  # type: ignore[arg-type]
        say("loading the teacher")
        with files_read() as read:
            teacher = load_teacher(settings.weights)
        return audit_resnet18(teacher, conversion, checks=checks, options=options, progress=say, files=read.digests())
    from pytest_bnn.data import sources
    from pytest_bnn.data.samples import MAX_EXAMPLES

    say("loading the model")
    max_images = given.images or MAX_EXAMPLES
    start = Path.cwd()
    with _reading_what_was_named(), files_read() as read:
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
    roles = ("model", "teacher", "data", "evaluation", "ood", "shifts", "slices", "loss")
    sources_named = {role: named(name, start) for role in roles if (name := getattr(given, role)) is not None}
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
        origin=Origin(sources=sources_named, files=read.digests()),
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


def _allowed(texts: list[str]) -> dict[str, str]:
    allowed = {}
    for text in texts:
        pattern, sign, reason = text.partition("=")
        if not (pattern.strip() and sign and reason.strip()):
            raise InputError(f"--allow is {text!r}", fix="give a reason too: --allow 'fc=kept for speed'")
        allowed[pattern.strip()] = reason.strip()
    return allowed
