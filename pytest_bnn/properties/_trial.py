"""One conversion, watched: what went in, what came out, what was said."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.errors import ConversionError
from pytest_bnn.isolation import preserved_random_state, seed_everything, undisturbed
from pytest_bnn.posterior import bayesian_layers, is_bayesian

#: Takes a network and gives the converted one, which may be the network itself.
Converter = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One run of a converter on a copy of a network.

    Attributes:
        convert: The converter.
        network: The network as the caller gave it; it is never handed to the converter.
        x: A batch for it.
        seed: Of the converter's run, and of every forward pass.
        given: The copy that the converter got.
        before: What that copy was before.
        converted: What the converter gave, or None where it raised.
        error: What it raised.
        said: Its warnings: a layer whose path stands there counts as reported.
    """

    convert: Converter
    network: nn.Module
    x: Tensor
    seed: int
    given: nn.Module
    before: Snapshot
    converted: nn.Module | None
    error: Exception | None
    said: tuple[str, ...]

    @property
    def refused(self) -> bool:
        """Whether the converter raised a `ConversionError`."""
        return isinstance(self.error, ConversionError)

    @property
    def in_place(self) -> bool:
        """Whether the converter changed the network that it got instead of making a copy."""
        return self.converted is self.given

    @property
    def result(self) -> nn.Module:
        """The converted network, where there is one."""
        assert self.converted is not None
        return self.converted


def attempt(convert: Converter, network: nn.Module, x: Tensor, *, seed: int = 0) -> Trial:
    """Run a converter on a copy of a network; the random generators are put back afterwards.

    Args:
        convert: Gives the converted network, in place or not.
        network: Deterministic; it stays as it is.
        x: A batch that the network takes.
        seed: Of all that is random.

    Raises:
        TypeError: The network is no module, or the converter gives none.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, not {type(network).__name__}")
    given = copy.deepcopy(network)
    before = Snapshot.of(given)
    converted: nn.Module | None = None
    error: Exception | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            converted = converting(convert, given, seed)
        except Exception as raised:
            error = raised
    if error is None and not isinstance(converted, nn.Module):
        raise TypeError(f"convert must give the converted torch.nn.Module, not {type(converted).__name__}")
    said = tuple(str(warning.message) for warning in caught)
    return Trial(convert, network, x, seed, given, before, converted, error, said)


def converting(convert: Converter, network: nn.Module, seed: int) -> nn.Module:
    """Run the converter from a seed."""
    with preserved_random_state():
        seed_everything(seed)
        return convert(network)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What a network is: its modules and tensors by identity and value, modes, attributes and hooks."""

    modules: dict[str, tuple[nn.Module, type, bool, dict[str, Any], dict[str, int]]]
    tensors: dict[str, tuple[Tensor, Tensor, bool]]

    @staticmethod
    def of(model: nn.Module) -> Snapshot:
        """Take one."""
        modules = {
            path: (module, type(module), module.training, _attributes(module), hooks(module))
            for path, module in model.named_modules(remove_duplicate=False)
        }
        tensors = {
            name: (tensor, tensor.detach().clone(), tensor.requires_grad) for name, tensor in named_tensors(model)
        }
        return Snapshot(modules, tensors)

    def difference(self, model: nn.Module) -> str:
        """Give the first thing that a model no longer is; empty where it is the same."""
        now = Snapshot.of(model)
        if now.modules.keys() != self.modules.keys():
            changed = sorted(now.modules.keys() ^ self.modules.keys())
            return f"the modules changed at {', '.join(repr(path) for path in changed)}"
        for path, (module, kind, training, attributes, registered) in self.modules.items():
            other, other_kind, other_training, other_attributes, other_registered = now.modules[path]
            if other is not module or other_kind is not kind:
                return f"{path or 'the network itself'} was {kind.__name__} and is now another {other_kind.__name__}"
            if other_training != training:
                return f"{path or 'the network itself'} changed its mode: training is {other_training}"
            if other_registered != registered:
                return f"{path or 'the network itself'} has other hooks"
            if other_attributes.keys() != attributes.keys():
                return f"{path or 'the network itself'} has other attributes"
        if now.tensors.keys() != self.tensors.keys():
            return f"tensors changed: {', '.join(sorted(now.tensors.keys() ^ self.tensors.keys()))}"
        for name, (tensor, value, requires_grad) in self.tensors.items():
            now_tensor, _, other_requires = now.tensors[name]
            if now_tensor is not tensor:
                return f"{name} is another tensor"
            if other_requires != requires_grad:
                return f"{name} has requires_grad {other_requires}"
            if not same(now_tensor, value):
                return f"{name} has other values"
        return ""


def hooks(module: nn.Module) -> dict[str, int]:
    """Count the hooks of a module, by kind."""
    return {
        name: len(value)
        for name, value in module.__dict__.items()
        if name.endswith("_hooks") and isinstance(value, dict) and value
    }


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Give parameters and buffers at every path that leads to them."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to the bit, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(torch.nan_to_num(one.detach()), torch.nan_to_num(other.detach()))) and bool(
        torch.equal(one.detach().isnan(), other.detach().isnan())
    )


def convertible(model: nn.Module) -> dict[str, nn.Module]:
    """Give the layers that a converter has to answer for, by every path that leads to them.

    These are Linear, LSTM, convolutions, transposed convolutions, and their subclasses.
    """
    kinds = (nn.Linear, nn.LSTM, nn.modules.conv._ConvNd)
    return {path: m for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, kinds)}


def posterior_paths(model: nn.Module) -> set[str]:
    """Give every path that leads to a Bayesian layer."""
    own = {id(layer.module) for layer in bayesian_layers(model)}
    modules = model.named_modules(remove_duplicate=False)
    return {path for path, module in modules if id(module) in own or is_bayesian(module)}


@contextmanager
def evaluated(*models: nn.Module, seed: int) -> Iterator[None]:
    """Run networks without gradients, with every module in eval mode, and leave them as they were."""
    with undisturbed(*models, seed=seed), torch.no_grad():
        for model in models:
            for module in model.modules():
                module.training = False
        yield


def forward(model: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Run a network from a seed and give all tensors of its output."""
    with evaluated(model, seed=seed):
        return tuple(_tensors(model(x)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _attributes(module: nn.Module) -> dict[str, Any]:
    return dict(module.__dict__)
