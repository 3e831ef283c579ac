"""The index of many audits with its files, and the whole way to it in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import fields
from pathlib import Path
from typing import Any

from pytest_bnn.audit.named import Named
from pytest_bnn.audit.plan import shorthands
from pytest_bnn.checks import registry
from pytest_bnn.checks.choices import chosen
from pytest_bnn.checks.declaration import source_of
from pytest_bnn.data import checkpoints as files
from pytest_bnn.errors import InputError
from pytest_bnn.many import engines
from pytest_bnn.many.series import Done, audit_series, saying_how_far
from pytest_bnn.many.work import Work
from pytest_bnn.network.tree import kind
from pytest_bnn.options import in_force, sources_in_force
from pytest_bnn.records.collection import Collection, Measured, gathered, measured
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import collection as page
from pytest_bnn.report import render_html
from pytest_bnn.report.files import require_writable, write_texts

#: The parts of an audit that `audit_many` takes by name or as a function of a module.
_PARTS = ("teacher", "data", "evaluation", "ood", "shifts", "slices", "loss")


def audit_many(
    model: str | Callable[[], Any],
    checkpoints: str | Path | Iterable[str | Path],
    *,
    folder: str | Path,
    jobs: int = 1,
    executor: Executor | None = None,
    checks: Iterable[str] | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    num_batches: int | None = None,
    kl_weight: float | None = None,
    num_data: int | None = None,
    allow: Mapping[str, str] | None = None,
    done: Done | None = None,
    **named: Any,
) -> Collection:
    """Audit many checkpoints of one network, each by itself; write their JSON and reports, and an index of them.

    What is there already, of the same checkpoint, data and settings, is not done again.

    Args:
        model: The function that makes the network, without arguments: ``"MODULE:FACTORY"`` or the function itself,
            where other processes can import it.
        checkpoints: Files, or patterns of them such as ``"runs/*/last.safetensors"``; one, or several.
        folder: Where all files go, one for each series; the index is ``index.html`` and ``index.json``.
        jobs: The number of processes of this machine, with one thread each; 1 is this process.
        executor: Where the audits run in place of these: any executor of plain tasks. In threads of one process they
            take turns.
        checks: The ids of the checks to run; all that apply when None.
        options: Options of single checks, as in `audit_model`.
        num_batches: Expect the KL term at one over this.
        kl_weight: Expect the KL term at this weight.
        num_data: Expect the KL term at one over the number of training examples.
        allow: Layers that are deterministic on purpose, by path, with the reason.
        done: Called with each job that is done (``earlier`` says whether at an earlier start), its audit, how many are
            done and how many there are.
        named: ``teacher``, ``data``, ``evaluation``, ``ood``, ``shifts``, ``slices`` and ``loss``, given as the model
            is; ``stage``, ``task``, ``output``, ``images``, ``batch_dim``, ``evaluation_images``, ``shard_size`` and
            ``unreadable`` as values, which mean what they mean on the command line.

    Raises:
        InputError: A part cannot be named, imported or used; no checkpoint is called so; the executor forks; a file
            cannot be written, which is known from the start.
        WriteError: A file cannot be written any more, for want of space say; what was done before lies there whole.
        TypeError: There is no such part.
    """
    if unknown := named.keys() - {field.name for field in fields(Named)}:
        raise TypeError(f"audit_many() got an unexpected keyword argument {min(unknown)!r}")
    engines.require_usable(executor)
    parts: dict[str, Any] = {
        name: _name(part, name) if name in _PARTS else part for name, part in named.items() if part is not None
    }
    work = Work(
        named=Named(model=_name(model, "model"), **parts),
        checks=None if checks is None else tuple(registry.chosen(checks)),
        options={**shorthands(kl_weight, num_batches, allow, num_data), **(options or {})},
        settings=in_force(),
        setting_sources=dict(sources_in_force()),
        choices=chosen(),
        plugins=_modules_of(registry.others()),
        folder=str(Path.cwd()),
    )
    several = [checkpoints] if isinstance(checkpoints, str | Path) else checkpoints
    with registry.kept():
        return audit_into(
            work, files.found(several), Path(folder) / "index.html", jobs=jobs, executor=executor, done=done
        )


def audit_into(
    work: Work,
    checkpoints: Iterable[str],
    index: Path,
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    done: Done | None = None,
) -> Collection:
    """Audit checkpoints; write JSON and report of each beside an index, and the index.

    Args:
        work: What they share.
        checkpoints: The files.
        index: Where the index goes.
        jobs: As in `audit_many`.
        executor: As in `audit_many`.
        done: As in `audit_many`.

    Raises:
        InputError: As in `audit_many`.
        WriteError: As in `audit_many`.
    """
    require_writable(index, "the index")
    if jobs < 1:
        raise InputError(f"jobs is {jobs}", fix="give a whole number from 1")

    def keep(path: Path, run: AuditRun, new: bool) -> tuple[Measured, ...]:
        written = path.with_suffix(".html")
        if new or not written.is_file():
            write_texts({written: render_html(run)})
        return measured(path.name, written.name, run)

    found = audit_series(work, checkpoints, index.parent, keep=keep, jobs=jobs, executor=executor, done=done)
    with saying_how_far(found, len(found)):
        return write_index((row for rows in found for row in rows), index)


def rows_of(path: Path, run: AuditRun, index: Path) -> tuple[Measured, ...]:
    """Return what an index has of the audit in a JSON file, with links to it and to the report beside it, if any."""
    beside = index.parent.resolve()

    def relative(file: Path) -> str:
        return Path(os.path.relpath(file.resolve(), beside)).as_posix() if file.is_file() else ""

    return measured(relative(path), relative(path.with_suffix(".html")), run)


def write_index(rows: Iterable[Measured], path: Path) -> Collection:
    """Write an index, and its JSON beside it."""
    found = gathered(rows)
    write_texts({path.with_suffix(".json"): found.to_json()})
    write_texts({path: page.render(found)})
    return found


def _modules_of(checks: Iterable[str]) -> tuple[str, ...]:
    """Return the modules that declare others' checks and that another process can import."""
    where = dict.fromkeys(registry.load(id).declaration.where for id in checks)
    return tuple(module for module in where if module not in ("__main__", "conftest") and source_of(module) is not None)


def _name(part: Any, option: str) -> str:
    """Return ``"MODULE:NAME"`` for a function that other processes can import."""
    if isinstance(part, str):
        return part
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", None)
    if not (module and name) or "<" in name or module == "__main__":
        raise InputError(
            f"{option} is {name or kind(part)}, which other processes cannot import",
            fix=f"give a function of a module, or its name: {option}='my_net:{option}'",
        )
    return f"{module}:{name}"
