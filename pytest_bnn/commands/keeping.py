"""What was found of the shards of large data, kept beside the report until the audit is done."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pytest_bnn.commands.command import on_stderr
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.replacing import UNFINISHED

if TYPE_CHECKING:
    from pytest_bnn.audit.named import Parts
    from pytest_bnn.records.run import AuditRun

#: Lets what is found of large data be kept, where parts have such.
Keep: TypeAlias = "Callable[[Parts], Parts]"


@contextmanager
def beside(report: Path, runs: Sequence[AuditRun]) -> Iterator[Keep]:
    """Give a function that lets the shards of parts be kept in a folder beside the report.

    The folder goes when all claims were judged. Where the audit is ended before, or a claim could not be judged for an
    error, it stays, and the same command goes on behind the shards in it.

    Args:
        report: The file of the report.
        runs: The audits that are done at the end of the block.
    """
    folder = report.with_suffix(".shards")
    used = False

    def keep(parts: Parts) -> Parts:
        from pytest_bnn.data.large import Kept, LargeData

        nonlocal used
        if not isinstance(parts.evaluation, LargeData):
            return parts
        used = True
        return replace(parts, evaluation=parts.evaluation.keeping(Kept(folder=str(folder), key=_key(parts))))

    try:
        yield keep
    except BaseException:
        if used and (count := len(_shards(folder))):
            what = "1 shard that was judged is" if count == 1 else f"{count} shards that were judged are"
            on_stderr(f"pytest-bnn: {what} kept in {folder}: the same command goes on behind")
        raise
    if used and all(check.verdict is not Verdict.ERROR for run in runs for check in run.checks):
        with contextlib.suppress(OSError):
            for file in (*_shards(folder), *folder.glob(UNFINISHED)):
                file.unlink()
            folder.rmdir()  # where nothing of anybody else's is in it


def _shards(folder: Path) -> list[Path]:
    from pytest_bnn.checks._kept import SUFFIX

    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def _key(parts: Parts) -> str:
    """Return a digest of all that the predictions depend on beside the examples of a shard."""
    from pytest_bnn.checks import choices
    from pytest_bnn.data.digests import of_state
    from pytest_bnn.many import key
    from pytest_bnn.options import in_force

    said = key.digests(
        parts, checks=None, options={}, settings=in_force(), choices=choices.chosen(), plugins=(), folder=Path.cwd()
    )
    return hashlib.sha256(json.dumps([said, of_state(parts.model.state_dict())]).encode()).hexdigest()
