"""Networks that share a model's parameters, one for each worker, with the engine's layers in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.sampling.engine.noise import Noise, Scratch, Strided
from pytest_bnn.sampling.engine.plan import LayerPlan, Plan, Unsupported, padded


class Worker:
    """One thread's network and working memory.

    What its layers use depends on what is set before a forward: ``held`` weights that were drawn for the whole
    pass, calls of the model's own forward to repeat, which ``given`` returns by the ``id`` of a layer and the call's
    number, or else noise drawn call by call into a buffer that all layers share. Layers whose path is not in
    ``noisy`` are without noise, where that is not None.
    """

    def __init__(self, model: nn.Module, plan: Plan, noise: Noise) -> None:
        self.plan = plan
        self.noise = noise
        self.index = 0
        self.rows = torch.zeros(1, dtype=torch.int64)
        self.held: dict[tuple[int, int], list[Tensor]] | None = None
        self.given: Callable[[int, int], LayerCall] | None = None
        self.noisy: Collection[str] | None = None
        self.counts: dict[int, int] = {}
        self.pending: Tensor | None = None
        self.scratch = Scratch()
        self._parts = {key: layer.parts(noise.step) for key, layer in plan.layers.items()}
        # The first part is the largest, and a bias is drawn as a whole.
        sizes = [
            padded(layer.weight.size // max(1, layer.weight.shape[0]) * self._parts[key][0].stop)
            + (0 if layer.bias is None else padded(layer.bias.size))
            for key, layer in plan.layers.items()
        ]
        self._buffer = torch.empty(max(sizes, default=0))
        swap: dict[int, nn.Module] = {}
        for layer in plan.layers.values():
            swap[id(layer.layer.module)] = _DrawnLayer(self, layer)
            if layer.norm is not None:
                swap[id(layer.norm)] = _FoldedNorm(self)
        for other in bayesian_layers(model):
            swap.setdefault(id(other.module), UncalledLayer(other.path))
        self.model = replicate(model, swap)

    def start(self, index: int, rows: Tensor) -> None:
        """Get ready for a forward of pass ``index`` on the images with these numbers (int64)."""
        self.index, self.rows = index, rows
        self.counts = {}
        self.pending = None

    def finish(self) -> None:
        """Make sure that the forward used each layer as often as the model's own did.

        Raises:
            Unsupported: It did not.
        """
        self.plan.require_same_calls(self.counts)

    def count(self, key: int) -> int:
        """Return the number of a layer's call within this forward, from 0."""
        call = self.counts.get(key, 0)
        self.counts[key] = call + 1
        return call

    def silences(self, layer: LayerPlan) -> bool:
        """Return whether a layer is to be without noise."""
        return self.noisy is not None and layer.layer.path not in self.noisy

    def parts(self, layer: LayerPlan) -> tuple[slice, ...]:
        """Return the output channels of a layer that are computed one after the other; all where weights are held."""
        found = self._parts[id(layer.layer.module)]
        return found if self.held is None else (slice(0, layer.weight.shape[0]),)

    def weights(self, layer: LayerPlan, call: int, rows: slice) -> list[Tensor]:
        """Return weight and bias (or only the weight) of some output channels for one call of a layer."""
        key = id(layer.layer.module)
        if call >= layer.calls:
            raise Unsupported("its forward does not always call the same layers")
        if self.given is not None:
            used = self.given(key, call).functional[-1]
            values = [used.weight] if used.bias is None else [used.weight, used.bias]
            return [drawn.folded(value.detach(), rows) for drawn, value in zip(layer.drawn, values, strict=True)]
        if self.held is not None:
            return self.held[key, call]
        return self.draw(layer, call, self._buffer, rows)

    def draw(
        self, layer: LayerPlan, call: int, buffer: Tensor | None = None, rows: slice | None = None
    ) -> list[Tensor]:
        """Draw weight and bias of some output channels, or all, for one call of a layer; silent, return their means.

        Into ``buffer``, or memory of their own.
        """
        values, start = [], 0
        for drawn in layer.drawn:
            of_rows = rows if rows is not None and drawn is layer.weight else slice(0, drawn.shape[0])
            mean, spread = drawn.rows(of_rows)
            size = spread.numel()
            memory = torch.empty(size) if buffer is None else buffer[start : start + size]
            value = memory.as_strided(spread.shape, spread.stride())
            start += padded(size)
            if self.silences(layer):
                assert mean is not None
                value = mean.laid_out(value) if isinstance(mean, Strided) else mean
            else:
                stream, place = (
                    drawn.stream + call * self.plan.streams,
                    of_rows.start * (drawn.size // max(1, drawn.shape[0])),
                )
                self.noise.draw(value, mean, spread, stream, self.index, self.scratch, place)
            values.append(value if of_rows is rows or rows is None else value[rows])
        return values

    def signed(self, values: Tensor, layer: LayerPlan, call: int, half: int) -> Tensor:
        """Return values ``[rows, ...]`` times Flipout's random signs, for its input (0) or output (1).

        The signs of a row depend on the number of its image, not on the images beside it.
        """
        if self.given is not None:
            return values * self.given(id(layer.layer.module), call).signs[half]
        stream = layer.weight.stream + 2 + half + call * self.plan.streams
        repeat, rest = divmod(len(values), len(self.rows))
        if rest or values.ndim < 2:
            raise Unsupported(f"{layer.layer.name} takes inputs whose first dimension is not the images")
        rows = (self.rows[:, None] * repeat + torch.arange(repeat)).flatten()
        dense = values if _is_dense(values) else values.contiguous()
        return self.noise.flipped(dense.detach(), rows, stream, self.index, self.scratch)


def _is_dense(values: Tensor) -> bool:
    return values.is_contiguous() or (values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last))


class _DrawnLayer(nn.Module):
    """Stands in for a Bayesian layer of the library."""

    def __init__(self, worker: Worker, plan: LayerPlan) -> None:
        super().__init__()
        self._worker = weakref.ref(worker)  # a cycle would keep all its memory until it is found
        self._plan = plan

    def forward(self, input: Tensor) -> Tensor:
        worker, plan = self._worker(), self._plan
        assert worker is not None
        call = worker.count(id(plan.layer.module))
        input = plan.taken(input)
        out: Tensor
        if not plan.flipout:
            parts = [self._computed(worker, input, call, rows) for rows in worker.parts(plan)]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, 1 - plan.weight.tensor.mu.ndim)
        else:
            out = plan.function(input, plan.mean_weight, plan.mean_bias, *plan.rest, **plan.keywords)
        if plan.flipout and not worker.silences(plan):
            turned = worker.signed(input, plan, call, 0)
            noise = self._computed(worker, turned, call, slice(0, plan.weight.shape[0]))
            out += worker.signed(noise, plan, call, 1)
        if plan.norm is not None:
            worker.pending = out
        return out

    def _computed(self, worker: Worker, input: Tensor, call: int, rows: slice) -> Tensor:
        """Return some output channels, of weights that are drawn for them."""
        plan = self._plan
        weight, *rest = worker.weights(plan, call, rows)
        bias = rest[0] if rest else None if plan.constant_bias is None else plan.constant_bias[rows]
        out: Tensor = plan.function(input, weight, bias, *plan.rest, **plan.keywords)
        return out


class _FoldedNorm(nn.Module):
    """Stands where a BatchNorm was that its layer's weights have taken in."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = weakref.ref(worker)

    def forward(self, input: Tensor) -> Tensor:
        worker = self._worker()
        assert worker is not None
        pending, worker.pending = worker.pending, None
        if pending is not input:
            raise Unsupported("its forward does not always give a layer's output to the same BatchNorm")
        return input


class UncalledLayer(nn.Module):
    """Stands where a Bayesian layer is that the model's own forward did not call."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Raise."""
        raise Unsupported(f"its forward does not always call the same layers: {self._path}")


def replicate(model: nn.Module, swap: dict[int, nn.Module]) -> nn.Module:
    """Return a network of the same modules that shares all parameters, with buffers and containers of its own.

    Args:
        model: The network.
        swap: By ``id`` of a module: what stands in its place.
    """
    made = dict(swap)

    def twin(module: nn.Module) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        new: nn.Module = object.__new__(type(module))
        made[id(module)] = new
        for name, value in module.__dict__.items():
            new.__dict__[name] = value.copy() if type(value) in (dict, list, set) else value
        new.__dict__["_parameters"] = dict(module._parameters)
        new.__dict__["_buffers"] = {
            name: value if value is None else value.detach().clone() for name, value in module._buffers.items()
        }
        new.__dict__["_modules"] = {
            name: child if child is None else twin(child) for name, child in module._modules.items()
        }
        return new

    return twin(model)


def share_out(plan: Plan, workers: int) -> list[list[tuple[int, int, LayerPlan]]]:
    """Split the layers' calls into equal amounts of noise, the largest first."""
    jobs = [(key, call, layer) for key, layer in plan.layers.items() for call in range(layer.calls)]
    jobs.sort(key=lambda job: -job[2].weight.size)
    shares: list[list[tuple[int, int, LayerPlan]]] = [[] for _ in range(workers)]
    sizes = [0] * workers
    for job in jobs:
        lightest = sizes.index(min(sizes))
        shares[lightest].append(job)
        sizes[lightest] += job[2].weight.size
    return shares
