"""The least that inline SVG needs: elements whose attributes and text are escaped by construction."""

from __future__ import annotations

from html import escape

#: The most that a character of a tick's label is wide.
CHARACTER = 7.2


def element(name: str, *children: str, **attributes: str | float) -> str:
    """Return an element. Children are markup that `element` or `text` made; attributes are escaped.

    A trailing underscore leaves a name, other underscores become dashes: ``class_``, ``text_anchor``.
    """
    written = "".join(f' {_name(key)}="{escape(_plain(value))}"' for key, value in attributes.items())
    return f"<{name}{written}>{''.join(children)}</{name}>"


def text(content: str, x: float, y: float, **attributes: str | float) -> str:
    """Return a line of text, escaped."""
    return element("text", escape(content), x=x, y=y, **attributes)


def titled(name: str, title: str, **attributes: str | float) -> str:
    """Return an element with a title, which browsers show on hovering."""
    return element(name, element("title", escape(title)), **attributes)


def chart(
    *children: str, title: str, description: str, width: float, height: float, kind: str, **attributes: str | float
) -> str:
    """Return a chart: an image with a title and a description for who cannot see it."""
    return element(
        "svg",
        element("title", escape(title)),
        element("desc", escape(description)),
        *children,
        role="img",
        class_=f"chart {kind}",
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        width=width,
        height=height,
        **attributes,
    )


def tick_texts(labels: list[str], places: list[float], y: float, width: float) -> list[str]:
    """Return the labels of ticks, each within the width of its chart."""
    parts = []
    for label, x in zip(labels, places, strict=True):
        half = CHARACTER * len(label) / 2
        anchor, at = ("start", 2.0) if x < half + 2 else ("end", width - 2) if x > width - half - 2 else ("middle", x)
        parts.append(text(label, at, y, text_anchor=anchor, class_="tick-text"))
    return parts


def shorten(content: str, most: int) -> str:
    """Cut text that is too long for its place, in the middle, where module paths differ least."""
    content = " ".join(content.split())
    if len(content) <= most:
        return content
    tail = (most - 1) // 2
    return f"{content[: most - 1 - tail]}…{content[-tail:]}"


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}" if abs(value) < 1e5 else f"{value:.0f}"
