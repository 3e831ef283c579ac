"""What can be said of a subject by name: one list for ``pytest-bnn audit``, pytest's options and pyproject.toml.

Imports nothing heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pytest_bnn.reading import count_or_all, part, positive, whole

T = TypeVar("T")

STAGES = ("auto", "converted", "finetuned")
TASKS = ("auto", "classification", "binary", "regression", "dense")
_FACTORY, _FUNCTION = "MODULE:FACTORY", "MODULE:FUNCTION"


def _text(text: str) -> str:
    """a text that is not empty"""  # noqa: D403  completes "is not ..."
    if not text.strip():
        raise ValueError
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One thing that can be said, with its name on a command line and how ``--help`` explains it."""

    name: str
    metavar: str
    help: str
    read: Callable[[str], Any] = _text
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name in Python: ``batch_dim``."""
        return self.name.replace("-", "_")

    @property
    def words(self) -> str:
        """What a value has to be, as it completes "give ..."."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return self.metavar if ":" in self.metavar else str(self.read.__doc__)

    @property
    def argument(self) -> dict[str, Any]:
        """The arguments of argparse beside the name."""
        if self.choices:
            return {"choices": self.choices, "metavar": self.metavar, "help": self.help}
        return {"type": reading(self.read), "metavar": self.metavar, "help": self.help}

    def of_toml(self, value: object) -> Any:
        """Return a value of a table as a command line would have given it.

        Raises:
            ValueError: It is of another kind.
        """
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        texts, numbers = self.read in (_text, count_or_all), self.read is not _text
        if not (texts if isinstance(value, str) else numbers):
            raise ValueError
        found = self.read(str(value))
        if self.choices and found not in self.choices:
            raise ValueError
        return found


#: Beside the model: what `pytest_bnn.audit.named.Named` holds.
PARTS = (
    Field(
        name="teacher",
        metavar=_FACTORY,
        help="function that returns the deterministic network that it was converted from",
    ),
    Field(
        name="data",
        metavar=_FACTORY,
        help="function that returns the examples: images, (images, labels), any tree of tensors, a Dataset or a "
        "DataLoader",
    ),
    Field(
        name="images",
        metavar="N",
        read=whole(1),
        help="use at most N examples of the data; of more, a random subset (default: 512)",
    ),
    Field(
        name="loss",
        metavar=_FUNCTION,
        help="the training loss, called as loss(model, batch); the batch has the structure of the data",
    ),
    Field(
        name="evaluation",
        metavar=_FACTORY,
        help="returns labelled examples on which claims about the predictions are judged, where --data are too easy "
        "for that (default: the data)",
    ),
    Field(
        name="evaluation-images",
        metavar="N|all",
        read=count_or_all,
        help="judge claims about the labels of --evaluation on up to so many of its examples, read shard by shard, "
        "until each claim is certain (default: on at most as many as --images, held in memory)",
    ),
    Field(
        name="shard-size",
        metavar="N",
        read=whole(1),
        help="number of examples that are read at a time with --evaluation-images (default: as many as hold 2**25 "
        "numbers, at most 2048)",
    ),
    Field(
        name="unreadable",
        metavar="P",
        read=part,
        help="share of the examples of --evaluation-images that may be unreadable; they are left out, counted and "
        "named (default: 0.001)",
    ),
    Field(
        name="ood",
        metavar=_FACTORY,
        help="returns examples that are none of the model's task, or several such sets by name",
    ),
    Field(
        name="shifts",
        metavar=_FACTORY,
        help="returns the data at growing amounts of a shift, the least first: a list of data sets, or several lists "
        "by name (default: corruptions made of the data, where these are images)",
    ),
    Field(
        name="slices",
        metavar=_FUNCTION,
        help="returns the group of an example by its number in the data; claims about predictions are judged by group",
    ),
    Field(
        name="stage",
        metavar="|".join(STAGES),
        choices=STAGES,
        help="what the model is; auto reads it from its weights and the teacher's",
    ),
    Field(
        name="task",
        metavar="|".join(TASKS),
        choices=TASKS,
        help="what the outputs mean; auto infers it from the labels, the loss and the names of the outputs",
    ),
    Field(
        name="output",
        metavar="NAME",
        help="name of the output whose predictions are judged, where the network has several",
    ),
    Field(
        name="batch-dim",
        metavar="N",
        read=whole(0),
        help="dimension of the inputs along which the examples lie; 1 where time comes first (default: 0)",
    ),
)

#: Short for an option of ``kl.loss``.
KL_LOSS = (
    Field(name="kl-weight", metavar="W", read=positive, help="expect this weight of the KL term in the loss"),
    Field(name="num-batches", metavar="M", read=whole(1), help="expect the weight 1/M, for M batches an epoch"),
    Field(
        name="num-data",
        metavar="N",
        read=whole(1),
        help="number of training examples: expect the weight 1/N of a summed KL beside a mean data term",
    ),
)

ALLOW = "allow"
ALLOW_HELP = (
    "layers that are deterministic on purpose, and modules in which the examples of a batch meet on purpose, by path; "
    "may be repeated"
)


def reading(read: Callable[[str], T]) -> Callable[[str], T]:
    """Let argparse say what a text should have been."""

    def of_argument(text: str) -> T:
        try:
            return read(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r} is not {read.__doc__}") from None

    return of_argument
