"""What stands where a Bayesian layer was: its functional call, with weights that are drawn outside of it."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.sampling.engine.consumers import NORMS
from pytest_bnn.sampling.engine.noise import Key
from pytest_bnn.sampling.engine.plan import Drawn, LayerPlan, Unsupported
from pytest_bnn.sampling.native.philox import signs


class Forward:
    """The forward that is running: its pass, its images, and how often it has called each layer so far.

    ``given`` are calls of the model's own forward whose signs are to be used again; None draws them.
    """

    def __init__(self, key: Key, streams: int) -> None:
        self.key = key
        self.streams = streams
        self.index: Tensor | int = 0
        self.rows = torch.zeros(1, dtype=torch.int64)
        self.noisy: Collection[str] | None = None
        self.given: dict[int, list[LayerCall]] | None = None
        self.counts: dict[int, int] = {}

    def start(self, index: Tensor | int, rows: Tensor) -> None:
        """Get ready for pass ``index`` on the images with these numbers (int64, on the images' device)."""
        self.index, self.rows, self.counts = index, rows, {}

    def is_silent(self, path: str) -> bool:
        """Return whether a layer is to be without noise."""
        return self.noisy is not None and path not in self.noisy

    def signed(self, values: Tensor, layer: DrawnLayer, call: int, half: int) -> Tensor:
        """Return values ``[rows, ...]`` times Flipout's random signs, for its input (0) or output (1)."""
        plan = layer.plan
        if self.given is not None:
            return values * self.given[id(plan.layer.module)][call].signs[half]
        repeat, rest = divmod(len(values), len(self.rows))
        if rest or values.ndim < 2:
            raise Unsupported(f"{plan.layer.name} takes inputs whose first dimension is not the images")
        rows = (self.rows[:, None] * repeat + torch.arange(repeat, device=self.rows.device)).flatten()
        stream = plan.weight.stream + 2 + half + call * self.streams
        return values * signs(values[0].numel(), stream, self.index, rows, self.key).view(values.shape)


class DrawnLayer(nn.Module):
    """Stands in for a Bayesian layer of a library.

    Its buffers ``weight0``, ``bias0`` (of the first call, ``weight1`` of the second) are what its noise is drawn
    around; `torch.func.functional_call` puts what was drawn in their places.
    """

    def __init__(self, running: Forward, plan: LayerPlan) -> None:
        super().__init__()
        self._running = weakref.ref(running)  # a cycle would keep all its memory until it is found
        self.plan = plan
        self.spreads = {id(drawn): _cut(drawn, drawn.tensor.sigma) for drawn in plan.drawn}
        for call in range(plan.calls):
            for drawn in plan.drawn:
                self.register_buffer(f"{drawn.tensor.role}{call}", self._center(drawn), persistent=False)

    def wanted(self, running: Forward) -> list[tuple[str, Drawn, int]]:
        """Return what a pass draws: the name of a buffer, its tensor and its stream; nothing where it is silent."""
        if running.is_silent(self.plan.layer.path):
            return []
        return [
            (f"{drawn.tensor.role}{call}", drawn, drawn.stream + call * running.streams)
            for call in range(self.plan.calls)
            for drawn in self.plan.drawn
        ]

    def around(self, name: str, drawn: Drawn, noise: Tensor) -> Tensor:
        """Return the tensors that passes use, ``[passes, ...]``, with standard normal numbers ``[passes, size]``."""
        spread = self.spreads[id(drawn)]
        return torch.addcmul(self.get_buffer(name), spread, _laid_out(noise, drawn, spread.shape))

    def used(self, calls: Sequence[LayerCall]) -> dict[str, Tensor]:
        """Return what the model's own forward used in some calls, by the names of the buffers."""
        found = {}
        for number, call in enumerate(calls):
            last = call.functional[-1]
            for drawn in self.plan.drawn:
                value = last.weight if drawn.tensor.role == "weight" else last.bias
                assert value is not None
                found[f"{drawn.tensor.role}{number}"] = _cut(drawn, value.detach())
        return found

    def forward(self, input: Tensor) -> Tensor:
        """Compute what the library's layer computes, with what was put into the buffers."""
        running, plan = self._running(), self.plan
        assert running is not None
        key = id(plan.layer.module)
        call = running.counts.get(key, 0)
        running.counts[key] = call + 1
        if call >= plan.calls:
            raise Unsupported("its forward does not always call the same layers")
        weight, bias = getattr(self, f"weight{call}"), getattr(self, f"bias{call}", None)
        input = plan.taken(input)
        out: Tensor
        if not plan.flipout:
            out = plan.function(input, weight, bias, *plan.rest, **plan.keywords)
            return out
        out = plan.function(input, plan.mean_weight, plan.mean_bias, *plan.rest, **plan.keywords)
        if running.is_silent(plan.layer.path):
            return out
        turned = running.signed(input, self, call, 0)
        noise = plan.function(turned, weight, bias, *plan.rest, **plan.keywords)
        return out + running.signed(noise, self, call, 1)

    def _center(self, drawn: Drawn) -> Tensor:
        mean = _cut(drawn, drawn.tensor.mu.detach())
        return mean if drawn.center else torch.zeros_like(mean)


class FixedNorm(nn.Module):
    """Stands in for a BatchNorm in eval mode: it scales and shifts, which vmap takes on every device."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        # Made on the CPU: not every device has float64.
        mean, variance, weight, bias = (
            None if value is None else value.detach().cpu().double()
            for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        assert mean is not None
        assert variance is not None
        scale = (variance + norm.eps).rsqrt() * (1.0 if weight is None else weight)
        self.register_buffer("scale", scale.to(norm.running_mean), persistent=False)
        self.register_buffer("shift", ((0.0 if bias is None else bias) - mean * scale).to(norm.running_mean),
                             persistent=False)  # fmt: skip

    @staticmethod
    def of(module: nn.Module) -> FixedNorm | None:
        """Return what stands in for a module; None where it is no BatchNorm with statistics of its own in eval mode."""
        fixed = type(module) in NORMS and not module.training and module.running_mean is not None
        return FixedNorm(module) if fixed and module.running_var is not None else None

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, normalised."""
        shape = (-1, *[1] * (input.ndim - 2))
        out: Tensor = torch.addcmul(self.shift.view(shape), input, self.scale.view(shape))  # type: ignore[operator]
        return out


def _cut(drawn: Drawn, value: Tensor) -> Tensor:
    """Return the part of a tensor that its calls use."""
    return value[drawn.part]


def _laid_out(flat: Tensor, drawn: Drawn, shape: torch.Size) -> Tensor:
    """Bring numbers ``[passes, size]`` into a tensor's shape, in the order in which the engine draws them."""
    if drawn.memory_format is torch.channels_last:
        out, inner, high, wide = shape
        return flat.view(-1, out, high, wide, inner).permute(0, 1, 4, 2, 3)
    return flat.view(-1, *shape)
