"""``pytest-bnn merge``: one index of audits that were made apart, in a CI matrix or an array of Slurm jobs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.commands.command import BROKEN, FAILED, NOTHING_APPLIES, PASSED
from pytest_bnn.errors import InputError

if TYPE_CHECKING:
    from pytest_bnn.commands.command import Commands
    from pytest_bnn.records.collection import Collection
    from pytest_bnn.records.run import AuditRun

#: The index and its JSON.
INDEX = "index.html"


def add(commands: Commands) -> None:
    """Add the command."""
    merge = commands.add_parser("merge", help="put the JSON of several audits into one index")
    merge.add_argument("audits", metavar="AUDIT.json", nargs="+", help="the JSON files of audits")
    merge.add_argument("-o", "--output", metavar="FILE.html", default=INDEX,
                       help="the index; its JSON goes beside it (default: %(default)s)")  # fmt: skip
    merge.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    merge.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Write the index, and say how the audits ended."""
    from pytest_bnn.records.run import AuditRun
    from pytest_bnn.report.files import require_writable

    output = Path(given.output)
    require_writable(output, "--output")
    index_data = output.with_suffix(".json").resolve()
    audits = []
    for name in dict.fromkeys(given.audits):
        path = Path(name)
        if path.resolve() == index_data:
            continue  # an index that was written before, named by *.json
        try:
            audits.append((path, AuditRun.from_json(path.read_text(encoding="utf-8"))))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{name} cannot be read ({error})", fix="give JSON files of audits") from error
        except InputError as error:
            raise InputError(f"{name}: {error.problem}", fix=error.fix) from error
    if not audits:
        raise InputError("no audit was given", fix="give JSON files of audits beside the index")
    return finish(audits, output)


def finish(audits: list[tuple[Path, AuditRun]], output: Path) -> int:
    """Write the index of audits with its JSON, say how they ended; return the exit code of the worst."""
    from pytest_bnn.records.collection import collect
    from pytest_bnn.report import collection as report

    beside = output.parent.resolve()

    def relative(path: Path) -> str:
        return Path(os.path.relpath(path.resolve(), beside)).as_posix() if path.is_file() else ""

    found = collect((relative(path), relative(path.with_suffix(".html")), run) for path, run in audits)
    output.with_suffix(".json").write_text(found.to_json(), encoding="utf-8")
    output.write_text(report.render(found), encoding="utf-8")
    print(report.sentence(found))
    for row in found.rows[:10]:
        if row.problems:
            print(f"  {row.verdict.value.replace('_', ' '):<12} {row.name}: {', '.join(row.problems)}")
    print(f"index: {output}  data: {output.with_suffix('.json')}")
    return exit_code(found)


def exit_code(found: Collection) -> int:
    """Return the exit code of the worst verdict."""
    from pytest_bnn.options import in_force
    from pytest_bnn.records.evidence import Verdict, is_failure

    if found.verdict is Verdict.ERROR:
        return BROKEN
    if is_failure(found.verdict, inconclusive=in_force().inconclusive):
        return FAILED
    return NOTHING_APPLIES if found.verdict is Verdict.NOT_APPLICABLE else PASSED
