"""``pytest-bnn audit``: judge a model, write a report."""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.audit import subjects
from pytest_bnn.audit.fields import PARTS
from pytest_bnn.checks import choices, own, registry
from pytest_bnn.checks.choices import choosing
from pytest_bnn.commands import audit_arguments, checkpoints, ci, held, several, terminal, workers
from pytest_bnn.commands.command import USAGE, exit_code_of, on_stderr, reader_may_leave
from pytest_bnn.errors import InputError
from pytest_bnn.options import OPTIONS, Settings, Source, resolve_with_sources, using
from pytest_bnn.reading import DrawnSeed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_bnn.audit.plan import Explicit
    from pytest_bnn.commands.command import Commands
    from pytest_bnn.commands.watching import Say
    from pytest_bnn.many.work import Work
    from pytest_bnn.records.run import AuditRun, Change


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

    start = time.perf_counter()
    folder = Path.cwd()
    project = choices.from_project(folder)
    settings, sources = resolve_with_sources(
        {option.key: getattr(given, option.key) for option in OPTIONS}, prefix="--", preset=project.preset
    )
    _take_old_name_of_report(given)
    allow = subjects.allowed(given.allow, "--allow")
    _require_fitting_options(given)
    chosen = choices.from_preset(settings.preset).and_also(_chosen(given, project))
    if settings.device:
        _require_device(settings, sources)
    if given.checkpoints:
        return checkpoints.run(given, _work(given, settings, sources, chosen, allow), audit_arguments.REPORT)
    require_writable(given.report)
    output = Path(given.report).absolute()  # a factory may change the folder
    baseline = held.baseline_of(given, output)
    if given.ctrf is not None:
        others = {"the report's JSON": output.with_suffix(".json")}
        others |= {"the baseline": baseline.path} if baseline is not None else {}
        outputs.require_writable_json(given.ctrf, "--ctrf", others)
    ctrf = Path(given.ctrf or "").absolute()
    showing = terminal.progress(output.with_suffix(".json"), quiet=given.quiet)
    with using(settings, sources), choosing(chosen), showing as say:
        say("loading torch")
        from pytest_bnn.audit.plan import shorthands
        from pytest_bnn.audit.provenance import provenance
        from pytest_bnn.audit.repeating import repeating

        options = shorthands(given.kl_weight, given.num_batches, allow, given.num_data)
        with contextlib.chdir(Path.cwd()):  # a factory may go elsewhere, and paths are of the folder of the start
            run, left_out = _run(given, settings, options, say, output)
        say("writing the report")
        own = subjects.own_choices(folder, given.subject) if given.subject else ()
        repeat = repeating(["pytest-bnn", "audit"], arguments[1:], prefix="--", own=own)
        said = provenance(
            seed=settings.seed,
            command=["pytest-bnn", *arguments],
            repeat=repeat,
            duration=time.perf_counter() - start,
        )
        run = held.with_known(_with_provenance(run, said, _changed(given)), baseline, settings)
        known = held.known_of(baseline, settings)
    try:
        write_report(run, output)
        if given.ctrf is not None:
            outputs.write_ctrf(run, ctrf, inconclusive=settings.inconclusive, known=known)
    finally:  # whatever becomes of the report, the verdicts are known
        with reader_may_leave():
            terminal.show(run, verbose=given.verbose, quiet=given.quiet)
    with reader_may_leave():
        if not given.quiet:
            drawn = f" (drawn; --seed {settings.seed} repeats it)" if isinstance(settings.seed, DrawnSeed) else ""
            print(f"seed: {settings.seed}{drawn}")
            page = Path(given.report)
            more = "" if given.ctrf is None else f"  CTRF: {given.ctrf}"
            print(f"report: {page}  data: {page.with_suffix('.json')}{more}")
        ci.tell(run, next(iter(given.model), None), inconclusive=settings.inconclusive, known=known)
    for words in left_out:
        on_stderr(f"pytest-bnn: {words}")
    if left_out:
        return USAGE
    if baseline is not None:
        return held.judge(run, baseline, settings)
    return exit_code_of(run.verdict, inconclusive=settings.inconclusive)


def _require_device(settings: Settings, sources: Mapping[str, Source]) -> None:
    """Refuse a device that is not there before anything is loaded."""
    from pytest_bnn.data import placement

    with using(settings, sources):
        placement.chosen()


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
    own.load(folder)
    audit_arguments.read_named(given)
    choices.require_usable(chosen, finally_=True)
    return chosen


def _require_fitting_options(given: argparse.Namespace) -> None:
    """Refuse what would be ignored without a word: options of the one kind of audit in the other."""
    checkpoints.require_fitting(given)
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


def _run(
    given: argparse.Namespace, settings: Settings, options: Explicit, say: Say, report: Path
) -> tuple[AuditRun, tuple[str, ...]]:
    checks = _checks(given)
    if not (given.model or given.subject):
        from pytest_bnn.conversion import Conversion
        from pytest_bnn.data import placement
        from pytest_bnn.data.origin import files_read
        from pytest_bnn.example.audit import audit_resnet18
        from pytest_bnn.example.weights import load_teacher

        conversion = Conversion(type=settings.type, moped_delta=settings.delta)  # type: ignore[arg-type]
        say("loading the teacher")
        with files_read() as read:
            teacher = load_teacher(settings.weights)
        placement.take(teacher.model)
        found = audit_resnet18(teacher, conversion, checks=checks, options=options, progress=say, files=read.digests())
        return found, ()
    described = [subjects.from_options(model, vars(given), "--") for model in dict.fromkeys(given.model)]
    described += subjects.chosen(subjects.from_project(Path.cwd()), given.subject, "--subject") if given.subject else ()
    with workers.of(given) as executor:
        return several.audited(described, checks, options, say, report, executor)


def _checks(given: argparse.Namespace) -> list[str] | None:
    checks = None if given.checks is None else [id.strip() for id in given.checks.split(",") if id.strip()]
    if checks == []:
        raise InputError(f"--checks is {given.checks!r}", fix=f"name some of {', '.join(registry.ids())}")
    return checks


def _work(
    given: argparse.Namespace,
    settings: Settings,
    setting_sources: Mapping[str, Source],
    chosen: choices.Choices,
    allow: Mapping[str, str],
) -> Work:
    from pytest_bnn.audit.named import Named
    from pytest_bnn.audit.plan import shorthands
    from pytest_bnn.many.work import Work

    checks, (model,) = _checks(given), given.model
    described = subjects.from_options(model, vars(given), "--")
    return Work(
        named=Named(**described.parts),
        checks=None if checks is None else tuple(registry.chosen(checks)),
        options=shorthands(given.kl_weight, given.num_batches, allow, given.num_data),
        settings=settings,
        setting_sources=setting_sources,
        choices=chosen.and_also(described.choices),
        plugins=tuple(given.plugin),
        folder=str(Path.cwd()),
    )


def _with_provenance(run: AuditRun, said: dict[str, str], changed: tuple[Change, ...]) -> AuditRun:
    from dataclasses import replace

    more = {name: words for name, words in run.provenance.items() if name not in said or name == "threads"}
    return replace(run, provenance={**said, **more}, changed=tuple(dict.fromkeys((*run.changed, *changed))))


def _changed(given: argparse.Namespace) -> tuple[Change, ...]:
    """Return the options of checks that have options of their own on the command line."""
    from pytest_bnn.audit.plan import shorthands
    from pytest_bnn.checks.changed import changes_by

    given_by = {
        "--allow": shorthands(allow=subjects.allowed(given.allow, "--allow")),
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
