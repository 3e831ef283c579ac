"""The index of many audits with its files, and the whole way to it in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from pytest_bnn.audit.named import Named
from pytest_bnn.audit.plan import shorthands
from pytest_bnn.checks import registry
from pytest_bnn.checks.choices import chosen
from pytest_bnn.data import checkpoints as files
from pytest_bnn.errors import InputError
from pytest_bnn.many.series import Done, audit_series
from pytest_bnn.many.work import Work
from pytest_bnn.options import in_force, sources_in_force
from pytest_bnn.records.collection import Collection, collect
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import collection as page
from pytest_bnn.report import render_html
from pytest_bnn.report.files import write_texts

#: The parts of an audit that `audit_many` takes by name or as a function of a module.
_PARTS = ("teacher", "data", "evaluation", "ood", "shifts", "slices", "loss")


def audit_many(
    model: str | Callable[[], Any],
    checkpoints: Iterable[str | Path],
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
        checkpoints: Files, or patterns of them such as ``"runs/*/last.safetensors"``.
        folder: Where all files go; the index is ``index.html`` and ``index.json``.
        jobs: The number of processes of this machine, with one thread each; 1 is this process.
        executor: Where the audits run in place of these: any executor of plain tasks.
        checks: The ids of the checks to run; all that apply when None.
        options: Options of single checks, as in `audit_model`.
        num_batches: Expect the KL term at one over this.
        kl_weight: Expect the KL term at this weight.
        num_data: Expect the KL term at one over the number of training examples.
        allow: Layers that are deterministic on purpose, by path, with the reason.
        done: Called with each job that is done, its audit, how many are done and how many there are.
        named: ``teacher``, ``data``, ``evaluation``, ``ood``, ``shifts``, ``slices`` and ``loss``, given as the model
            is; ``stage``, ``task``, ``output``, ``images`` and ``batch_dim`` as values.

    Raises:
        InputError: A part cannot be named, imported or used; no checkpoint is called so.
        TypeError: There is no such part.
    """
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
        folder=str(Path.cwd()),
    )
    found = files.found(str(one) for one in checkpoints)
    with registry.kept():
        audits = audit_series(work, found, folder, jobs=jobs, executor=executor, done=done)
    write_pages(audits)
    return write_index(audits, Path(folder) / "index.html")


def write_pages(audits: Iterable[tuple[Path, AuditRun]]) -> None:
    """Write the report of each audit beside its JSON."""
    for path, run in audits:
        write_texts({path.with_suffix(".html"): render_html(run)})


def write_index(audits: Iterable[tuple[Path, AuditRun]], path: Path) -> Collection:
    """Write the index of audits, and its JSON beside it.

    Args:
        audits: Of each the file of its JSON, and the audit.
        path: Of the index; links lead from there to the audits and, where there is one, to the report beside each.
    """
    beside = path.parent.resolve()

    def relative(file: Path) -> str:
        return Path(os.path.relpath(file.resolve(), beside)).as_posix() if file.is_file() else ""

    found = collect((relative(file), relative(file.with_suffix(".html")), run) for file, run in audits)
    write_texts({path.with_suffix(".json"): found.to_json(), path: page.render(found)})
    return found


def _name(part: Any, option: str) -> str:
    """Return ``"MODULE:NAME"`` for a function that other processes can import."""
    if isinstance(part, str):
        return part
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", None)
    if not (module and name) or "<" in name or module == "__main__":
        raise InputError(
            f"{option} is {part!r}, which other processes cannot import",
            fix=f"give a function of a module, or its name: {option}='my_net:{option}'",
        )
    return f"{module}:{name}"
