"""Where two runs part: the outputs of every module, in the order of the calls, and the first that differs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.naming import called

#: Images that suffice to see where outputs part; all modules' outputs are kept for them.
TRACED_IMAGES = 4

#: Allowed difference relative to the largest logit: ten times torch.testing's relative tolerance.
_TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1.3e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 1.6e-1,
}


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a module: where, what, and the first tensor of its output."""

    path: str
    kind: str
    training: bool
    output: Tensor


@dataclass(frozen=True, slots=True)
class Parting:
    """The first module whose output differs, and by how much relative to its largest value."""

    path: str
    kind: str
    training: bool
    difference: float

    def __str__(self) -> str:
        mode = ", in train mode" if self.training else ""
        amount = f"by {self.difference:.2g} of its scale" if self.difference >= 0 else "in shape"
        return f"{called(self.path)} ({self.kind}{mode}), {amount}"


def tolerance(*tensors: Tensor) -> float:
    """Return the relative float tolerance for the coarsest dtype among tensors."""
    return max(_TOLERANCE.get(tensor.dtype, _TOLERANCE[torch.float32]) for tensor in tensors)


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to the largest absolute value of ``one``; NaN counts as infinite.

    Different shapes give -1.
    """
    if one.shape != other.shape:
        return -1.0
    if one.numel() == 0 or torch.equal(one, other):
        return 0.0
    one, other = one.double(), other.to(one.device).double()
    largest = float((one - other).abs().max()) / max(float(one.abs().max()), 1e-300)
    return largest if largest == largest else float("inf")


@contextmanager
def traced(model: nn.Module) -> Iterator[list[Call]]:
    """Collect every module call inside; use within `undisturbed`, which removes the hooks."""
    calls: list[Call] = []

    def hook(path: str, of: nn.Module) -> None:
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            try:
                tensor = output_tensor(output)
            except TypeError:
                return
            calls.append(Call(path, type(module).__name__, module.training, tensor.detach().clone()))

        of.register_forward_hook(keep)

    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
            hook(path, module)
    yield calls


def first_parting(one: list[Call], other: list[Call]) -> Parting | None:
    """Compare the calls of two runs path by path, in order; return the first whose outputs differ."""
    by_path: dict[str, list[Call]] = {}
    for call in other:
        by_path.setdefault(call.path, []).append(call)
    for call in one:
        twins = by_path.get(call.path)
        if not twins:
            continue
        twin = twins.pop(0)
        apart = difference(call.output, twin.output)
        if apart < 0 or apart > tolerance(call.output, twin.output):
            return Parting(call.path, twin.kind, twin.training, apart)
    return None
