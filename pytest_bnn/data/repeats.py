"""Examples that occur several times: how many distinct ones there are, and whether they look repeated on purpose."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.data.batch import Batch, Inputs, row_dim
from pytest_bnn.stats.counts import chance_of_equal_counts

#: The chance at which equal counts of all distinct examples are no coincidence of a random sample.
_COINCIDENCE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Repeats:
    """Which examples are equal to the bit.

    Attributes:
        rows: How many examples there are.
        first: The number of the first occurrence of each distinct example, in order ``[distinct]``.
        counts: How often each distinct example occurs, likewise.
    """

    rows: int
    first: Tensor
    counts: Tensor

    @property
    def distinct(self) -> int:
        """How many distinct examples there are."""
        return len(self.first)

    @property
    def copied(self) -> bool:
        """Whether the examples are copies: of one example, or of several that all occur equally often.

        Examples of which there are few kinds, such as rows of a small table, repeat in a random sample too; there they
        all occur equally often by a rare chance only.
        """
        if self.rows < 2 or self.distinct == self.rows:
            return False
        if self.distinct == 1:
            return True
        return chance_of_equal_counts(self.rows, self.distinct) < _COINCIDENCE and len(self.counts.unique()) == 1

    @property
    def no_sample(self) -> str:
        """Why they are no random sample of a population; empty where nothing tells against it."""
        if not self.copied:
            return ""
        several = f"{self.distinct} images, {self.rows // self.distinct} times each"
        return (
            f"the {self.rows} images are {'one image' if self.distinct == 1 else several}, so that they show nothing "
            "of a population: give distinct images, or judge these, without population (--population no)"
        )


def repeats(inputs: Inputs) -> Repeats:
    """Compare examples with each other, to the bit; inputs that no example has of its own are left out."""
    digests = digests_of(inputs)
    if digests is None:
        rows = len(inputs)
        return Repeats(rows, torch.arange(rows), torch.ones(rows, dtype=torch.long))
    known: dict[bytes, int] = {}
    first: list[int] = []
    numbers: list[int] = []
    for row, digest in enumerate(digests):
        place = known.setdefault(digest, len(known))
        if place == len(first):
            first.append(row)
        numbers.append(place)
    return Repeats(len(inputs), torch.tensor(first), torch.bincount(torch.tensor(numbers), minlength=len(first)))


def digests_of(inputs: Inputs) -> list[bytes] | None:
    """Return the digest of each example, of 16 bytes; None where no input has a row for each of them."""
    rows = len(inputs)
    dim = inputs.dim if isinstance(inputs, Batch) else 0
    columns = []
    for tensor in inputs.tensors if isinstance(inputs, Batch) else [inputs]:
        where = row_dim(tensor, rows=rows, dim=dim)
        if where is not None:
            columns.append(tensor.detach().movedim(where, 0).reshape(rows, -1).cpu().contiguous())
    if not columns:
        return None
    found = []
    for row in range(rows):
        digest = hashlib.blake2b(digest_size=16)
        for column in columns:
            digest.update(column[row].view(torch.uint8).numpy().tobytes())
        found.append(digest.digest())
    return found
