"""The map of a model: its layers as the tree of modules that they are in, with what each part has of the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from pytest_bnn.records.run import LayerRow
from pytest_bnn.report.svg import chart, element, titled
from pytest_bnn.report.wording import number, percent, plural

State: TypeAlias = Literal["bayesian", "accepted", "deterministic"]

#: Deeper modules are not set in any further.
_DEEPEST = 6

#: How many shades a strip has.
_SHADES = 10

#: Widths of a strip and of a bar.
_STRIP, _BAR = 720.0, 36


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a map: a layer, or a module that holds layers.

    Attributes:
        name: Its path below the module that is shown above it.
        path: Its whole path.
        depth: How far it is set in.
        layer: Its row; None for a module that holds others.
        layers: All layers in it, itself included.
        weights: The weights of these.
        kl_share: Their share of the KL of the model; None where that is not known.
        noise: Their share of the noise; None where none was measured.
    """

    name: str
    path: str
    depth: int
    layer: LayerRow | None
    layers: tuple[LayerRow, ...]
    weights: int
    kl_share: float | None
    noise: float | None

    @property
    def bayesian(self) -> int:
        """How many of its layers are Bayesian."""
        return sum(layer.bayesian for layer in self.layers)


@dataclass(slots=True)
class _Node:
    rows: list[LayerRow] = field(default_factory=list)
    parts: dict[str, _Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Map:
    """A model's layers, ready to be shown."""

    rows: tuple[LayerRow, ...]

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The layers and the modules that hold several of them, in the order of the model."""
        root = _Node()
        for row in self.rows:
            node = root
            for part in row.path.split(".") if row.path else ():
                node = node.parts.setdefault(part, _Node())
            node.rows.append(row)
        found: list[Line] = [self._line("", "", 0, row, (row,)) for row in root.rows]
        for name, node in root.parts.items():
            self._walk(node, name, name, 0, found)
        return tuple(found)

    @cached_property
    def kl(self) -> float | None:
        """The KL of all layers, in nats; None where no layer has one."""
        return _total(layer.kl for layer in self.rows)

    @property
    def noise_known(self) -> bool:
        """Whether the contribution of any layer to the noise was measured."""
        return any(layer.noise is not None for layer in self.rows)

    @property
    def sentence(self) -> str:
        """How many layers are Bayesian, which are accepted, and what they have in all."""
        total = sum(layer.weights for layer in self.rows)
        bayesian = [layer for layer in self.rows if layer.bayesian]
        weights = sum(layer.weights for layer in bayesian)
        told = f"{len(bayesian):,} of {plural(len(self.rows), 'layer')} are Bayesian"
        told += f" ({percent(weights / total)} of {plural(total, 'weight')})" if total else ""
        kept = sum(state(layer) == "accepted" for layer in self.rows)
        bare = len(self.rows) - len(bayesian) - kept
        told += f"; {kept:,} accepted as deterministic" if kept else ""
        told += f"; {bare:,} still deterministic" if bare else ""
        return told + (f". KL {number(self.kl)} nats in all" if self.kl is not None else "")

    def _walk(self, node: _Node, name: str, path: str, depth: int, found: list[Line]) -> None:
        """Add the lines of a module, one that holds a single part together with that part."""
        while not node.rows and len(node.parts) == 1:
            part, node = next(iter(node.parts.items()))
            name, path = f"{name}.{part}", f"{path}.{part}"
        found += [self._line(name, path, depth, row, (row,)) for row in node.rows]
        if not node.parts:
            return
        if not node.rows:
            found.append(self._line(name, path, depth, None, tuple(_layers(node))))
        for part, inner in node.parts.items():
            self._walk(inner, part, f"{path}.{part}", depth + 1, found)

    def _line(self, name: str, path: str, depth: int, row: LayerRow | None, layers: tuple[LayerRow, ...]) -> Line:
        kl = _total(layer.kl for layer in layers)
        known = kl is not None and self.kl is not None and math.isfinite(self.kl) and self.kl > 0
        return Line(
            name=name,
            path=path,
            depth=min(depth, _DEEPEST),
            layer=row,
            layers=layers,
            weights=sum(layer.weights for layer in layers),
            kl_share=kl / self.kl if known and kl is not None and self.kl is not None else None,
            noise=_total(layer.noise for layer in layers),
        )


def state(layer: LayerRow) -> State:
    """Say whether a layer is Bayesian, deterministic on purpose, or deterministic."""
    return "bayesian" if layer.bayesian else "accepted" if layer.accepted else "deterministic"


def signal(layer: LayerRow) -> float | None:
    """Return abs(mu) / sigma of a layer, the inverse of its median of sigma / abs(mu); None where it has none."""
    relative = layer.sigma_over_mu
    if relative is None or math.isnan(relative) or relative < 0:
        return None if relative is None else math.nan
    # The inverse of a number below the least normal one overflows.
    return 1 / relative if relative > 1e-300 else math.inf


def bar(share: float | None) -> str:
    """Return a small bar of a share; "" for none. The number that it shows stands beside it."""
    if share is None or not math.isfinite(share):
        return ""
    width = round(_BAR * min(1.0, max(0.0, share)), 1)
    return element("svg", element("rect", width=width, height=8), class_="m", aria_hidden="true")


def heat(share: float | None) -> str:
    """Return a small field, the darker the larger a share; "" for none. The number stands beside it."""
    if share is None or not math.isfinite(share):
        return ""
    return element("svg", element("rect", class_=f"h{_shade(share)}"), class_="m", aria_hidden="true")


def strip(layers: Sequence[LayerRow], name: str) -> str:
    """Return the noise of all layers as one strip in the order of the model, a field each, the darker the more.

    Layers that were not measured are empty fields; "" where none was.
    """
    known = [layer for layer in layers if layer.noise is not None and math.isfinite(layer.noise)]
    if not known:
        return ""
    width = _STRIP / len(layers)
    fields = []
    for index, layer in enumerate(layers):
        measured = layer.noise is not None and math.isfinite(layer.noise)
        said = percent(layer.noise) if measured else "not measured"
        fields.append(
            titled(
                "rect",
                f"{layer.path or 'the model itself'}: {said}",
                x=round(index * width, 2),
                y=0,
                width=round(max(0.5, width - (1 if width > 4 else 0)), 2),
                height=18,
                class_=f"h{_shade(layer.noise or 0.0)}" if measured else "unmeasured",
            )
        )
    largest = max(known, key=lambda layer: layer.noise or 0.0)
    return chart(
        *fields,
        title=f"Noise of each layer of {name}",
        description=f"The largest share, {percent(largest.noise)}, is that of {largest.path or 'the model itself'}; "
        f"{plural(len(known), 'layer')} of {len(layers):,} measured, in the order of the model.",
        width=_STRIP,
        height=18,
        kind="strip",
        preserveAspectRatio="none",
    )


def _shade(share: float) -> int:
    # By the square root, since one layer of many has a small share.
    return 0 if share <= 0 else max(1, min(_SHADES, math.ceil(_SHADES * math.sqrt(min(1.0, share)))))


def _layers(node: _Node) -> Iterable[LayerRow]:
    yield from node.rows
    for part in node.parts.values():
        yield from _layers(part)


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    # Of huge numbers fsum raises, where a plain sum is infinite.
    return math.fsum(known) if all(abs(value) < 1e300 for value in known) else sum(known)
