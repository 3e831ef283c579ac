"""Which modules a forward pass calls: over all examples, as far as need be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from pytest_bnn.data.batch import Inputs
from pytest_bnn.libraries.posterior import watched_noise
from pytest_bnn.network.calling import ForwardError, forward
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.wrappers import eager

#: Rows of one batch, after the first row alone.
_BATCH = 64

#: Rows that are run one by one, to see whether a network chooses its layers by what it is given.
_SINGLE = 32


@dataclass(slots=True)
class Calls:
    """What was called: in any pass, and in all of them.

    Attributes:
        ever: Paths of the modules that some pass called.
        always: Paths of the modules that every pass called.
        error: Why no pass was seen; empty where one was.
    """

    ever: set[str] = field(default_factory=set)
    always: set[str] | None = None
    error: str = ""


def calls(model: nn.Module, rows: Inputs, wanted: set[str], *, seed: int, single: bool = False) -> Calls:
    """Run a model on its rows, one first and then in batches, until every wanted module was called.

    Args:
        model: What runs; it is left as it was.
        rows: Its inputs.
        wanted: Paths of the modules to wait for.
        seed: The seed of the noise.
        single: Run rows one by one, and do not stop early: what `Calls.always` is for.
    """
    seen = Calls()
    with eager(), undisturbed(model, seed=seed):
        called: set[str] = set()
        hidden = set()
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks, so its calls cannot be seen
                hidden.add(path)
            else:
                module.register_forward_pre_hook(lambda *_, path=path: called.add(path))
        for batch in _single(rows) if single else _growing(rows):
            called.clear()
            try:
                with watched_noise(model) as drawn:
                    forward(model, batch)
            except ForwardError as error:
                seen.error = seen.error or str(error)
                continue
            now = called | drawn | hidden
            seen.ever |= now
            seen.always = now if seen.always is None else seen.always & now
            if not single and wanted <= seen.ever:
                break
    if seen.always is not None:
        seen.error = ""
    return seen


def calls_in_train_mode(model: nn.Module, rows: Inputs, *, seed: int) -> set[str]:
    """Return the paths of the modules that a pass in train mode calls; none where it raises."""
    called: set[str] = set()
    with eager(), undisturbed(model, seed=seed):
        for path, module in model.named_modules():
            module.training = True
            if isinstance(module, torch.jit.ScriptModule):
                called.add(path)
                continue
            module.register_forward_pre_hook(lambda *_, path=path: called.add(path))
        try:
            forward(model, rows[:_BATCH])
        except ForwardError:
            return set()
    return called


def _growing(rows: Inputs) -> Iterator[Inputs]:
    yield rows[:1]
    if len(rows) > 1:
        yield from (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))
    if len(rows) > _BATCH:
        yield rows


def _single(rows: Inputs) -> Iterator[Inputs]:
    yield from (rows[row : row + 1] for row in range(min(_SINGLE, len(rows))))
