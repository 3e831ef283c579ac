"""Calling a network: its outputs as rows of numbers, one for each example, whatever holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_bnn.network.isolation import raised_in
from pytest_bnn.network.tree import describe, is_inner, leaves


class Arguments(Protocol):
    """What a network can be called with, beside a single tensor."""

    @property
    def fields(self) -> tuple[str, ...] | None:
        """The names of the outputs that count; all that have rows when None."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def call(self, network: nn.Module) -> Any:
        """Call a network."""

    def parts(self) -> Sequence[tuple[Arguments, int]]:
        """Return what the network takes at once, each with how many of its first rows count."""


class ForwardError(Exception):
    """A model's own forward raised; the cause is chained."""

    def __init__(self, error: BaseException, place: str = "") -> None:
        first = next(iter(str(error).strip().splitlines()), "")
        super().__init__(f"{type(error).__name__}: {first}" + (f", in {place}" if place else ""))


class NoRowsError(ForwardError):
    """A model ran, and returned nothing that has a row of real numbers for each input."""


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor of an output: its name, empty where the output is that tensor, and the shape of a row."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers a row has."""
        return prod(self.shape)


def output_tensor(output: Any) -> Tensor:
    """Take the logits from what a model returned: a tensor, ``(out, kl)``, or an object or dict with logits."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and "logits" in output:
        return output_tensor(output["logits"])
    if hasattr(output, "logits"):
        return output_tensor(output.logits)
    if isinstance(output, tuple | list) and output:
        return output_tensor(output[0])
    raise TypeError(f"the model returned {type(output).__name__}, not a tensor or (tensor, kl)")


def output_fields(output: Any, rows: int) -> dict[str, Tensor]:
    """Return the tensors of an output that have a row of real numbers for each example, by their place in it.

    Where the first dimension is a multiple of the number of examples, as for tokens that were flattened, each
    example has that many rows. Whole numbers and truth values count where there is nothing else.
    """
    found = {}
    for name, leaf in leaves(_opened(output)):
        if isinstance(leaf, Tensor) and leaf.numel() and leaf.ndim and not leaf.is_complex():
            if len(leaf) == rows:
                found[name] = leaf
            elif rows and len(leaf) % rows == 0:
                found[name] = leaf.unflatten(0, (rows, -1))
            elif leaf.ndim > 2 and leaf.shape[1] == rows:  # time comes first
                found[name] = leaf.transpose(0, 1)
    floating = {name: leaf for name, leaf in found.items() if leaf.is_floating_point()}
    return floating or found


def _opened(output: Any) -> Any:
    """Return the tensors of an object that is no tree, such as a distribution, by the names of its attributes."""
    if isinstance(output, Tensor) or is_inner(output):
        return output
    held = {name: value for name, value in getattr(output, "__dict__", {}).items() if isinstance(value, Tensor)}
    return held or output


def forward(model: nn.Module, inputs: Tensor | Arguments) -> Tensor:
    """Run a model once on a batch, without gradients; return its outputs as rows.

    One tensor is given as it is, ``[N, ...]``; several are flattened and put side by side, ``[N, numbers]``, in the
    order of `layout`.

    Raises:
        ForwardError: The model raised, or returned nothing that has a row of real numbers for each input.
    """
    if isinstance(inputs, Tensor):
        return side_by_side(_fields(model, inputs))
    found = [side_by_side(_fields(model, part))[:kept] for part, kept in inputs.parts()]
    return found[0] if len(found) == 1 else torch.cat(found)


def layout(model: nn.Module, inputs: Tensor | Arguments) -> tuple[Field, ...]:
    """Return the tensors that `forward` gives for such inputs, in their order.

    Raises:
        ForwardError: As in `forward`.
    """
    return look(model, inputs)[0]


def look(model: nn.Module, inputs: Tensor | Arguments) -> tuple[tuple[Field, ...], bool]:
    """Return `layout`, and whether there are other tensors, which would seem to have rows for another number of inputs.

    Raises:
        ForwardError: As in `forward`.
    """
    output, found = _called(model, inputs)
    others = (leaf for _, leaf in leaves(_opened(output)) if isinstance(leaf, Tensor) and leaf.ndim)
    fields = tuple(Field(name, tuple(tensor.shape[1:])) for name, tensor in found.items())
    return fields, sum(1 for _ in others) > len(found)


def side_by_side(fields: dict[str, Tensor]) -> Tensor:
    """Put the rows of several tensors side by side; one alone is given as it is."""
    if len(fields) == 1:
        return next(iter(fields.values()))
    kind = next(iter(fields.values())).dtype
    for tensor in fields.values():
        kind = torch.promote_types(kind, tensor.dtype)
    return torch.cat([tensor.flatten(1).to(kind) if tensor.ndim > 1 else tensor[:, None].to(kind)
                      for tensor in fields.values()], dim=1)  # fmt: skip


def field_of(outputs: Tensor, fields: tuple[Field, ...], name: str) -> Tensor:
    """Take one tensor out of what `forward` put side by side: ``[..., N, numbers]`` to ``[..., N, *shape]``."""
    if len(fields) == 1:
        return outputs
    start = 0
    for field in fields:
        if field.name == name:
            part: Tensor = outputs[..., start : start + field.size].unflatten(-1, field.shape or (1,))
            return part
        start += field.size
    raise KeyError(name)


def judged_field(outputs: Tensor, fields: tuple[Field, ...], name: str) -> Tensor:
    """Take one tensor where several are side by side, and the whole of outputs that hold no others."""
    together = fields and outputs.shape[-1] == sum(field.size for field in fields)
    return field_of(outputs, fields, name) if together else outputs


def _fields(model: nn.Module, inputs: Tensor | Arguments) -> dict[str, Tensor]:
    return _called(model, inputs)[1]


def _called(model: nn.Module, inputs: Tensor | Arguments) -> tuple[Any, dict[str, Tensor]]:
    rows, wanted = len(inputs), None if isinstance(inputs, Tensor) else inputs.fields
    try:
        with torch.no_grad():
            output = model(inputs) if isinstance(inputs, Tensor) else inputs.call(model)
        found = output_fields(output, rows)
        if wanted is not None:
            # A teacher may give one tensor where the model gives several.
            found = {name: tensor for name, tensor in found.items() if name in wanted} or found
    except (Exception, SystemExit, GeneratorExit) as error:
        raise ForwardError(error, raised_in(model, error)) from error
    if not found:
        told = f"the model returned {_told(output)} for {rows} inputs, and not a row of real numbers for each"
        raise NoRowsError(TypeError(told))
    return output, found


def _told(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a {'complex ' if output.is_complex() else ''}tensor of shape {list(output.shape)}"
    return describe(output)
