"""A model's own forward and the engine's of the same pass, in turns: one layer after the other, with its weights."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.isolation import random_state
from pytest_bnn.sampling.engine.plan import Unsupported
from pytest_bnn.sampling.engine.replica import Worker


class Lockstep:
    """The engine's forward, which repeats each call of a layer with its weights as soon as the own forward has made it.

    So the weights of one layer are held at a time, and not those of a pass. The two forwards are in threads of their
    own and never run at the same time.

    Args:
        worker: Whose network runs.
        images: Its inputs.

    Attributes:
        drew: Whether the engine's forward has drawn from torch's, numpy's or Python's generators.
    """

    def __init__(self, worker: Worker, images: Tensor) -> None:
        self._worker, self._images = worker, images
        self._pool = ThreadPoolExecutor(1, "pytest-bnn")
        self._forward: Future[Tensor] | None = None
        self._given: LayerCall | None = None
        self._of: tuple[int, int] | None = None
        self._over = self._ended = self._done = False
        self.drew = False
        self._here, self._there = Semaphore(0), Semaphore(0)

    def __enter__(self) -> Self:
        self._worker.given = self.call
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._worker.given = None

    def take(self, call: LayerCall) -> None:
        """Let the engine compute with what a call of a layer used, up to its next layer or its end."""
        if self._done:
            self._over = True  # it has used fewer, or raised
            return
        before = random_state()
        self._given, self._of = call, None
        if self._forward is None:
            self._forward = self._pool.submit(self._run, torch.get_num_threads())
        else:
            self._there.release()
        self._here.acquire()
        self._given = None
        self.drew |= random_state() != before

    def call(self, layer: int, number: int) -> LayerCall:
        """Return what a call of a layer used, in the engine's thread, which waits until the own forward has made it.

        Args:
            layer: The ``id`` of its module.
            number: Of the call within the pass, from 0.

        Raises:
            Unsupported: The own forward has called another layer, or none any more.
        """
        if self._of is not None and self._of != (layer, number):
            self._here.release()
            self._there.acquire()
        given = self._given
        if self._ended or given is None or id(given.layer.module) != layer:
            raise Unsupported("its forward does not always call the same layers")
        self._of = layer, number
        return given

    def result(self) -> Tensor:
        """Return the engine's output, when the own forward has ended.

        Raises:
            Unsupported: It has used other layers than the own forward.
        """
        self._end()
        found = None if self._forward is None else self._forward.result()
        if found is None or self._over:
            raise Unsupported("its forward does not always call the same layers")
        return found

    def _run(self, threads: int) -> Tensor:
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                self._worker.start(0, torch.arange(len(self._images)))
                found = output_tensor(self._worker.model(self._images))
                self._worker.finish()
                return found
        finally:
            self._done = True
            self._here.release()

    def _end(self) -> None:
        """Let the engine's forward go on without further calls, until it ends."""
        self._given, self._ended = None, True
        self._there.release()
        self._pool.shutdown()
