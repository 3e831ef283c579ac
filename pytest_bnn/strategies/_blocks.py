"""Blocks of several layers: what networks have beside chains."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod
from textwrap import indent
from typing import Any

from hypothesis import strategies as st

from pytest_bnn.strategies import _layers
from pytest_bnn.strategies._layers import Draw, Piece
from pytest_bnn.strategies._parts import definition
from pytest_bnn.strategies._source import Shape

#: Blocks that convert as they are, by a converter that goes from layer to layer.
PLAIN_BLOCKS = ("nested", "module list", "residual", "dense", "branches", "owner", "slot")
#: Blocks that ask more of a converter.
ODD_BLOCKS = ("shared", "parametrized", "subclass", "namesake", "LoRA", "reference", "attention")

_PARAMETRIC = ("Linear", "Conv", "ConvTranspose", "LSTM")


@dataclass
class Sketch:
    """A network while it is drawn."""

    draw: Draw[Any]
    kinds: Collection[str]
    blocks: tuple[str, ...]
    most: int
    statements: list[str] = field(default_factory=list)
    definitions: dict[str, str] = field(default_factory=dict)

    def chain(
        self, shape: Shape, lengths: tuple[int, int], *, depth: int = 0, parametric: bool = False
    ) -> tuple[list[str], Shape]:
        """Draw layers or blocks, one after the other; ``parametric`` makes the first one own weights.

        All lengths, from the least (at least 1) to the most, are equally likely.
        """
        found: tuple[list[str], Shape] = self.draw(_chain(self, shape, lengths, depth, parametric))
        return found

    def item(self, shape: Shape, depth: int, *, parametric: bool) -> tuple[str, Shape]:
        """Draw one layer or block."""
        block = self.draw(st.sampled_from(("layer", *self.blocks))) if self.blocks and depth < 2 else "layer"
        if block != "layer":
            return getattr(self, "_" + block.replace(" ", "_").lower())(shape, depth, parametric)  # type: ignore[no-any-return]
        return self.layer(shape, parametric=parametric)

    def layer(self, shape: Shape, *, parametric: bool = False) -> tuple[str, Shape]:
        """Draw one layer that can take the shape."""
        kinds = _layers.fitting(self.kinds, shape)
        kinds = [kind for kind in kinds if kind in _PARAMETRIC] if parametric else kinds
        if not parametric and len(shape) > 1 and prod(shape) <= 64:
            kinds = [*kinds, "flatten"]
        kind = self.draw(st.sampled_from(kinds)) if kinds else "nothing"
        if kind == "nothing":
            return "nn.Identity()", shape
        if kind == "flatten":
            return "nn.Flatten()", (prod(shape),)
        piece = _layers.piece(self.draw, kind, shape, self.most)
        self.take(piece)
        return piece.code, piece.shape

    def take(self, piece: Piece) -> None:
        """Note what a piece stands on."""
        for text in piece.definitions:
            self.define(text)

    def define(self, text: str) -> bool:
        """Note a class; false where its name already means another one."""
        name = text.partition("(")[0].split()[-1]
        return self.definitions.setdefault(name, text) == text

    def _like(self, shape: Shape, out: int) -> str:
        """Draw a layer that keeps all sizes and gives so many channels or features."""
        kinds = [kind for kind in ("Linear", "Conv") if kind in _layers.fitting(self.kinds, shape)]
        if len(shape) > 1 and out != shape[0]:
            kinds = [kind for kind in kinds if kind == "Conv"]
        if not kinds:
            return "nn.Identity()" if out == shape[0] else ""
        if self.draw(st.sampled_from(kinds)) == "Conv":
            return _layers.conv(self.draw, shape, self.most, out=out, same=True).code
        return _layers.linear(self.draw, shape, self.most, out=out if len(shape) == 1 else shape[-1]).code

    def _wrapped(self, part: str, *codes: str) -> str:
        self.define(definition(part))
        return call(part, *codes)

    def _nested(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        codes, after = self.chain(shape, (1, 2), depth=depth + 1, parametric=parametric)
        return call("nn.Sequential", *codes), after

    def _module_list(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        codes, after = self.chain(shape, (1, 2), depth=depth + 1, parametric=parametric)
        return self._wrapped("Stack", *codes), after

    def _residual(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        codes = [self._like(shape, shape[0])]
        if self.draw(st.booleans()):
            codes += ["nn.ReLU()", self._like(shape, shape[0])]
        return self._wrapped("Residual", *codes), shape

    def _dense(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        more = self.draw(st.integers(1, self.most))
        code = self._like(shape, more)
        if not code:
            return self.layer(shape, parametric=parametric)
        return self._wrapped("Dense", code), (shape[0] + more, *shape[1:])

    def _branches(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        out = self.draw(st.integers(1, self.most))
        codes = [self._like(shape, out) for _ in range(2)]
        if not all(codes):
            return self.layer(shape, parametric=parametric)
        return self._wrapped("Sum", *codes), (out, *shape[1:])

    def _owner(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        code, after = self.layer(shape, parametric=parametric)
        return self._wrapped("Scaled", code), after

    def _slot(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        code, after = self.layer(shape, parametric=parametric)
        return self._wrapped("Slotted", code), after

    def _reference(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        code, after = self.layer(shape, parametric=parametric)
        return self._wrapped("Referring", code), after

    def _lora(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        out = self.draw(st.integers(1, self.most))
        return self._wrapped("LoRA", str(shape[-1]), str(out)), (*shape[:-1], out)

    def _shared(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        name = f"shared{len(self.statements) or ''}"
        code = self._like(shape, shape[0])
        if self.draw(st.booleans()):
            code = f"nn.Sequential({code})"
        self.statements.append(f"{name} = {code}")
        return call("nn.Sequential", name, "nn.Tanh()", name), shape

    def _parametrized(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        code, after = self._named_layer(shape)
        return f"nn.utils.parametrizations.weight_norm({code})", after

    def _subclass(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        code, after = self._named_layer(shape)
        base = code.partition("(")[0].removeprefix("nn.")
        self.define(definition("Doubled", base=base).replace("Doubled", f"Doubled{base}"))
        return code.replace(f"nn.{base}", f"Doubled{base}", 1), after

    def _namesake(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        if self.draw(st.booleans()):
            name = self.draw(st.sampled_from(("Linear", "Conv2d", "LSTM")))
            if self.define(definition("Namesake", base=name)):
                return f"{name}()", shape
        code, after = self._named_layer(shape)
        base = code.partition("(")[0].removeprefix("nn.")
        return code.removeprefix("nn.") if self.define(definition("Named", base=base)) else code, after

    def _named_layer(self, shape: Shape) -> tuple[str, Shape]:
        """Draw a Linear, convolution or transposed convolution."""
        kinds = [kind for kind in _layers.fitting(self.kinds, shape) if kind in _PARAMETRIC and kind != "LSTM"]
        piece = _layers.piece(self.draw, self.draw(st.sampled_from(kinds or ["Linear"])), shape, self.most)
        return piece.code, piece.shape

    def _attention(self, shape: Shape, depth: int, parametric: bool) -> tuple[str, Shape]:
        if len(shape) != 2:
            return self.layer(shape, parametric=parametric)
        heads = self.draw(st.sampled_from([h for h in range(1, shape[-1] + 1) if shape[-1] % h == 0]))
        return self._wrapped("Attention", str(shape[-1]), str(heads)), shape


def call(name: str, *arguments: str) -> str:
    """Write a call, on one line where it is short."""
    line = f"{name}({', '.join(arguments)})"
    if len(line) <= 80 and "\n" not in line:
        return line
    return f"{name}(\n" + indent("".join(f"{argument},\n" for argument in arguments), "    ") + ")"


@st.composite
def _chain(
    draw: Draw[Any], sketch: Sketch, shape: Shape, lengths: tuple[int, int], depth: int, parametric: bool
) -> tuple[list[str], Shape]:
    """Draw one item, then the rest of the chain as a chain: an example shrinks to what begins further on in it."""
    least, most = lengths
    # Before the item: hypothesis then finds a chain of one in the choices that made another kind of network.
    last = least <= 1 and draw(st.integers(0, most - 1)) == 0
    code, shape = sketch.item(shape, depth, parametric=parametric)
    if last:
        return [code], shape
    codes, shape = draw(_chain(sketch, shape, (max(1, least - 1), most - 1), depth, False))
    return [code, *codes], shape
