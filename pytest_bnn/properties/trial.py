"""One conversion, watched: what went in, what came out, what was said."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.errors import ConversionError
from pytest_bnn.libraries.posterior import zero_sigma
from pytest_bnn.network.isolation import preserved_random_state, raised_in, seed_everything, undisturbed

#: Takes a network and gives the converted one, which may be the network itself.
Converter = Callable[[nn.Module], nn.Module]


class PropertyError(AssertionError):
    """A conversion lacks a property.

    Attributes:
        name: The property's name.
        finding: What was found instead.
        paths: The modules at fault, as far as they can be named; the first is the worst.
    """

    def __init__(self, name: str, finding: str, paths: Sequence[str] = ()) -> None:
        super().__init__(f"{name}: {finding}")
        self.name = name
        self.finding = finding
        self.paths = tuple(paths)


@dataclass(slots=True, eq=False)
class Trial:
    """One run of a converter on a copy of a network; made by `attempt`.

    Attributes:
        convert: The converter.
        network: The network as the caller gave it; it is never handed to the converter.
        x: A batch for it.
        seed: The seed of the converter's run, and of every forward pass.
        given: The copy that the converter got.
        before: What that copy was before.
        converted: What the converter gave, or None where it raised.
        error: What it raised.
        warnings: What it warned of: a layer whose path stands there counts as reported.
    """

    convert: Converter
    network: nn.Module
    x: Tensor
    seed: int
    given: nn.Module
    before: Snapshot
    converted: nn.Module | None
    error: Exception | None
    warnings: tuple[str, ...]
    _expected: tuple[Tensor, ...] | None = field(default=None, init=False)

    @property
    def refused(self) -> bool:
        """Whether the converter raised a `pytest_bnn.ConversionError`."""
        return isinstance(self.error, ConversionError)

    @property
    def in_place(self) -> bool:
        """Whether the converter gave back the network that it got, changed."""
        return self.converted is self.given

    @property
    def result(self) -> nn.Module:
        """The converted network.

        Raises:
            ValueError: There is none, since the converter raised.
        """
        if self.converted is None:
            raise ValueError("the converter raised, so there is no converted network") from self.error
        return self.converted

    def expected(self) -> tuple[Tensor, ...]:
        """Return the teacher's outputs, with every module in eval mode."""
        if self._expected is None:
            self._expected = outputs(self.network, self.x, self.seed)
        return self._expected

    def outputs(self, name: str, *, mean: bool = False) -> tuple[Tensor, ...]:
        """Return the converted network's outputs, with every module in eval mode; where it raises, ``name`` fails."""
        with raising(name, "the converted network's forward", self.result):
            if mean:
                with zero_sigma(self.result):
                    return outputs(self.result, self.x, self.seed)
            return outputs(self.result, self.x, self.seed)


@contextmanager
def raising(name: str, what: str, model: nn.Module | None = None) -> Iterator[None]:
    """Let ``name`` fail where the code inside, which is not ours, raises."""
    try:
        yield
    except Exception as error:
        place = raised_in(model, error) if model is not None else ""
        text = f"{what} raised {type(error).__name__}{f' in {place}' if place else ''}: {first_line(error)}"
        raise PropertyError(name, text, [place.partition(" ")[0]] if place else []) from error


def attempt(convert: Converter, network: nn.Module, x: Tensor, *, seed: int = 0) -> Trial:
    """Run a converter on a copy of a network, and keep what it gave or raised.

    The network stays as it is, whatever the converter does, and so do the global random generators.

    Args:
        convert: Gives the converted network: a new one, or its argument changed in place.
        network: Deterministic.
        x: A batch that the network takes, ``[N, ...]``.
        seed: The seed of all that is random, from 0.

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
            converted = run(convert, given, seed)
        except Exception as raised:
            error = raised
    if error is None and not isinstance(converted, nn.Module):
        raise TypeError(f"convert must give the converted torch.nn.Module, not {type(converted).__name__}")
    said = tuple(str(warning.message) for warning in caught)
    return Trial(convert, network, x, seed, given, before, converted, error, said)


def run(convert: Converter, network: nn.Module, seed: int) -> nn.Module:
    """Run the converter from a seed."""
    with preserved_random_state():
        seed_everything(seed)
        return convert(network)


@contextmanager
def evaluated(*models: nn.Module, seed: int) -> Iterator[None]:
    """Run networks without gradients and with every module in eval mode, from a seed, and leave them as they were.

    Modes are a property of their own; here they would add the noise of dropout to the posterior's.
    """
    with undisturbed(*models, seed=seed), torch.no_grad():
        for model in models:
            for module in model.modules():
                module.training = False
        yield


def outputs(model: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Run a network from a seed and return all tensors of its output."""
    with evaluated(model, seed=seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(_tensors(model(x)))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "logits"):
        yield from _tensors(value.logits)


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says."""
    return next(iter(str(error).strip().splitlines()), "")


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What a network is: its modules and tensors by identity and value, their modes, attributes and hooks."""

    modules: dict[str, tuple[nn.Module, type, bool, frozenset[str], dict[str, int]]]
    tensors: dict[str, tuple[Tensor, Tensor, bool]]

    @staticmethod
    def of(model: nn.Module) -> Snapshot:
        """Take one."""
        modules = {
            path: (module, type(module), module.training, frozenset(module.__dict__), hooks(module))
            for path, module in model.named_modules(remove_duplicate=False)
        }
        tensors = {
            name: (tensor, tensor.detach().clone(), tensor.requires_grad) for name, tensor in named_tensors(model)
        }
        return Snapshot(modules, tensors)

    def difference(self, model: nn.Module) -> tuple[str, str] | None:
        """Return the path and the first thing that a model no longer is; None where it is the same."""
        now = Snapshot.of(model)
        for path, (module, kind, training, attributes, registered) in self.modules.items():
            if path not in now.modules:
                return path, f"{named(path)} is gone"
            other, other_kind, other_training, other_attributes, other_registered = now.modules[path]
            if other is not module or other_kind is not kind:
                return path, f"{named(path)} was a {kind.__name__} and is another module now: a {other_kind.__name__}"
            if other_training != training:
                return path, f"{named(path)} went to {'train' if other_training else 'eval'} mode"
            if other_registered != registered:
                return path, f"{named(path)} has other hooks"
            if changed := sorted(other_attributes ^ attributes):
                return path, f"{named(path)} has other attributes: {', '.join(changed)}"
        if added := sorted(now.modules.keys() - self.modules.keys()):
            return added[0], f"{named(added[0])} is new"
        for name, (tensor, value, requires_grad) in self.tensors.items():
            path = name.rpartition(".")[0]
            if name not in now.tensors or now.tensors[name][0] is not tensor:
                return path, f"{name} is another tensor now"
            if now.tensors[name][2] != requires_grad:
                return path, f"{name} has requires_grad {now.tensors[name][2]} now"
            if not same(tensor, value):
                return path, f"{name} has other values now"
        return None


def named(path: str) -> str:
    """Return a module's name for people."""
    return path or "the network itself"


def hooks(module: nn.Module) -> dict[str, int]:
    """Count the hooks of a module, by kind."""
    return {
        name: len(value)
        for name, value in module.__dict__.items()
        if name.endswith("_hooks") and isinstance(value, dict) and value
    }


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers at every path that leads to them."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal to the bit, NaN included."""
    one, other = one.detach(), other.detach()
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
