"""The Monte-Carlo passes of a subject, drawn once and shared by its checks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.data.batch import Batch, Inputs
from pytest_bnn.errors import InputError, in_a_line
from pytest_bnn.libraries.posterior import zero_sigma
from pytest_bnn.network.calling import forward
from pytest_bnn.network.isolation import seed_everything
from pytest_bnn.options import in_force
from pytest_bnn.progress import drawn
from pytest_bnn.sampling.engine.plan import Unsupported
from pytest_bnn.sampling.freed import keep_freed_memory
from pytest_bnn.sampling.own import undisturbed_passes
from pytest_bnn.tasks.task import are_shares

if TYPE_CHECKING:
    from pytest_bnn.sampling.engine.run import Engine
    from pytest_bnn.sampling.native.run import Native

#: Numbers in the images of one chunk: 64 images of 3x224x224. Bounds the memory of a pass.
_CHUNK = 64 * 3 * 224 * 224

#: Bytes of outputs that a bank keeps: those of the first passes. Further ones are drawn again for whoever asks again.
KEPT = 256 * 2**20

#: Bytes of outputs that are drawn at once, beyond a single pass.
BLOCK = 64 * 2**20

#: Whole numbers of a dtype's size.
_WORDS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}

_NAMES = {"engine": "the sampling engine", "native": "the native sampler"}


def pass_seed(seed: int, index: int) -> int:
    """Return the seed of pass number ``index``: its own, so that no pass depends on which ones ran before it."""
    return int(
        numpy.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, numpy.uint64)[0] >> numpy.uint64(1)
    )


def probabilities(outputs: Tensor) -> Tensor:
    """Turn class scores ``[..., classes]`` into probabilities; outputs that are probabilities stay as they are."""
    return outputs if are_shares(outputs) else softmax(outputs)


def softmax(outputs: Tensor) -> Tensor:
    """Turn class scores ``[..., classes]`` into probabilities, those in half precision in float32."""
    return torch.softmax(outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs, dim=-1)


class PassBank:
    """The outputs of a model on a set of images, pass after pass: pass k is the same whoever asks first.

    One draw of the weights serves all images of a pass, as in the library, whatever the chunking. On the CPU the
    sampling engine (`pytest_bnn.sampling.engine`) draws the passes, elsewhere the native sampler
    (`pytest_bnn.sampling.native`), where it has shown that it repeats the own forward of the model; otherwise that
    forward does (there Flipout's signs repeat from chunk to chunk, which changes no distribution of a single image's
    outputs).

    Args:
        model: The network.
        images: Inputs ``[N, ...]``, or a batch of other arguments.
        seed: The seed of the passes.
        sampler: ``"auto"``, ``"own"``, ``"engine"`` or ``"native"``; the setting in force when None.
        like: The bank of the same model on other images; where these have the shape of its own, what draws its passes
            draws these too.
        numbers: Of the outputs for an image, as far as is known: by it the first block has its size.

    Raises:
        ValueError: There is no such sampler.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Inputs,
        seed: int,
        *,
        sampler: str | None = None,
        like: PassBank | None = None,
        numbers: int = 1000,
    ) -> None:
        if sampler not in (None, "auto", "own", "engine", "native"):
            raise ValueError(f"sampler must be 'auto', 'own', 'engine' or 'native', not {sampler!r}")
        keep_freed_memory()
        self.model = model
        self.images = images
        self.seed = seed
        #: What drew the passes that were given out, and why, in words; whoever wants its own clears it before.
        self.used: dict[str, None] = {}
        self._choice = sampler
        self._like = like if like is not None and _alike(images, like.images) else None
        self._row_bytes = 4 * numbers
        self._kept: list[tuple[Tensor, tuple[str, ...]]] = []
        self._kept_of: tuple[int | None, ...] = ()
        self._drawn = 0
        self._engine: Engine | Native | None = None
        self._decided_for: object = None
        self._sampler = ""
        self._drawn_by: tuple[str, ...] = ()
        self._in_turn = False

    @property
    def drawn(self) -> int:
        """The number of passes on all images that were drawn so far, kept or not."""
        return self._drawn

    def count_drawn(self, passes: int) -> None:
        """Count passes on all images that another process has drawn: those up to a number."""
        self._drawn = max(self._drawn, passes)

    @property
    def kept_bytes(self) -> int:
        """How many bytes of outputs are kept; at most `KEPT`."""
        return sum(block.nbytes for block, _ in self._kept)

    @property
    def sampler(self) -> str:
        """What drew the last passes, and why, in words; empty before the first one."""
        return ", then ".join(self._drawn_by) or self._sampler

    def blocks(self, start: int, stop: int, rows: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the passes from ``start`` up to ``stop`` as blocks ``[passes, images, ...]``, one after the other.

        Whoever reads them sums them up and lets them go, so that memory does not grow with the passes. The first ones
        on all images are kept while they fit into `KEPT` bytes; all others are drawn anew for whoever asks, and are
        the same again. A block holds as many passes as fit into `BLOCK` bytes, and one at least. Do not write into it.

        Args:
            start: The number of the first pass, from 0.
            stop: The number after the last pass.
            rows: The numbers of the images; all when None. What is drawn for some of them is not kept.

        Raises:
            ForwardError: As in `draw`.
            InputError: As in `draw`.
        """
        self._forget_another_model()
        place, tell = 0, drawn()
        for block, drawn_by in [*self._kept]:
            part = block[max(start - place, 0) : max(stop - place, 0)]
            place += len(block)
            if len(part):
                self.used.update(dict.fromkeys(drawn_by))
                tell(len(part))
                yield part if rows is None else part[:, rows.to(part.device)]
        start, count = max(start, place), len(self.images) if rows is None else len(rows)
        while start < stop:
            block = self.draw(start, min(stop, start + max(1, BLOCK // max(1, count * self._row_bytes))), rows)
            self._row_bytes = -(-block[0].nbytes // max(1, count))
            if rows is None:
                self._keep(start, block)
            start += len(block)
            yield block

    def example(self) -> Tensor:
        """Return the first pass on all images as an example of outputs, of which no claim has to say what drew it."""
        before = dict(self.used)
        try:
            return next(self.blocks(0, 1))[0]
        finally:
            self.used = before

    def _forget_another_model(self) -> None:
        """Let go of what is kept where the model's parameters are others now: passes must not be of two models."""
        now = tuple(_written(parameter) for parameter in self.model.parameters())
        if now != self._kept_of:
            self._kept, self._kept_of = [], now

    def _keep(self, start: int, block: Tensor) -> None:
        """Keep as many passes on all images as fit, where they follow those that are kept."""
        self._drawn = max(self._drawn, start + len(block))
        if start != sum(len(kept) for kept, _ in self._kept):
            return
        fit = min(len(block), max(0, KEPT - self.kept_bytes) // max(1, block[0].nbytes))
        if fit:
            self._kept.append((block if fit == len(block) else block[:fit].clone(), self._drawn_by))

    def draw(
        self, start: int, stop: int, rows: Tensor | None = None, *, noisy: Collection[str] | None = None
    ) -> Tensor:
        """Return the passes from ``start`` up to ``stop``, on some images or all, without keeping them.

        Args:
            start: The number of the first pass, from 0.
            stop: The number after the last pass.
            rows: The numbers of the images; all when None.
            noisy: Paths of the layers whose noise is on, the others at their mean; all when None.

        Raises:
            ForwardError: The model raised, or returned something that is no tensor of rows of numbers.
            InputError: The sampler is ``"engine"`` or ``"native"``, and it cannot be used.
        """
        if rows is not None and torch.equal(rows.cpu(), torch.arange(len(self.images))):
            rows = None
        images = self.images if rows is None else self.images[rows]
        self._decide()
        if self._engine is not None and isinstance(images, Tensor):
            numbers = torch.arange(len(images)) if rows is None else rows.to(torch.int64)
            found, words = self._by(self._engine, range(start, stop), images, numbers, noisy)
        else:
            found, words = self._own(start, stop, images, noisy), {self._sampler: None}
        self._drawn_by = (*words,)
        self.used.update(words)
        return found

    def _by(
        self, engine: Engine | Native, passes: range, images: Tensor, rows: Tensor, noisy: Collection[str] | None
    ) -> tuple[Tensor, dict[str, None]]:
        """Return passes, and in words what drew them: the own forward where the engine fails, and for that pass alone.

        So a pass depends neither on those before it nor on who asked for them.
        """
        if not self._in_turn:
            try:
                return engine.run(passes, images, rows, noisy=noisy), {self._sampler: None}
            except Exception:
                self._in_turn = True
        found, words = [], dict[str, None]()
        for index in passes:
            try:
                found.append(engine.run(range(index, index + 1), images, rows, noisy=noisy))
                words[self._sampler] = None
            except Exception as error:
                why = str(error) if isinstance(error, Unsupported) else f"its passes raised {in_a_line(error)}"
                words[self._declined(why)] = None
                found.append(self._own(index, index + 1, images, noisy))
        return torch.cat(found), words

    def _own(self, start: int, stop: int, images: Inputs, noisy: Collection[str] | None) -> Tensor:
        parts, tell = chunks(images), drawn()
        passes = []
        silence = nullcontext() if noisy is None else zero_sigma(self.model, save=noisy)
        with undisturbed_passes(self.model, seed=self.seed), silence:
            for index in range(start, stop):
                outputs = []
                for part in parts:
                    seed_everything(pass_seed(self.seed, index))
                    outputs.append(forward(self.model, part))
                passes.append(torch.cat(outputs))
                tell(1)
        return torch.stack(passes)

    def _decide(self) -> None:
        """Decide what draws the passes, again where the model has changed."""
        choice = self._choice or in_force().sampler
        state = (choice, None if choice == "own" else _state(self.model))
        if state == self._decided_for:
            return
        self._decided_for, self._engine, self._drawn_by, self._in_turn = state, None, (), False
        if self._like is not None:
            self._like._decide()
            self._engine, self._sampler = self._like._engine, self._like._sampler
            return
        if choice == "own":
            self._sampler = "own forward (chosen)"
            return
        if isinstance(self.images, Batch):
            self._decline("its inputs or outputs are more than one tensor, or it takes them in a way of its own")
            return
        name = choice if choice != "auto" else "engine" if self.images.device.type == "cpu" else "native"
        try:
            found = _shake_hands(name, self.model, self.images, self.seed)
        except Unsupported as error:
            self._decline(str(error))
        else:
            warning = f": {found.warning}" if found.warning else ""
            self._engine, self._sampler = found, f"{name} ({found.noise}{warning})"

    def _decline(self, reason: str) -> None:
        self._engine, self._sampler = None, self._declined(reason)

    def _declined(self, reason: str) -> str:
        choice = self._choice or in_force().sampler
        if choice in _NAMES:
            raise InputError(f"{_NAMES[choice]} cannot be used: {reason}", fix="leave the sampler at auto")
        return f"own forward ({reason})"


def _shake_hands(name: str, model: nn.Module, images: Tensor, seed: int) -> Engine | Native:
    """Make a sampler that stands in for a model's own forward, if it may."""
    if name == "engine":
        from pytest_bnn.sampling.engine.handshake import shake_hands

        return shake_hands(model, images, seed)
    from pytest_bnn.sampling.native import handshake

    return handshake.shake_hands(model, images, seed)


def _alike(images: Inputs, others: Inputs) -> bool:
    """Say whether images are tensors of one shape, dtype and place, however many there are."""
    if not isinstance(images, Tensor) or not isinstance(others, Tensor):
        return False
    one, other = (images.shape[1:], images.dtype, images.device), (others.shape[1:], others.dtype, others.device)
    return one == other


def chunks(images: Inputs) -> list[Inputs]:
    """Split inputs into parts whose passes memory holds."""
    numbers = images.numbers if isinstance(images, Batch) else max(1, images[0].numel())
    size = max(1, _CHUNK // numbers)
    if isinstance(images, Batch) and images.size is not None:
        size = max(1, size // images.size) * images.size
    return [images[start : start + size] for start in range(0, len(images), size)]


def forward_in_chunks(model: nn.Module, images: Inputs) -> Tensor:
    """Return a model's outputs for inputs of which memory may not hold all at once: one call for each part of them.

    Args:
        model: The network.
        images: Inputs ``[N, ...]``, or a batch of other arguments.

    Raises:
        ForwardError: As in `pytest_bnn.network.calling.forward`.
    """
    outputs = [forward(model, part) for part in chunks(images)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _state(model: nn.Module) -> tuple[object, ...]:
    """Return a summary by which changes of a model show: modules, modes, hooks and tensors, but no noise buffers."""
    found: list[object] = []
    for module in model.modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module)
        found.append((id(module), module.training, hooks))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and not name.startswith("eps_"):
                found.append((id(tensor), tensor._version, _written(tensor)))
    return tuple(found)


def _written(tensor: Tensor) -> int | None:
    """Return the sum of a tensor's words, in which writing to its ``.data`` shows; None off the CPU.

    Such a write leaves the version as it was, and a sampler holds some tensors in a layout of its own and others not.
    """
    words = _WORDS.get(tensor.dtype)
    if words is None or tensor.device.type != "cpu" or tensor.layout is not torch.strided or is_lazy(tensor):
        return None
    return int(tensor.detach().view(words).sum(dtype=words))
