"""``pytest-bnn merge``: one index of audits that were made apart, in a CI matrix or an array of Slurm jobs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.commands.command import exit_code_of, reader_may_leave
from pytest_bnn.errors import InputError

if TYPE_CHECKING:
    from pytest_bnn.commands.command import Commands
    from pytest_bnn.records.collection import Collection, Measured
    from pytest_bnn.records.run import AuditRun

#: How many audits that ask something of the reader are told.
_SHOWN = 10
#: The index and its JSON.
INDEX = "index.html"


def add(commands: Commands) -> None:
    """Add the command."""
    merge = commands.add_parser("merge", help="put the JSON of several audits into one index")
    merge.add_argument("audits", metavar="AUDIT.json", nargs="+", help="the JSON files of audits, or of indexes")
    merge.add_argument("-o", "--output", metavar="FILE.html", default=INDEX,
                       help="the index; its JSON goes beside it (default: %(default)s)")  # fmt: skip
    merge.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    merge.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Write the index, and say how the audits ended."""
    from pytest_bnn.many.index import rows_of, write_index
    from pytest_bnn.report.files import require_writable

    output = Path(given.output)
    require_writable(output, "--output")
    own = output.with_suffix(".json").resolve()
    rows: dict[Path, tuple[Measured, ...]] = {}
    for name in given.audits:
        if Path(name).resolve() != own:  # an index that was written before, named by *.json
            for path, run in _read(Path(name)):
                rows[path.resolve()] = rows_of(path, run, output)
    if not rows:
        raise InputError(
            "no audit was given beside the index itself", fix="give JSON files of audits, or of other indexes"
        )
    return finish(write_index(chain(*rows.values()), output), output)


def _read(path: Path) -> Iterator[tuple[Path, AuditRun]]:
    """Yield the audit of a file; of an index all that it is of."""
    from pytest_bnn.records import audits
    from pytest_bnn.records.collection import Collection

    text = audits.text_of(path)
    if '"collection_version"' not in text[:200]:
        yield path, audits.parsed(text, path)
        return
    try:
        rows = Collection.from_json(text).rows
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error.problem}", fix=error.fix) from error
    for audit in dict.fromkeys(row.audit for row in rows):
        yield from _read(path.parent / audit)


def finish(found: Collection, output: Path, *, quiet: bool = False) -> int:
    """Say how the audits of an index ended; return the exit code of the worst."""
    from pytest_bnn.options import in_force

    with reader_may_leave():
        tell(found, quiet=quiet)
        if not quiet:
            print(f"index: {output}  data: {output.with_suffix('.json')}")
    return exit_code_of(found.verdict, inconclusive=in_force().inconclusive)


def tell(found: Collection, *, quiet: bool = False) -> None:
    """Print how the models fared, what they were not all made with, and what was found of the worst."""
    from pytest_bnn.records.codec import one_line
    from pytest_bnn.records.made_with import differing
    from pytest_bnn.report.collection import sentence

    print(sentence(found))
    for words in [] if quiet else differing(found.rows):
        print(one_line(f"  {words}"))
    asking = [] if quiet else [row for row in found.rows if row.problems]
    for row in asking[:_SHOWN]:
        what = f"{', '.join(row.problems)}: {row.headline.removeprefix(f'{row.name} ')}"
        print(one_line(f"  {row.verdict.value.replace('_', ' '):<12} {row.name or 'unnamed'}: {what}"))
    if len(asking) > _SHOWN:
        print(f"  and {len(asking) - _SHOWN} more, in the index")
