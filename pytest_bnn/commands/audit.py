"""``pytest-bnn audit``: judge a model, write a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.checks import choices, registry
from pytest_bnn.checks.choices import choosing
from pytest_bnn.commands import audit_arguments, ci, held, terminal
from pytest_bnn.commands.command import BROKEN, FAILED, NOTHING_APPLIES, PASSED
from pytest_bnn.errors import InputError
from pytest_bnn.options import OPTIONS, DrawnSeed, Settings, resolve_with_sources, using

if TYPE_CHECKING:
    from pytest_bnn.audit.plan import Explicit
    from pytest_bnn.audit.run import Progress
    from pytest_bnn.commands.command import Commands
    from pytest_bnn.records.run import AuditRun, Change


#: What has a default of its own where it is not given.
_NOT_NONE = ("stage", "task", "images", "batch_dim")


def add(commands: Commands) -> None:
    """Add the command."""
    audit_arguments.add_to(commands).set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the audit; return the exit code of its verdict."""
    with registry.kept():
        return _audit(given, given.command_line)


def _audit(given: argparse.Namespace, arguments: list[str]) -> int:
    from pytest_bnn.report import outputs
    from pytest_bnn.report.files import require_writable, write_report

    project = choices.from_project(Path.cwd())
    settings, sources = resolve_with_sources(
        {option.key: getattr(given, option.key) for option in OPTIONS}, prefix="--", preset=project.preset
    )
    _take_old_name_of_report(given)
    allow = _allowed(given.allow)
    output = Path(given.report)
    require_writable(output)
    baseline = held.baseline_of(given, output)
    if given.ctrf is not None:
        outputs.require_writable_json(given.ctrf, "--ctrf")
    _require_fitting_options(given)
    chosen = choices.from_preset(settings.preset).and_also(_chosen(given, project))
    with using(settings, sources), choosing(chosen), terminal.progress() as say:
        say("loading torch")
        from pytest_bnn.audit.plan import shorthands
        from pytest_bnn.audit.provenance import provenance
        from pytest_bnn.audit.repeating import repeating

        run = _run(given, settings, shorthands(given.kl_weight, given.num_batches, allow, given.num_data), say)
        say("writing the report")
        repeat = repeating(["pytest-bnn", "audit"], arguments[1:], prefix="--")
        run = _with_provenance(
            run, provenance(seed=settings.seed, command=["pytest-bnn", *arguments], repeat=repeat), _changed(given)
        )
        page, data = write_report(run, output)
        if given.ctrf is not None:
            outputs.write_ctrf(run, given.ctrf, inconclusive=settings.inconclusive)
    terminal.show(run, verbose=given.verbose)
    if isinstance(settings.seed, DrawnSeed):
        print(f"seed {settings.seed} was drawn; --seed {settings.seed} repeats this audit")
    print(f"report: {page}  data: {data}" + (f"  CTRF: {given.ctrf}" if given.ctrf is not None else ""))
    ci.tell(run, given.model, inconclusive=settings.inconclusive)
    return _exit_code(run, settings) if baseline is None else held.judge(run, baseline, settings)


def _take_old_name_of_report(given: argparse.Namespace) -> None:
    """Take ``--output FILE.html``, which named the report before it named a field of the model's output."""
    if given.output is not None and given.output.endswith((".html", ".htm")):
        given.report, given.output = given.output, None


def _chosen(given: argparse.Namespace, project: choices.Choices) -> choices.Choices:
    """Take the options of checks from --set and pyproject.toml, with the checks of plugins and of conftest.py."""
    folder = Path.cwd()
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
    from pytest_bnn.audit.named import Named

    say("loading the model")
    named = Named(
        model=given.model,
        teacher=given.teacher,
        data=given.data,
        evaluation=given.evaluation,
        ood=given.ood,
        shifts=given.shifts,
        slices=given.slices,
        loss=given.loss,
        output=given.output,
        **{name: value for name in _NOT_NONE if (value := getattr(given, name)) is not None},
    )
    return named.load().audit(checks=checks, options=options, progress=say)


def _with_provenance(run: AuditRun, said: dict[str, str], changed: tuple[Change, ...]) -> AuditRun:
    from dataclasses import replace

    more = {name: words for name, words in run.provenance.items() if name not in said}
    return replace(run, provenance={**said, **more}, changed=(*run.changed, *changed))


def _changed(given: argparse.Namespace) -> tuple[Change, ...]:
    """Return the options of checks that have options of their own on the command line."""
    from pytest_bnn.audit.plan import shorthands
    from pytest_bnn.checks.changed import changes_by

    given_by = {
        "--allow": shorthands(allow=_allowed(given.allow)),
        "--kl-weight": shorthands(kl_weight=given.kl_weight),
        "--num-batches": shorthands(num_batches=given.num_batches),
        "--num-data": shorthands(num_data=given.num_data),
    }
    return tuple(
        change
        for source, options in given_by.items()
        for id, values in options.items()
        for change in changes_by(id, values, source)
    )


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
