"""The functional calls (``F.conv2d``, ``F.linear``) that a forward comes down to, with the tensors that they use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

#: The functional calls that take an input, a weight and a bias.
NAMES = frozenset(["linear", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3))])


@dataclass(frozen=True, slots=True, eq=False)
class FunctionalCall:
    """One call such as ``F.conv2d(input, weight, bias, *rest, **keywords)``; the tensors are those used, not copies."""

    function: Any
    input_size: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None
    rest: tuple[Any, ...]
    keywords: dict[str, Any]

    @classmethod
    def of(cls, function: Any, args: Any, kwargs: dict[str, Any]) -> FunctionalCall:
        """Read a call's arguments."""
        rest = {key: value for key, value in kwargs.items() if key not in ("input", "weight", "bias")}
        size = tuple((args[0] if args else kwargs["input"]).shape)
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        return cls(function, size, weight, bias, tuple(args[3:]), rest)


class Functional(TorchFunctionMode):
    """Collects the functional calls in ``seen``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[FunctionalCall] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in NAMES:
            self.seen.append(FunctionalCall.of(func, args, kwargs))
        return func(*args, **kwargs)
