"""What takes the outputs of Bayesian layers: whether a BatchNorm alone does, so that it can be folded into them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.libraries.capture import LayerCall

#: Kinds of BatchNorm that can be folded.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

#: Looking at a tensor's form says nothing about its values.
_FORM = frozenset({"dim", "size", "numel", "is_floating_point", "stride", "is_contiguous", "__get__"})


class Consumers(TorchFunctionMode):
    """Watches what is done with the outputs of Bayesian layers, inside `capture`."""

    def __init__(self, model: nn.Module, calls: list[LayerCall]) -> None:
        super().__init__()
        self._calls = calls
        self.used_by: defaultdict[int, list[str]] = defaultdict(list)
        self.norms: defaultdict[int, list[nn.Module]] = defaultdict(list)
        self._handles = [
            module.register_forward_pre_hook(self._norm) for module in model.modules() if type(module) in NORMS
        ]

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _norm(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs:
            self.norms[id(inputs[0])].append(module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in _FORM:
            outputs = {id(call.output) for call in self._calls}
            for value in _tensors((args, kwargs)):
                if id(value) in outputs:
                    self.used_by[id(value)].append(name)
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
