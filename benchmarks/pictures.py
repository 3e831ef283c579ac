"""The picture of a report for README and documentation, made by one command.

``python -m benchmarks.pictures`` audits the ResNet18 of the example, as ``pytest-bnn audit`` does, renders its report
and writes the top of it, in light colors, as ``docs/report.png``. ``--from audit.json`` takes an audit of before;
``--all FOLDER`` writes the whole page as well: light, dark, in several widths, in forced colors, and as a PDF.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.browser import browser
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import render_html

PICTURE = Path(__file__).parents[1] / "docs" / "report.png"

#: Of the picture, in pixels of the page.
WIDTH, HEIGHT = 1200, 900

#: Width, scheme and forced colors of the views of ``--all``. Taller ones than so many pixels are cut.
VIEWS = {
    "light": (1200, "light", "none"),
    "dark": (1200, "dark", "none"),
    "forced": (1200, "light", "active"),
    "360": (360, "light", "none"),
    "768": (768, "light", "none"),
    "1600": (1600, "light", "none"),
}
_TALLEST = 8000


def audited() -> AuditRun:
    """Run the audit of the example in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pytest_bnn.cli", "audit"], cwd=folder, check=True)
        return AuditRun.from_json((Path(folder) / "audit.json").read_text(encoding="utf-8"))


def _shot(opened: Any, page: Path, picture: Path, width: int, scheme: str, forced: str, most: int) -> None:
    view = opened.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    view.emulate_media(forced_colors=forced)
    view.goto(page.as_uri())
    height = min(most, view.evaluate("document.documentElement.scrollHeight"))
    view.set_viewport_size({"width": width, "height": height})
    view.screenshot(path=picture)
    view.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="given", type=Path, help="an audit.json, in place of a new audit")
    parser.add_argument("--all", type=Path, help="a folder for the other views")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture (%(default)s)")
    given = parser.parse_args(arguments)
    run = audited() if given.given is None else AuditRun.from_json(given.given.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, browser() as opened:
        page = Path(folder) / "audit.html"
        page.write_text(render_html(run), encoding="utf-8")
        _shot(opened, page, given.out, WIDTH, "light", "none", HEIGHT)
        print(given.out)
        if given.all is not None:
            given.all.mkdir(parents=True, exist_ok=True)
            for name, (width, scheme, forced) in VIEWS.items():
                _shot(opened, page, given.all / f"{name}.png", width, scheme, forced, _TALLEST)
            view = opened.new_page()
            view.goto(page.as_uri())
            view.pdf(path=given.all / "print.pdf", prefer_css_page_size=True, print_background=True)
            print(given.all)


if __name__ == "__main__":
    main()
