"""The engine's passes over workers: one thread each, with one torch thread each."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.progress import drawn
from pytest_bnn.sampling.engine.plan import LayerPlan, Plan
from pytest_bnn.sampling.engine.replica import Worker, share_out
from pytest_bnn.sampling.threads import spread

#: Numbers in the largest output of a layer, of all images of a chunk together: measured in the page on sampling.
CHUNK_NUMBERS = 8_000_000


class Engine:
    """Passes of a planned network; the noise of pass k depends on nothing but the seed and k.

    Few images: each worker does whole passes, with the weights of a layer drawn just before they are used. Many
    images: the weights of a pass are drawn once, and the workers share the images, a chunk at a time.
    """

    def __init__(self, plan: Plan, workers: Sequence[Worker], chunk: int, warning: str) -> None:
        self.workers = workers
        self.chunk = chunk
        self.warning = warning
        self._shares = share_out(plan, len(workers))

    @property
    def noise(self) -> str:
        """What draws the noise."""
        return self.workers[0].noise.name

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
        for worker in self.workers:
            worker.noisy = noisy
        tell = drawn()

        def one_pass(worker: Worker, index: int) -> Tensor:
            tell(1)
            return _forward(worker, index, images, rows)

        if len(images) <= self.chunk:
            return torch.stack(spread(self.workers, passes, one_pass))
        outputs = []
        for index in passes:
            tell(1)
            outputs.append(self._in_chunks(index, images, rows))
        return torch.stack(outputs)

    def run_apart(self, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Return the outputs of pass 0 on several batches of images with their numbers, each batch by itself."""
        return spread(self.workers, batches, lambda worker, batch: _forward(worker, 0, *batch))

    def _in_chunks(self, index: int, images: Tensor, rows: Tensor) -> Tensor:
        held: dict[tuple[int, int], list[Tensor]] = {}

        def draw(worker: Worker, share: list[tuple[int, int, LayerPlan]]) -> None:
            worker.index = index
            drawn = [job for job in share if not (job[2].flipout and worker.silences(job[2]))]
            held.update({(key, call): worker.draw(layer, call) for key, call, layer in drawn})

        spread(self.workers, self._shares, draw)
        size = math.ceil(len(images) / math.ceil(len(images) / self.chunk))
        parts = list(zip(images.split(size), rows.split(size), strict=True))
        try:
            for worker in self.workers:
                worker.held = held
            return torch.cat(spread(self.workers, parts, lambda worker, part: _forward(worker, index, *part)))
        finally:
            for worker in self.workers:
                worker.held = None


def _forward(worker: Worker, index: int, images: Tensor, rows: Tensor) -> Tensor:
    worker.start(index, rows)
    output = output_tensor(worker.model(images))
    worker.finish()
    return output


def passes_chunk(calls: Sequence[LayerCall], images: int) -> int:
    """Return how many images a chunk should have, estimated from a pass on some images."""
    largest = max((call.output.numel() for call in calls if isinstance(call.output, Tensor)), default=1)
    return max(1, CHUNK_NUMBERS * images // max(1, largest))
