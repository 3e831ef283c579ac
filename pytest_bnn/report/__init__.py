"""Turns an `AuditRun` into what people read: one self-contained HTML page, or Markdown for a CI step summary.

Both are pure functions of the run: equal runs give equal bytes. jinja2 loads when a page is rendered, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_bnn.records.run import AuditRun

__all__ = ["headline", "render_html", "render_markdown"]


def render_html(run: AuditRun, text: str = "") -> str:
    """Return the run as one HTML page that needs no network and no other file, and can be read without scripts.

    Every text of the run is escaped, and an image is embedded only when it is a PNG in a base64 data URI. A large run
    gives a short page: what is most severe in full, and of the rest what decides.

    Args:
        run: What was found.
        text: What ``run.to_json()`` gave, where that is known already: printed pages show its digest.
    """
    from pytest_bnn.report import html

    return html.render(run, text or run.to_json())


def render_markdown(run: AuditRun) -> str:
    """Return the run as GitHub-flavored Markdown: verdict, matrix of claims, and the claims that do not hold."""
    from pytest_bnn.report import markdown

    return markdown.render(run)


def headline(run: AuditRun) -> str:
    """Return the verdict in a sentence, the first of the report: ``3 of 12 claims were judged, and hold``."""
    from pytest_bnn.report.outline import outline
    from pytest_bnn.report.top import top

    return top(run, outline(run)).sentence
