"""What a page may do: its content security policy, which names each style and script by its hash, and its footer."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

from pytest_bnn.records.run import AuditRun
from pytest_bnn.report.svg import shorten
from pytest_bnn.report.wording import clean

_PLAIN = re.compile(r"[A-Za-z0-9 .,:;()_-]")


def policy(styles: Iterable[str], scripts: Iterable[str]) -> str:
    """Return a policy under which nothing is loaded, and nothing runs or styles but what is given here.

    Args:
        styles: The texts of the style elements.
        scripts: The texts of the script elements.
    """
    none = "'none'"
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {' '.join(map(_hash, styles)) or none}",
            f"script-src {' '.join(map(_hash, scripts)) or none}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def footer(run: AuditRun, text: str) -> str:
    """Return the style of the foot of printed pages: title, date, digest of the audit's JSON, and page number.

    Args:
        run: What was found.
        text: Its JSON.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    created = shorten(clean(run.provenance.get("created", "")), 40)
    return foot(run.title, ", ".join(part for part in (created, f"SHA-256 of the JSON {digest[:16]}") if part))


def foot(title: str, said: str = "") -> str:
    """Return the style of the foot of printed pages: a title, what is said beside it, and the page number."""
    return (
        "@page {"
        f' @bottom-left {{ content: "{_string(shorten(clean(title), 60))}"; }}'
        f' @bottom-center {{ content: "{_string(said)}"; }}'
        ' @bottom-right { content: "page " counter(page) " of " counter(pages); }'
        " }\n"
    )


def _string(content: str) -> str:
    """Write untrusted text as the inside of a CSS string: whatever is not plain by its number."""
    return "".join(part if _PLAIN.fullmatch(part) else f"\\{ord(part):06x}" for part in content)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
