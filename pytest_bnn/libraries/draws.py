"""Every draw of normal noise inside some modules, whatever call makes it: watched, or replaced by a constant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: The calls of torch that draw normal noise; distributions come down to one of them.
_STANDARD = frozenset({"randn", "randn_like"})
_SCALED = frozenset({"normal_", "normal"})


class Draws(TorchFunctionMode):
    """Sees draws of normal noise and, given a value, makes each standardised draw that value.

    Attributes:
        seen: How many draws there were.
        where: Says where a draw is made, when asked at that moment.
        drawn: Where there were any.
        cut: Where ``torch.normal(mean, std)`` drew for tensors in a graph, to which no gradient comes from there.
    """

    def __init__(
        self, value: float | None, *, where: Callable[[], str] = lambda: "", into: frozenset[int] | None = None
    ) -> None:
        super().__init__()
        self.value = value
        self.into = into
        self.seen = 0
        self.where = where
        self.cut: set[str] = set()
        self.drawn: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if not (name in _SCALED or name in _STANDARD) or not isinstance(result, Tensor):
            return result
        if self.into is not None and result.data_ptr() not in self.into:
            return result
        mean, std = (0.0, 1.0) if name in _STANDARD else _moments(name, args, kwargs)
        self.seen += 1
        if name == "normal" and any(isinstance(t, Tensor) and t.requires_grad for t in (mean, std)):
            self.cut.add(self.where())
        self.drawn.add(self.where())
        if self.value is not None:
            with torch.no_grad():
                result.copy_(torch.as_tensor(mean + self.value * std))
        return result


def _moments(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    given = args[1:] if name == "normal_" else args
    mean = kwargs.get("mean", given[0] if given else 0.0)
    std = kwargs.get("std", given[1] if len(given) > 1 else 1.0)
    return mean, std


@contextmanager
def within(
    modules: Iterable[nn.Module],
    mode: TorchFunctionMode,
    *,
    enter: Callable[[nn.Module], None] | None = None,
    leave: Callable[[nn.Module, Any], None] | None = None,
) -> Iterator[None]:
    """Have a mode in force while one of some modules runs, and only then.

    Also where activation checkpointing runs it again, in the middle of a backward pass, in which no mode of the
    outside is in force. Registers hooks, around those that the modules have.
    """
    depth = 0
    modules = list(modules)
    own = {id(module) for module in modules}

    def start(module: nn.Module, _inputs: Any) -> None:
        nonlocal depth
        if id(module) not in own:  # a copy that was made inside, with its hooks
            return
        if enter is not None:
            enter(module)
        depth += 1
        if depth == 1:
            mode.__enter__()

    def stop(module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal depth
        if id(module) not in own:
            return
        depth -= 1
        if depth == 0:
            mode.__exit__(None, None, None)
        if leave is not None:
            leave(module, output)

    handles: list[Any] = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(start, prepend=True))
        handles.append(module.register_forward_hook(stop, always_call=True))
    try:
        with eager():
            yield
    finally:
        for handle in handles:
            handle.remove()


def eager() -> AbstractContextManager[object]:
    """Run compiled modules as they were written: compiled code draws where no hook or mode sees it."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def in_backward() -> bool:
    """Return whether a backward pass is running: a module that runs now is run again, by activation checkpointing."""
    return bool(torch._C._current_graph_task_id() != -1)
