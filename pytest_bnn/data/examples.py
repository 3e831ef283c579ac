"""The examples that a model and its teacher are called with: how these take them, and what the training loss gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pytest_bnn.data.batch import Batch, Inputs
from pytest_bnn.data.digests import of_examples
from pytest_bnn.data.fitting import fitted
from pytest_bnn.data.given import batch_for_loss, given_samples, is_pair, labels_in, require_finite_inputs
from pytest_bnn.data.loss import BATCH
from pytest_bnn.data.probing import Probed, probe
from pytest_bnn.data.samples import Samples
from pytest_bnn.network.calling import Field


class Examples:
    """Examples as they were given, and as two networks take them, which is found out when it is first asked for.

    Args:
        model: Whose device and dtype they get.
        teacher: Decides, where there is one, which parts of them are inputs.
        images: A tensor with a row for each example, or any tree, Dataset or DataLoader of such; None for no examples.
        labels: Beside them; else those in ``images``.
        seed: Of what is tried on the networks.

    Raises:
        InputError: The images or the labels cannot be used.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module | None, images: Any, labels: Any, seed: int) -> None:
        self.model = model
        self.teacher = teacher
        self.seed = seed
        self._give(images, labels)

    def _give(self, images: Any, labels: Any) -> None:
        self._samples: Samples | None
        self._samples, self._labels = given_samples(images, labels)
        self._probed: Probed | None = None
        self._inputs: Inputs | None = None

    def _take_as(self, others: Examples) -> None:
        """Take over how the networks take other examples, where these are of one kind: a tensor, or with labels."""
        known, samples, before = others._probed, self._samples, others._samples
        if known is None or samples is None or before is None or self._labels is not None:
            return
        item, its = samples.item, known.inputs
        labels = None
        if is_pair(item) and is_pair(before.item) and len(item) == len(before.item) == 2:
            if its is not before.item[0] or known.labels is not before.item[1] or not isinstance(item[1], Tensor):
                return
            item, labels = item
        if not isinstance(item, Tensor) or not isinstance(its, Tensor) or samples.dim != 0 or known.rowless:
            return
        if item.shape[1:] == its.shape[1:] and item.dtype == its.dtype:
            require_finite_inputs(item)
            self._probed = replace(known, inputs=item, labels=labels)
            self._inputs = fitted(item, self.model)

    @property
    def probed(self) -> Probed | None:
        """How the networks take the examples; None where none were given."""
        if self._probed is None and self._samples is not None:
            found = probe(self._samples, self.model, self.teacher, seed=self.seed)
            require_finite_inputs(found.inputs)
            self._inputs = fitted(found.inputs, self.model)
            self._probed = found
        return self._probed

    @property
    def images(self) -> Inputs | None:
        """What the networks are called with, on the model's device and in its dtype; None where there is nothing."""
        found = self.probed
        return None if found is None or found.rowless else self._inputs

    @property
    def labels(self) -> Any:
        """The labels: a tensor with a row for each example, another tree, or None."""
        found = None if self._labels is not None else self.probed
        return self._labels if found is None else found.labels

    @property
    def places(self) -> Tensor:
        """The number of each example in the user's data."""
        return torch.arange(0) if self._samples is None else self._samples.places

    @property
    def cut(self) -> bool:
        """Whether the examples are the first ones of a stream that goes on, which may be sorted."""
        return self._samples is not None and self._samples.cut

    def few(self, count: int) -> Samples:
        """Return the first of the examples, as they were given."""
        assert self._samples is not None
        rows = min(count, self._samples.rows)
        return replace(self._samples, item=self._samples.take(rows), rows=rows, places=self._samples.places[:rows])

    def data_sha256(self) -> str:
        """Return the digest of the examples as they were given, with their labels; empty where there are none."""
        if self._samples is None:
            return ""
        item = self._samples.item
        return of_examples(item if self._labels is None else (item, self._labels))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the evidence should say about how the networks take the examples."""
        found = self.probed
        return () if found is None else found.notes

    @property
    def fields(self) -> tuple[Field, ...]:
        """The tensors of the model's output, in the order in which `forward` puts them side by side."""
        found = self.probed
        return () if found is None else found.fields

    def require_images(self) -> Inputs:
        """Return the images; `Check.run` has made sure that there are some."""
        images = self.images
        assert images is not None
        return images

    def loss_batch(self) -> Any:
        """Return the batch that the training loss gets: a copy, anew for each call.

        It is the loader's own first batch, or of examples without a loader at most `BATCH` (as many as the network
        takes at once, where it takes no other), in the structure in which they were given: ``(images, labels)`` for
        tensors, with None where no labels were given. Inputs are on the model's device and in its dtype.
        """
        assert self._samples is not None
        assert self.probed is not None
        return batch_for_loss(self._samples, self.probed, self._labels, self.model, BATCH)

    def loss_labels(self, batch: Any) -> Tensor | None:
        """Return the labels in a batch of `loss_batch`, a row for each example; None where there are none."""
        assert self._samples is not None
        assert self.probed is not None
        if self._labels is not None:
            return batch[1] if isinstance(batch[1], Tensor) else None
        return labels_in(batch, self._samples, self.probed)

    def loss_notes(self) -> tuple[str, ...]:
        """Say which examples the training loss gets."""
        if self.probed is None or self._samples is None:
            return ()
        inputs, rows = self.probed.inputs, self._samples.rows
        size = inputs.size if isinstance(inputs, Batch) else None
        if self._samples.first is not None and size is None:
            return (f"the loss got the loader's own first batch, of {self._samples.batch_rows} examples",)
        return (f"the loss got the first {min(size or BATCH, rows)} of {rows} examples",)
