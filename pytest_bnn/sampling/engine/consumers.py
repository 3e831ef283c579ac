"""What takes the outputs of Bayesian layers: whether a BatchNorm alone does, so that it can be folded into them."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.libraries.posterior import bayesian_layers

#: Kinds of BatchNorm that can be folded.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

#: Looking at a tensor's form says nothing about its values.
_FORM = frozenset({"dim", "size", "numel", "is_floating_point", "stride", "is_contiguous", "__get__"})


class Consumers(TorchFunctionMode):
    """Watches what is done with the outputs of Bayesian layers, inside `capture`; keeps none of them alive.

    Attributes:
        used_by: By the number of a layer's call: the names of the functions that took its output.
        norms: By the number of a layer's call: the BatchNorms that did.
        norm_calls: By the ``id`` of a BatchNorm: how often it ran.
    """

    def __init__(self, model: nn.Module, calls: list[LayerCall]) -> None:
        super().__init__()
        self._outputs: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self.used_by: defaultdict[int, list[str]] = defaultdict(list)
        self.norms: defaultdict[int, list[nn.Module]] = defaultdict(list)
        self.norm_calls: defaultdict[int, int] = defaultdict(int)

        def came(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._outputs[id(output)] = weakref.ref(output), len(calls) - 1

        self._handles = [layer.module.register_forward_hook(came) for layer in bayesian_layers(model)]
        self._handles += [
            module.register_forward_pre_hook(self._norm) for module in model.modules() if type(module) in NORMS
        ]

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _call_of(self, value: Any) -> int | None:
        """Return the number of the call whose output a value is."""
        reference, number = self._outputs.get(id(value), (None, None))
        return number if reference is not None and reference() is value else None

    def _norm(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.norm_calls[id(module)] += 1
        number = self._call_of(inputs[0]) if inputs else None
        if number is not None:
            self.norms[number].append(module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in _FORM:
            for value in _tensors((args, kwargs)):
                number = self._call_of(value)
                if number is not None:
                    self.used_by[number].append(name)
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
