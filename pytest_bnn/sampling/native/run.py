"""The native sampler's passes: several at once where the network allows it, one after the other elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pytest_bnn.libraries.capture import LayerCall, calls_by_layer
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.progress import drawn
from pytest_bnn.sampling.engine.noise import key_of
from pytest_bnn.sampling.engine.plan import Plan
from pytest_bnn.sampling.engine.replica import UncalledLayer, replicate
from pytest_bnn.sampling.native.layers import DrawnLayer, FixedNorm, Forward
from pytest_bnn.sampling.native.philox import Layout

#: Numbers in the largest output of a layer, over the passes that run at once: so many keep a device busy.
_OUTPUTS_AT_ONCE = 8_000_000
#: Weights that are drawn at once, over the passes that run at once.
_WEIGHTS_AT_ONCE = 1 << 25
_PASSES_AT_ONCE = 64
#: Numbers in the images of one call: 64 images of 3x224x224.
_IMAGES_AT_ONCE = 64 * 3 * 224 * 224


class Native:
    """Passes of a planned network by `torch.func`; the noise of pass k depends on nothing but the seed and k.

    Args:
        model: The network.
        plan: What is drawn for it.
        seed: The seed of the noise.
        outputs: Numbers that the largest output of a layer has for one image.
        device: Where the model is.
    """

    def __init__(self, model: nn.Module, plan: Plan, seed: int, outputs: int, device: torch.device) -> None:
        self.device = device
        self._plan = plan
        self.vmaps = False
        self.refused = ""
        self._outputs = max(1, outputs)
        self._layout: tuple[tuple[tuple[int, int], ...], Layout] | None = None
        self._running = Forward(key_of(seed), plan.streams)
        swap: dict[int, nn.Module] = {key: DrawnLayer(self._running, layer) for key, layer in plan.layers.items()}
        self._layers = [layer for layer in swap.values() if isinstance(layer, DrawnLayer)]
        for other in bayesian_layers(model):
            swap.setdefault(id(other.module), UncalledLayer(other.path))
        for module in model.modules():
            if (norm := FixedNorm.of(module)) is not None:
                swap[id(module)] = norm
        self._network = replicate(model, swap)
        paths = {id(module): path for path, module in self._network.named_modules()}
        self._paths = [paths[id(layer)] for layer in self._layers]
        self._weights = sum(drawn.size * layer.plan.calls for layer in self._layers for drawn in layer.plan.drawn)

    @property
    def noise(self) -> str:
        """What draws the noise, and how the passes run."""
        how = "several passes at once" if self.vmaps else f"pass by pass: {self.refused}"
        return f"Philox4x32-10 in torch on {self.device.type}, {how}"

    warning = ""

    def run(self, passes: range, images: Tensor, rows: Tensor, *, noisy: Collection[str] | None = None) -> Tensor:
        """Return the outputs ``[passes, images, ...]`` of some passes.

        Args:
            passes: Their numbers.
            images: Inputs ``[N, ...]``.
            rows: The number of each image, int64 ``[N]``: Flipout's signs depend on it.
            noisy: Paths of the layers whose noise is on; that of all when None.

        Raises:
            Unsupported: The forward did not do what it did when the plan was made.
        """
        self._running.noisy = noisy
        tell = drawn()
        numbers = torch.arange(passes.start, passes.stop, device=self.device)
        size = max(1, _IMAGES_AT_ONCE // max(1, images[0].numel()))
        parts = list(zip(images.split(size), rows.to(self.device).split(size), strict=True))
        outputs = []
        with torch.no_grad():
            for some in numbers.split(self.at_once(min(size, len(images)))):
                weights = self._draw(some)
                found = [self._outputs_of(weights, some, part, of) for part, of in parts]
                outputs.append(found[0] if len(found) == 1 else torch.cat(found, 1))
                tell(len(some))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def at_once(self, images: int) -> int:
        """Return how many passes run at once on so many images."""
        if not self.vmaps:
            return 1
        most = min(_OUTPUTS_AT_ONCE // (self._outputs * images), _WEIGHTS_AT_ONCE // max(1, self._weights))
        return max(1, min(_PASSES_AT_ONCE, most))

    def repeat(self, calls: Iterable[LayerCall], images: Tensor) -> Tensor:
        """Return the outputs for images with what a pass of the model's own forward used in its calls of layers."""
        self._running.given = given = calls_by_layer(calls)
        try:
            used = self._named([layer.used(given[id(layer.plan.layer.module)]) for layer in self._layers])
            return self._one(used, torch.zeros((), dtype=torch.int64, device=self.device), images, self._rows(images))
        finally:
            self._running.given = None

    def compared(self, passes: range, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of some passes one after the other, and those of the same passes at once."""
        numbers = torch.arange(passes.start, passes.stop, device=self.device)
        weights, rows = self._draw(numbers), self._rows(images)
        return self._in_turn(weights, numbers, images, rows), self._together(weights, numbers, images, rows)

    def _rows(self, images: Tensor) -> Tensor:
        return torch.arange(len(images), device=self.device)

    def _draw(self, passes: Tensor) -> dict[str, Tensor]:
        wanted = [(layer, *each) for layer in self._layers for each in layer.wanted(self._running)]
        streams = tuple((stream, of.size) for _, _, of, stream in wanted)
        if self._layout is None or self._layout[0] != streams:
            self._layout = streams, Layout.of(streams, self.device)
        tensors: dict[int, dict[str, Tensor]] = {id(layer): {} for layer in self._layers}
        noise = self._layout[1].draw(passes, self._running.key)
        for (layer, name, of, _), numbers in zip(wanted, noise, strict=True):
            tensors[id(layer)][name] = layer.around(name, of, numbers)
        return self._named(list(tensors.values()))

    def _named(self, tensors: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            f"{path}.{name}" if path else name: tensor
            for path, of in zip(self._paths, tensors, strict=True)
            for name, tensor in of.items()
        }

    def _outputs_of(self, weights: dict[str, Tensor], passes: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        of = self._together if len(passes) > 1 else self._in_turn
        return of(weights, passes, images, rows)

    def _in_turn(self, weights: dict[str, Tensor], passes: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        return torch.stack([
            self._one({name: tensor[place] for name, tensor in weights.items()}, index, images, rows)
            for place, index in enumerate(passes.unbind())
        ])  # fmt: skip

    def _together(self, weights: dict[str, Tensor], passes: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        def one(weights: dict[str, Tensor], index: Tensor) -> Tensor:
            return self._one(weights, index, images, rows)

        with warnings.catch_warnings():  # an operator that vmap takes one by one is slower, and as good
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            found: Tensor = vmap(one, randomness="error")(weights, passes)
        return found

    def _one(self, weights: dict[str, Tensor], index: Tensor, images: Tensor, rows: Tensor) -> Tensor:
        self._running.start(index, rows)
        output = output_tensor(functional_call(self._network, weights, (images,), tie_weights=False))
        self._plan.require_same_calls(self._running.counts)
        return output
