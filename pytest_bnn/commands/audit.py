"""``pytest-bnn audit``: judge a model, write a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.audit import subjects
from pytest_bnn.audit.fields import PARTS
from pytest_bnn.checks import choices, registry
from pytest_bnn.checks.choices import choosing
from pytest_bnn.commands import audit_arguments, terminal
from pytest_bnn.commands.command import BROKEN, FAILED, NOTHING_APPLIES, PASSED, USAGE
from pytest_bnn.errors import InputError
from pytest_bnn.options import OPTIONS, DrawnSeed, Settings, resolve_with_sources, using

if TYPE_CHECKING:
    from pytest_bnn.audit.plan import Explicit
    from pytest_bnn.audit.run import Progress
    from pytest_bnn.audit.subjects import Described
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
    allow = subjects.allowed(given.allow, "--allow")
    output = Path(given.report)
    require_writable(output)
    _require_fitting_options(given)
    chosen = _chosen(given)
    with using(settings, sources), choosing(chosen), terminal.progress() as say:
        say("loading torch")
        from pytest_bnn.audit.plan import shorthands
        from pytest_bnn.audit.provenance import provenance

        run = _run(given, settings, shorthands(given.kl_weight, given.num_batches, allow, given.num_data), say)
        say("writing the report")
        run = _with_provenance(run, provenance(seed=settings.seed, command=["pytest-bnn", *arguments]))
        page, data = write_report(run, output)
    terminal.show(run, verbose=given.verbose)
    if isinstance(settings.seed, DrawnSeed):
        print(f"seed {settings.seed} was drawn; --seed {settings.seed} repeats this audit")
    print(f"report: {page}  data: {data}")
    for said in run.cut:
        print(f"pytest-bnn: {said}", file=sys.stderr)
    return USAGE if run.cut else _exit_code(run, settings)


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
    fix = "name your own network with --model MODULE:FACTORY"
    fix += "; one of pyproject.toml has it in its table" if given.subject else ""
    for part in PARTS if not given.model else ():
        if getattr(given, part.key) is not None:
            raise InputError(f"--{part.name} without --model", fix=fix)
    if not (given.model or given.subject):
        return
    for name in ("weights", "type", "delta"):
        if getattr(given, name) is not None:
            option = "--model" if given.model else "--subject"
            raise InputError(
                f"--{name} with {option}: it is for the ResNet18 that is converted here, and yours is judged as it is",
                fix="leave it out; the deterministic network is named with --teacher MODULE:FACTORY",
            )


def _run(given: argparse.Namespace, settings: Settings, options: Explicit, say: Progress) -> AuditRun:
    checks = None if given.checks is None else [id.strip() for id in given.checks.split(",") if id.strip()]
    if checks == []:
        raise InputError(f"--checks is {given.checks!r}", fix=f"name some of {', '.join(registry.ids())}")
    if not (given.model or given.subject):
        from pytest_bnn.conversion import Conversion
        from pytest_bnn.example.audit import audit_resnet18
        from pytest_bnn.example.weights import load_teacher

        conversion = Conversion(type=settings.type, moped_delta=settings.delta)  # type: ignore[arg-type]
        say("loading the teacher")
        teacher = load_teacher(settings.weights)
        return audit_resnet18(teacher, conversion, checks=checks, options=options, progress=say)
    described = [subjects.from_options(model, vars(given), "--") for model in dict.fromkeys(given.model)]
    described += subjects.chosen(subjects.from_project(Path.cwd()), given.subject, "--subject") if given.subject else ()
    return _audited(described, checks, options, say)


def _audited(
    described: Sequence[Described], checks: Sequence[str] | None, options: Explicit, say: Progress
) -> AuditRun:
    """Audit networks one after the other, each with its own error rates; one that cannot be audited is left out."""
    from dataclasses import replace

    from pytest_bnn.audit.named import Named, Parts
    from pytest_bnn.data.checkpoints import load_into
    from pytest_bnn.records.run import AuditRun

    runs, names, left_out = [], [], []
    parts: Parts | None = None
    for one in described:
        say(f"loading {one.name}")
        named = Named(**one.parts)
        try:
            choices.require_usable(one.choices, finally_=True)
            with choosing(choices.chosen().and_also(one.choices)):
                if parts is not None and replace(parts.named, model=named.model) == named:
                    parts = parts.with_model(named.model, one.called)
                else:
                    parts = named.load(one.called)
                if one.checkpoint:
                    load_into(parts.model, one.checkpoint)
                model = parts.model if one.checkpoint else None
                found = parts.audit(model=model, name=one.name, checks=checks, options=options, progress=say)
        except InputError as error:
            if len(described) == 1:
                raise
            left_out.append(f"{one.name} was not audited: {error}")
        else:
            runs.append(found)
            names.append(one.name)
    if not runs:
        raise InputError("none of the networks could be audited", fix="; ".join(left_out))
    return replace(AuditRun.merged(runs, provenance=_of_all(runs, names)), cut=tuple(left_out))


def _of_all(runs: Sequence[AuditRun], names: Sequence[str]) -> dict[str, str]:
    """Merge what runs say of themselves; a setting of some of them is told with their names."""
    said = {key: value for run in reversed(runs) for key, value in run.provenance.items()}
    for key in [key for key in said if key.startswith("set ")]:
        values = [run.provenance.get(key) for run in runs]
        if len(set(values)) > 1:
            del said[key]
            said.update({f"{key} ({name})": value for name, value in zip(names, values, strict=True) if value})
    return said


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
