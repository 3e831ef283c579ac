"""The first numbers of the noise that each layer drew in a pass, to tell whether another pass drew the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_bnn.libraries.capture import capture
from pytest_bnn.libraries.draws import within
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers

#: Numbers of a tensor that are kept.
HEAD = 256

#: Fewer equal numbers may be chance; of numbers that are too coarse to be compared it takes many, equal to the bit.
_FEWEST, _MANY = 8, 64

#: Of a draw in units of sigma: what rounding may move, and which numbers are too coarse to be compared.
_SLACK, _COARSE = 1e-4, 1e-3


@dataclass(slots=True, eq=False)
class Drawn:
    """The first numbers of each layer's draws in one pass, in units of sigma, with what rounding makes of them."""

    noise: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def repeats(self, other: Drawn) -> list[str]:
        """Return the paths of the layers that drew the same in another pass."""
        return [path for path in self.noise if self._same(other, path)]

    def comparable(self, other: Drawn) -> list[str]:
        """Return the paths of the layers of which this can be judged."""
        return [path for path in self.noise if self._same(other, path) is not None]

    def _same(self, other: Drawn, path: str) -> bool | None:
        compared = 0
        for (one, slack), (two, slack_too) in zip(self.noise[path], other.noise.get(path, []), strict=False):
            if one.shape != two.shape:
                return False
            if len(one) >= _MANY and torch.equal(one, two) and len(one.unique()) > _FEWEST:
                compared += len(one)
                continue
            fine = torch.maximum(slack, slack_too)
            used = (fine <= _COARSE) & torch.isfinite(one) & torch.isfinite(two)
            if bool(((one - two).abs() > _SLACK + 4 * fine)[used].any()):
                return False
            compared += int(used.sum())
        return True if compared >= _FEWEST else None


def drawn(model: nn.Module, run: Callable[[], object], sigmas: dict[tuple[str, str], Tensor]) -> Drawn:
    """Run a model and return what its layers drew; where a call does not reveal it, the layer is left out.

    Args:
        model: What runs.
        run: Runs it.
        sigmas: The first sigmas of each tensor, by path and role; filled in where they are missing.
    """
    found = Drawn()
    with capture(model) as calls:
        run()
    for call in calls:
        for tensor, noise in call.noise():
            key = (tensor.path, tensor.role)
            if key not in sigmas:
                sigmas[key] = tensor.sigma.detach().flatten()[:HEAD].double().cpu()
            head = noise.detach().flatten()[:HEAD].double().cpu()
            found.noise.setdefault(tensor.path, []).append(
                (head / sigmas[key], _slack(tensor, about_mu=call.layer.estimator != "Flipout") / sigmas[key])
            )
    return found


def _slack(tensor: PosteriorTensor, *, about_mu: bool) -> Tensor:
    mu = tensor.mu.detach().flatten()[:HEAD].double().cpu().abs()
    return torch.finfo(tensor.mu.dtype).eps * (mu if about_mu else torch.zeros_like(mu))


class Generators(TorchFunctionMode):
    """Sees the generators of their own with which layers draw: by the layer's path, the seed that each started from."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.seeds: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if self.running and isinstance(generator, torch.Generator) and generator is not torch.default_generator:
            self.seeds[self.running[-1]] = generator.initial_seed()
        return func(*args, **kwargs)


def own_generators(model: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Run a model; return the layers with a generator of their own, each with the seed that it started from."""
    mode = Generators()
    paths = {id(layer.module): layer.path for layer in bayesian_layers(model)}
    modules = [layer.module for layer in bayesian_layers(model)]
    with within(
        modules,
        mode,
        enter=lambda module: mode.running.append(paths[id(module)]),
        leave=lambda *_: mode.running.__delitem__(-1),
    ):
        run()
    return mode.seeds
