"""``pytest-bnn audit --checkpoints``: one audit a checkpoint, and an index of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.commands import merge
from pytest_bnn.commands.command import on_stderr
from pytest_bnn.errors import InputError
from pytest_bnn.options import using

if TYPE_CHECKING:
    from pytest_bnn.many.work import Job, Work
    from pytest_bnn.records.run import AuditRun

ENGINES = ("processes", "ray")
_INDEX = Path("audits") / "index.html"


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options of many checkpoints to the parser of audits."""
    group = parser.add_argument_group("many checkpoints of that network")
    group.add_argument("--checkpoints", metavar="PATTERN", action="append", default=[],
                       help="files with the state of the network, such as 'runs/*/last.safetensors': each is audited "
                       "by itself, what is done already is not done again, and -o names the index of them (default: "
                       "audits/index.html); may be repeated")  # fmt: skip
    group.add_argument("--engine", choices=ENGINES, default=None,
                       help="where they run: processes of this machine, or Ray (default: processes)")  # fmt: skip
    group.add_argument("--ray-address", metavar="ADDRESS", default=None,
                       help="the Ray cluster, auto for the one of this machine (default: one starts here)")  # fmt: skip


def require_fitting(given: argparse.Namespace) -> None:
    """Refuse what would be ignored without a word."""
    if given.ray_address is not None and given.engine != "ray":
        raise InputError("--ray-address without --engine ray", fix="give both, or neither")
    if given.checkpoints:
        if len(given.model) > 1 or given.subject:
            raise InputError("--checkpoints with several networks", fix="name one with --model, and its checkpoints")
        if not given.model:
            raise InputError("--checkpoints without --model", fix="name the function that makes the network they fit")
        if given.ray_address is not None and given.jobs is not None:
            raise InputError("--jobs with --ray-address", fix="leave it out: the cluster has as many as it has")
        for option, value in (("baseline", given.baseline), ("ctrf", given.ctrf)):
            if value is not None:
                raise InputError(
                    f"--{option} with --checkpoints", fix=f"give --{option} to the audit of one checkpoint"
                )
        return
    if given.engine is not None and given.evaluation_images is None and not given.subject:
        raise InputError("--engine without --checkpoints or --evaluation-images", fix="name what is audited by it")


def run(given: argparse.Namespace, work: Work, default_report: str) -> int:
    """Audit every checkpoint, write a report of each and the index; return the exit code of the worst."""
    from pytest_bnn.data.checkpoints import found
    from pytest_bnn.many.index import audit_into
    from pytest_bnn.records.codec import one_line
    from pytest_bnn.report.files import require_writable

    shown = _INDEX if given.report == default_report else Path(given.report)
    require_writable(shown)
    output = shown.absolute()  # a factory may change the folder
    files = found(given.checkpoints)
    before = 0

    def done(job: Job, run: AuditRun, count: int, of: int) -> None:
        nonlocal before
        if job.earlier:
            before += 1
        elif not given.quiet:
            if before:
                on_stderr(f"{before} of {of} were done before")
                before = 0
            name = one_line(job.name)
            on_stderr(f"{count} of {of}: {name}: {run.verdict.value.replace('_', ' ')}")

    with _executor(given, work.settings.jobs or None) as executor:
        index = audit_into(work, files, output, jobs=work.settings.jobs or 1, executor=executor, done=done)
    if before and not given.quiet:
        on_stderr(f"all {before} were done before")
    with using(work.settings, work.setting_sources):
        return merge.finish(index, shown, quiet=given.quiet)


@contextmanager
def _executor(given: argparse.Namespace, workers: int | None) -> Iterator[Executor | None]:
    if given.engine != "ray":
        yield None
        return
    from pytest_bnn.many.engines import ray_cluster

    with ray_cluster(given.ray_address, workers) as executor:
        yield executor
