"""The files of an audit: the HTML page and, beside it, the JSON that it is a function of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.errors import InputError

if TYPE_CHECKING:
    from pytest_bnn.records.run import AuditRun


def require_writable(path: str | Path, option: str = "the report's path") -> None:
    """Make sure, before an audit takes its time, that its report can be written.

    Args:
        path: Where the HTML will be; the JSON beside it.
        option: How messages call the path.

    Raises:
        InputError: The name does not end in .html, is a folder's, or its folder cannot be made.
    """
    said, path = str(path), Path(path)
    if path.suffix != ".html" or path.is_dir():
        raise InputError(f"{option} is {said!r}", fix="give the path of a file that ends in .html")
    for place in (path, path.with_suffix(".json")):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("a", encoding="utf-8"):
                pass
            if place.stat().st_size == 0:
                place.unlink()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{str(place)!r} cannot be written ({reason})", fix="choose another path") from error


def write_report(run: AuditRun, path: str | Path) -> tuple[Path, Path]:
    """Write a run as ``path`` (HTML) and as JSON beside it; return both paths.

    Raises:
        InputError: As in `require_writable`.
    """
    from pytest_bnn.report import render_html

    page = Path(path)
    require_writable(page)
    data = page.with_suffix(".json")
    text = run.to_json()
    data.write_text(text, encoding="utf-8")
    page.write_text(render_html(run, text), encoding="utf-8")
    return page, data
