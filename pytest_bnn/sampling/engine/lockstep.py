"""A model's own forward and the engine's of the same pass, in turns: one layer after the other, with its weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from threading import Semaphore, Thread
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.libraries.posterior import BayesianLayer
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.isolation import random_state, replaced
from pytest_bnn.sampling.engine.plan import Unsupported
from pytest_bnn.sampling.engine.replica import Worker
from pytest_bnn.sampling.own import is_known

#: Weights of a network of which those of a whole pass are held rather: 4 MiB; 160 MiB in a process that has not loaded
#: how torch computes with shapes alone, which takes as much, and a second. torchvision has loaded it.
FEW, FEW_WITHOUT_SHAPES = 1 << 20, 40 << 20
_SHAPES = "torch._dynamo"

#: Packages of torch whose modules work in threads and processes of their own, or talk to others.
_ELSEWHERE = ("torch.distributed", "torch.nn.parallel")


def may_take_turns(model: nn.Module, layers: Sequence[BayesianLayer]) -> bool:
    """Return whether two forwards of a network may run in turns, and whether it is worth it.

    They may where both run code that is known: another forward may hold a lock, which the other thread would wait for
    for ever, or keep something for its thread, or change something that both forwards see. Nor do they where something
    is in force for this thread alone, such as autocast or a default device: the other would compute something else.
    It is worth it where the weights of a pass need much memory.

    Args:
        model: The network, before anything was registered on it.
        layers: Its Bayesian layers.
    """
    few = FEW if _SHAPES in sys.modules else FEW_WITHOUT_SHAPES
    if sum(layer.weights for layer in layers) <= few or not is_known(model):
        return False
    here = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    if here or torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled():
        return False
    return not any(type(module).__module__.startswith(_ELSEWHERE) for module in model.modules())


def forward_without_numbers(model: nn.Module, images: Tensor) -> None:
    """Run a network's forward on the shapes of its tensors and images, which shows what it calls and takes no time.

    Raises:
        Exception: It looks at numbers, or torch does not know an operation's shapes.
    """
    places = [of for module in model.modules() for of in (module._parameters, module._buffers)]
    entries = [(of, name, tensor) for of in places for name, tensor in of.items() if tensor is not None]
    # torch.func.functional_call leaves such tensors in a module that is used in two places.
    with replaced((of, name, tensor.detach().to("meta")) for of, name, tensor in entries):
        model(images.to("meta"))


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
        self._forward: Thread | None = None
        self._found: Tensor | BaseException | None = None
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
        self._worker.given = self._found = None

    def take(self, call: LayerCall) -> None:
        """Let the engine compute with what a call of a layer used, up to its next layer or its end."""
        if self._done:
            self._over = True  # it has used fewer, or raised
            return
        before = random_state()
        self._given, self._of = call, None
        if self._forward is None:
            # A daemon: whatever interrupts this thread, the process ends.
            self._forward = Thread(target=self._run, args=(torch.get_num_threads(),), name="pytest-bnn", daemon=True)
            self._forward.start()
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
            Exception: Whatever it raised.
        """
        self._end()
        if isinstance(self._found, BaseException):
            raise self._found
        if self._found is None or self._over:
            raise Unsupported("its forward does not always call the same layers")
        return self._found

    def _run(self, threads: int) -> None:
        try:
            torch.set_num_threads(threads)
            with torch.no_grad():
                self._worker.start(0, torch.arange(len(self._images)))
                found = output_tensor(self._worker.model(self._images))
                self._worker.finish()
            self._found = found
        except BaseException as error:
            self._found = error
        finally:
            self._done = True
            self._here.release()

    def _end(self) -> None:
        """Let the engine's forward go on without further calls, until it ends."""
        self._given, self._ended = None, True
        self._there.release()
        if self._forward is not None and self._forward.is_alive():
            self._forward.join()
