"""Looking at a model without disturbing it: whatever runs inside `undisturbed` leaves no trace, also when it raises."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy


@contextmanager
def undisturbed(*models: nn.Module, seed: int, unwritten: Iterable[Tensor] = ()) -> Iterator[None]:
    """Run code on models and leave parameters, buffers, modes, gradients, hooks and random states as they were.

    Inside, every module works on clones of its buffers (so a layer's noise buffers, which a pending backward
    still needs, are not overwritten), hooks registered inside vanish at the end, ``.grad`` is empty, and the
    random generators of torch, numpy and Python start from ``seed``. A model in training mode as a whole is
    switched to eval mode; single submodules left in training mode inside a model in eval mode stay so, since
    that is how the model would be used.

    Python objects deeper than a module's own attributes are beyond its reach.

    Args:
        *models: What is looked at.
        seed: The seed of the random generators inside.
        unwritten: Parameters and buffers that nothing inside writes to: they are neither copied nor compared.
    """
    spared = {id(tensor) for tensor in unwritten}
    modules = _distinct(module for model in models for module in model.modules())
    parameters = _distinct(p for module in modules for p in module._parameters.values() if p is not None)
    # A lazy module becomes one of another class in its first pass.
    saved = [(module, type(module), dict(module.__dict__)) for module in modules]
    # What removes a hook inside, as a lazy module its own, removes it from the dictionary that it was registered in.
    hooks = [(d, d.copy()) for _, _, kept in saved for n, d in kept.items() if n.endswith("_hooks") and d]
    gradients = [(p, p.grad, p.requires_grad) for p in parameters if not is_lazy(p)]
    values = [(p, p.detach().clone()) for p in parameters if id(p) not in spared and not is_lazy(p)]
    with preserved_random_state():
        try:
            _work_on_clones(modules, spared)
            for model in models:
                if getattr(model, "training", False):  # a frozen TorchScript module has no mode
                    for module in model.modules():
                        module.training = False
            for parameter in parameters:
                parameter.grad = None
            seed_everything(seed)
            yield
        finally:
            for module, kind, attributes in saved:
                if type(module) is not kind:
                    module.__class__ = kind
                module.__dict__.clear()
                module.__dict__.update(attributes)
            for dictionary, registered in hooks:
                if len(dictionary) < len(registered):
                    dictionary.clear()
                    dictionary.update(registered)
            for parameter, value in values:
                if not torch.equal(parameter.detach(), value):
                    parameter.data.copy_(value)
            for parameter, gradient, requires_grad in gradients:
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient


def raised_in(model: nn.Module, error: BaseException) -> str:
    """Name the innermost submodule that was running when an exception was raised; empty where none was."""
    paths = {id(m): f"{path} ({type(m).__name__})" for path, m in model.named_modules() if path}
    place, traceback = "", error.__traceback__
    while traceback is not None:
        place = paths.get(id(traceback.tb_frame.f_locals.get("self")), place)
        traceback = traceback.tb_next
    return place


def _work_on_clones(modules: list[nn.Module], spared: set[int]) -> None:
    clones: dict[int, Tensor] = {}

    def clone(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or id(tensor) in spared:
            return tensor
        return clones.setdefault(id(tensor), tensor.detach().clone())

    for module in modules:
        for name, value in list(module.__dict__.items()):
            if name == "_buffers":
                module.__dict__[name] = {key: clone(tensor) for key, tensor in value.items()}
            elif name == "_parameters":
                module.__dict__[name] = {key: _unfilled(parameter) for key, parameter in value.items()}
            elif isinstance(value, dict) and (name == "_modules" or name.endswith("_hooks")):
                module.__dict__[name] = value.copy()


def _unfilled(parameter: Any) -> Any:
    """Return a parameter; of a lazy one, which a pass gives its shape for good, another that is as empty."""
    if parameter is None or not is_lazy(parameter):
        return parameter
    make: Any = UninitializedParameter
    return make(parameter.requires_grad, device=parameter.device, dtype=parameter.dtype)


def _distinct(items: Iterable[Any]) -> list[Any]:
    return list({id(item): item for item in items}.values())


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put the generators of Python, numpy and torch (CPU and CUDA) back where they were."""
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def random_state() -> tuple[object, ...]:
    """Return the state of the generators of `preserved_random_state`: two are equal where nothing was drawn between."""
    numpy = sys.modules.get("numpy")
    numpy_state = () if numpy is None else numpy.random.get_state()
    of_numpy = [part.tobytes() if hasattr(part, "tobytes") else part for part in numpy_state]
    tensors = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors += torch.cuda.get_rng_state_all()
    return random.getstate(), *of_numpy, *(state.numpy().tobytes() for state in tensors)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch; call it inside `preserved_random_state`."""
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(seed % 2**63)
    else:  # a hundred times as fast: the other notes a stack trace for a CUDA that is not there
        torch.default_generator.manual_seed(seed % 2**63)


@contextmanager
def replaced(entries: Iterable[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    """Put values into modules' ``_parameters`` or ``_buffers`` for a while: ``(dictionary, name, value)`` each."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for dictionary, name, value in entries:
            before.append((dictionary, name, dictionary[name]))
            dictionary[name] = value
        yield
    finally:
        for dictionary, name, value in reversed(before):
            dictionary[name] = value
