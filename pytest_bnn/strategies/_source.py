"""A network and the code that makes it are one thing: every network here is made by running its own source."""

from __future__ import annotations

from typing import Any, cast

from hypothesis.vendor.pretty import RepresentationPrinter, for_type_by_name
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from pytest_bnn.network.isolation import preserved_random_state

Shape = tuple[int, ...]

IMPORTS = "import torch\nfrom torch import nn"

# Modules cannot carry these: a Linear with an attribute of its own is another network to a converter.
_sources: Any = WeakIdKeyDictionary()
_input_shapes: Any = WeakIdKeyDictionary()


def source(example: nn.Module | Tensor) -> str:
    """Return the code that rebuilds a drawn network as ``network``, or the expression of a drawn input.

    The code needs torch alone (and torchvision, for `teachers`). It seeds torch's global generator.

    Raises:
        LookupError: The network or tensor was not drawn here, as is so with copies and conversions.
    """
    if example not in _sources:
        raise LookupError("this object was not drawn by pytest_bnn.strategies; a copy of it has no source")
    return cast("str", _sources[example])


def build(code: str, input_shape: Shape) -> nn.Module:
    """Run code that ends with a ``network``, and remember it."""
    namespace: dict[str, Any] = {"__name__": "network"}
    with preserved_random_state():
        exec(compile(code, "<network>", "exec"), namespace)  # noqa: S102  our own code: the network's repr
    network = namespace["network"]
    assert isinstance(network, nn.Module)
    _sources[network] = code
    _input_shapes[network] = input_shape
    root = type(network)
    if root.__module__ == "network":
        root.__repr__ = _repr  # type: ignore[method-assign]
    return network


def remember(example: Tensor, expression: str) -> None:
    """Let an input be shown as the expression that makes it."""
    _sources[example] = expression


def input_shape(model: nn.Module) -> Shape | None:
    """Return the shape of one input without the batch: of a drawn network, or its attribute ``input_shape``."""
    known = _input_shapes.get(model)
    shape = getattr(model, "input_shape", None) if known is None else known
    return None if shape is None else tuple(shape)


def _repr(self: nn.Module) -> str:
    # The class is shared with copies and conversions, of which the code would be a lie.
    return str(_sources[self]) if self in _sources else nn.Module.__repr__(self)


def _show(example: Any, printer: RepresentationPrinter, cycle: bool) -> None:
    show(_sources.get(example) or repr(example), printer)


def show(text: str, printer: RepresentationPrinter) -> None:
    """Print code as hypothesis prints an example: every line in its place."""
    for index, line in enumerate(text.splitlines()):
        if index:
            printer.break_()
        printer.text(line)


# A single root layer is exactly torch's class, whose repr is not ours to change: hypothesis shows its code.
for_type_by_name("torch.nn.modules.module", "Module", _show)
for_type_by_name("torch", "Tensor", _show)
