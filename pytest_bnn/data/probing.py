"""What calling networks on a few examples shows: how they take them, how many at once, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.data.batch import Batch, Inputs
from pytest_bnn.data.fitting import Arranged, arranged, fitted
from pytest_bnn.data.samples import Samples
from pytest_bnn.network.calling import Field, ForwardError, NoRowsError, look
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.tree import leaves

#: Numbers of examples that a network is tried with: tensors whose length follows both have rows.
_FEW, _OTHER = 2, 3


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Probed:
    """How networks take examples.

    Attributes:
        inputs: What they are called with.
        labels: What is beside it: a tensor, any tree, or None.
        places: Where the inputs lie among the examples, as in `pytest_bnn.network.tree.leaves`.
        fields: The model's outputs; empty where it could not be run.
        notes: What the report should say about it.
        rowless: Why the outputs belong to no example, where they do not.
    """

    inputs: Inputs
    labels: Any
    places: frozenset[str] = frozenset()
    fields: tuple[Field, ...] = ()
    notes: tuple[str, ...] = ()
    rowless: str = ""


def probe(samples: Samples, model: nn.Module, teacher: nn.Module | None, *, seed: int) -> Probed:
    """Find out how networks take examples, by calling them on a few; they are left undisturbed.

    The teacher decides how it is called, where there is one: the model may be broken, which is for the checks to say.

    Raises:
        InputError: No arrangement of the examples was found that the network takes.
    """
    networks = (model,) if teacher is None else (teacher, model)
    sizes = _sizes(samples)

    given = [(name, leaf) for name, leaf in leaves(samples.item) if isinstance(leaf, Tensor)]

    def accepts(inputs: Inputs, two_sizes: bool) -> bool:
        if two_sizes and samples.rows >= _OTHER:
            return all(_run(networks[0], inputs, size, seed).fields for size in (_FEW, _OTHER))
        return any(_run(networks[0], inputs, size, seed).fields for size in sizes)

    way = _only_way(samples) or arranged(samples, networks[0], accepts)
    inputs, notes, rowless = way.inputs, [], []
    fields: tuple[Field, ...] = ()
    filtered = False
    for network in networks:
        role = "model" if network is model else "teacher"
        ran = _tried(network, inputs, sizes, seed)
        filtered |= ran.others
        if isinstance(ran.error, NoRowsError):
            rowless.append(str(ran.error))
        if ran.size:
            inputs = replace(_batch(inputs), size=ran.size)
            notes.append(f"the {role} takes {ran.size} examples at once and no other number: it was given so many")
        if ran.writes:
            inputs = replace(_batch(inputs), copies=True)
            notes.append(
                f"the forward of the {role} ({type(network).__name__}) writes to its input in place: it got copies"
            )
        if network is model or not fields:
            fields = ran.fields or fields
    filtered |= bool(fields) and fields[0].name not in ("", "0", "logits")  # what one takes without looking
    if filtered:
        inputs = replace(_batch(inputs), fields=tuple(field.name for field in fields))
    return Probed(
        inputs=inputs,
        labels=way.labels,
        places=frozenset(name for name, leaf in given if any(leaf is tensor for tensor in _tensors(way.inputs))),
        fields=fields,
        notes=tuple(notes),
        rowless=rowless[0] if len(rowless) == len(networks) else "",
    )


def _only_way(samples: Samples) -> Arranged | None:
    """Return the arrangement where there is no choice: a tensor, as most data are."""
    if isinstance(samples.item, Tensor) and samples.dim == 0:
        return Arranged(samples.item, None)
    return None


def _batch(inputs: Inputs) -> Batch:
    return inputs if isinstance(inputs, Batch) else Batch.of(inputs)


def _sizes(samples: Samples) -> list[int]:
    """Return the numbers of examples to try: a few, the loader's own, all."""
    wanted = (min(_FEW, samples.rows), samples.batch_rows, samples.rows)
    return list(dict.fromkeys(size for size in wanted if size and size <= samples.rows))


@dataclass(frozen=True, slots=True)
class _Ran:
    """What a call showed: the outputs, none where it raised; whether other tensors came too, and whether it wrote.

    ``size`` is the number of examples that the network takes at once, where it takes no other, and else 0.
    """

    fields: tuple[Field, ...] = ()
    others: bool = False
    writes: bool = False
    error: ForwardError | None = None
    size: int = 0


def _tried(network: nn.Module, inputs: Inputs, sizes: list[int], seed: int) -> _Ran:
    """Return what the first size that a network takes showed, or else the first error."""
    first: _Ran | None = None
    for size in sizes:
        ran = _run(network, inputs, size, seed)
        if ran.fields:
            if size == _FEW and len(inputs) >= _OTHER:
                return _twice(ran, _run(network, inputs, _OTHER, seed))
            alone = size != sizes[0]  # the others failed
            return replace(ran, size=size if alone else 0, others=ran.others or len(ran.fields) > 1)
        first = first or ran
    return first or _Ran()


def _twice(few: _Ran, other: _Ran) -> _Ran:
    """Return what calls with two and with three examples showed together."""
    # A tensor of another kind may have just as many entries by chance.
    fields = tuple(field for field in few.fields if field in other.fields) or few.fields
    only = bool(other.error) and not isinstance(other.error, NoRowsError)
    others = few.others or len(few.fields) > 1
    return replace(few, fields=fields, others=others, writes=few.writes or other.writes, size=_FEW if only else 0)


def _run(network: nn.Module, inputs: Inputs, size: int, seed: int) -> _Ran:
    few = fitted(inputs[torch.arange(size)], network)
    # Copies: the forward may write to them.
    few = replace(few, size=None).copied() if isinstance(few, Batch) else few.clone()
    before = list(_versions(few))
    try:
        with undisturbed(network, seed=seed):
            found, others = look(network, few)
    except ForwardError as error:
        return _Ran(error=error)
    return _Ran(found, others, list(_versions(few)) != before)


def _versions(inputs: Inputs) -> Iterator[int]:
    for tensor in _tensors(inputs):
        yield tensor._version


def _tensors(inputs: Inputs) -> list[Tensor]:
    return inputs.tensors if isinstance(inputs, Batch) else [inputs]
