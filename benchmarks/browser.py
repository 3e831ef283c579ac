"""The browser that looks at reports: Debian's chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync")  # fmt: skip


@contextmanager
def browser() -> Iterator[Any]:
    """Open the browser, and close it again.

    Raises:
        RuntimeError: There is no chromium, or no playwright.
    """
    executable = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        executable = None
    if executable is None:
        raise RuntimeError("this takes chromium and playwright: apt-get install chromium; pip install playwright")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=[*ARGUMENTS])
        yield opened
        opened.close()
