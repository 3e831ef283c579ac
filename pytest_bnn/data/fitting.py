"""How a network takes the user's examples: which of them are inputs, by position or by name, and which are labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pytest_bnn.data.batch import Batch, Inputs
from pytest_bnn.data.joining import LABELS
from pytest_bnn.data.samples import Samples
from pytest_bnn.errors import InputError
from pytest_bnn.network.tree import children, describe, is_inner, leaves

#: Names under which data sets hold labels beside `LABELS`, or inputs where the forward takes them.
_LABELS_ELSE = ("masks", "mask", "gt", "ground_truth", "annotations", "class", "classes")

#: Names under which data sets hold the one tensor that a network takes.
INPUTS = ("pixel_values", "input_values", "input_ids", "images", "image", "img", "imgs", "inputs", "input", "x", "X",
          "features", "data", "samples", "sample", "tokens", "sequence", "audio", "waveform")  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Arranged:
    """The inputs of a network and the labels beside them, a tensor or any tree, None where there are none."""

    inputs: Inputs
    labels: Any


def arranged(samples: Samples, network: nn.Module, accepts: Callable[[Inputs, bool], bool]) -> Arranged:
    """Find out how a network takes examples: by its forward's parameters, and by trying it.

    Args:
        samples: The examples.
        network: Who takes them.
        accepts: Says whether it takes inputs, by calling it; with True, whether it does in two sizes, as most do: with
            one, two examples may be taken for the two parts of a batch.

    Raises:
        InputError: It takes none of the arrangements that are likely; the message has what was found.
    """
    ways = list(_ways(samples, network))
    plain = next((way for way in ways if isinstance(way.inputs, Tensor)), None)
    for sizes in (True, False):
        for way in ways:
            if accepts(way.inputs, sizes):
                return way
    if plain is not None:
        return plain  # its error is the network's own
    raise InputError(
        f"the data give {describe(samples.item)}, and {type(network).__name__}.forward{_signature(network)} takes "
        "it in no way that was tried: by position, by name, or as a whole",
        fix="give (inputs, labels) in the order of the network's arguments, or a dictionary with their names",
    )


def _ways(samples: Samples, network: nn.Module) -> Iterator[Arranged]:
    """Yield the ways in which a network may take examples, the likeliest first."""
    item = samples.item
    if isinstance(item, Tensor):
        yield _way(samples, (item,), {}, None)
    elif isinstance(item, Mapping):
        yield from _of_mapping(samples, network, item, ())
    elif is_inner(item):
        yield from _of_sequence(samples, network, [value for _, value in children(item)])
        yield _way(samples, (item,), {}, None)


def _of_sequence(samples: Samples, network: nn.Module, parts: list[Any]) -> Iterator[Arranged]:
    while parts and parts[-1] is None:
        parts = parts[:-1]
    if not parts:
        return
    first, rest = parts[0], parts[1:]
    labels = rest[0] if len(rest) == 1 else tuple(rest) or None
    if isinstance(first, Mapping):
        yield from _of_mapping(samples, network, first, rest)
        return
    required, most = _positions(network)
    if is_inner(first):
        inner = [value for _, value in children(first)]
        if len(inner) == 1 and not is_inner(inner[0]):
            yield _way(samples, (inner[0],), {}, labels)
        pair = [_way(samples, tuple(inner), {}, labels), _way(samples, (first,), {}, labels)]
        yield from pair if required != 1 else pair[::-1]
        return
    likely = required
    while likely < min(most, len(parts) - 1) and _beside_rows(parts[likely], samples.rows):
        likely += 1  # such as a mask, which the forward does not need
    counts = sorted(range(1, len(parts) + 1), key=lambda count: (count != likely, not required <= count <= most, count))
    for count in counts:
        beside = parts[count:]
        yield _way(samples, tuple(parts[:count]), {}, beside[0] if len(beside) == 1 else tuple(beside) or None)


def _beside_rows(part: Any, rows: int) -> bool:
    """Return whether a tensor may belong to inputs, by having more than one number for each example."""
    return isinstance(part, Tensor) and part.ndim > 1 and len(part) == rows and part.shape[1:].numel() > 1


def _of_mapping(
    samples: Samples, network: nn.Module, item: Mapping[Any, Any], rest: list[Any] | tuple[Any, ...]
) -> Iterator[Arranged]:
    named = {str(key): value for key, value in item.items()}
    accepted, takes_all, needed = _names(network)
    names = (*LABELS, *(name for name in _LABELS_ELSE if name not in accepted))
    label_names = [name for name in names if name in named] if not rest else []
    # A network that computes its own loss takes labels too; they are no input.
    inputs = {name: value for name, value in named.items() if name not in label_names or name in needed}
    given = {name: named[name] for name in label_names if name not in needed}
    labels: Any = rest[0] if len(rest) == 1 else tuple(rest) or None
    if given:
        labels = next(iter(given.values())) if len(given) == 1 else given
    by_name = {name: value for name, value in inputs.items() if name in accepted or (takes_all and _tensor(value))}
    if by_name and needed <= set(by_name):
        yield _way(samples, (), by_name, labels)
    tensors = {name: value for name, value in inputs.items() if _tensor(value)}
    if len(tensors) == 1:
        yield _way(samples, (next(iter(tensors.values())),), {}, labels)
    usual = next((name for name in INPUTS if name in tensors), None)
    if usual is not None and len(tensors) > 1:
        yield _way(samples, (tensors[usual],), {}, labels)
    required, most = _positions(network)
    if 1 < len(tensors) <= most and len(tensors) >= required and not takes_all and not accepted & set(tensors):
        return  # several tensors under names that the forward does not know: their order would be a guess
    yield _way(samples, ({key: value for key, value in item.items() if str(key) not in label_names},), {}, labels)
    yield _way(samples, (item,), {}, labels)


def _way(samples: Samples, arguments: tuple[Any, ...], keywords: Mapping[str, Any], labels: Any) -> Arranged:
    if len(arguments) == 1 and not keywords and isinstance(arguments[0], Tensor) and samples.dim == 0:
        return Arranged(arguments[0], labels)
    return Arranged(Batch(arguments=arguments, keywords=dict(keywords), rows=samples.rows, dim=samples.dim), labels)


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (is_inner(value) and any(isinstance(leaf, Tensor) for _, leaf in leaves(value)))


def _parameters(network: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):
        return [inspect.Parameter("input", inspect.Parameter.POSITIONAL_OR_KEYWORD)]


def _positions(network: nn.Module) -> tuple[int, int]:
    """Return how many positional arguments a forward needs, and how many it takes."""
    positional = [p for p in _parameters(network) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    if any(p.kind is p.VAR_POSITIONAL for p in _parameters(network)):
        return max(1, required), 99
    return max(1, required), len(positional)


def _names(network: nn.Module) -> tuple[set[str], bool, set[str]]:
    """Return the names that a forward takes, whether it takes any, and those that it needs."""
    parameters = _parameters(network)
    known = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return {p.name for p in known}, takes_all, {p.name for p in known if p.default is p.empty}


def _signature(network: nn.Module) -> str:
    return f"({', '.join(parameter.name for parameter in _parameters(network))})"


def fitted(inputs: Any, model: nn.Module) -> Any:
    """Move inputs to the device and, where both are floating point, the dtype of a model."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    if reference is None:
        return inputs
    if isinstance(inputs, Batch):
        return inputs.to(reference.device, reference.dtype)
    dtype = reference.dtype if inputs.is_floating_point() else inputs.dtype
    return inputs.to(device=reference.device, dtype=dtype)
