"""The README's picture of a report: ``python -m benchmarks.screenshot docs/report.png``.

It runs the audit that the README begins with (a minute or two), or takes one that was made (``--from audit.json``),
renders its page and takes its top in Debian's chromium, by playwright.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

#: Of the picture: as wide as the page's column with its margins, and as high as what decides.
WIDTH, HEIGHT = 1100, 1501


def page(audit: Path | None, folder: Path) -> Path:
    """Write the page of an audit into a folder; make the audit where there is none."""
    from pytest_bnn import cli

    target = folder / "audit.html"
    command = ["audit", "-o", str(target)] if audit is None else ["render", str(audit), "-o", str(target)]
    code = cli.main(command)
    if not target.is_file():
        raise SystemExit(f"pytest-bnn {' '.join(command)} ended with exit code {code} and wrote no page")
    return target


def take(source: Path, picture: Path) -> None:
    """Take the top of a page as a light-coloured PNG."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("there is no chromium: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        sheet = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        sheet.goto(source.as_uri())
        sheet.screenshot(path=picture)
        browser.close()


def main(arguments: list[str] | None = None) -> int:
    """Make or take an audit, and take its picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--from", dest="audit", type=Path, help="an audit.json that was made")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        take(page(given.audit, Path(folder)), given.picture)
    print(given.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
