"""What is audited, by name: the functions that make a model and its data, as a command line or a table names them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import nn

from pytest_bnn.audit.plan import Explicit, not_given
from pytest_bnn.audit.run import Progress, audit_model, subject_of
from pytest_bnn.data import checkpoints, origin, placement, sources
from pytest_bnn.data.large import UNREADABLE, LargeData, Workers
from pytest_bnn.data.origin import Origin, files_read
from pytest_bnn.data.samples import MAX_EXAMPLES, Samples
from pytest_bnn.errors import InputError, PytestBnnError, in_words
from pytest_bnn.network.isolation import seed_everything
from pytest_bnn.options import in_force
from pytest_bnn.subject import StageOption, Subject
from pytest_bnn.tasks.task import TaskOption

T = TypeVar("T")

if TYPE_CHECKING:
    from pytest_bnn.data.factory import Factory
    from pytest_bnn.data.loss import Loss
    from pytest_bnn.records.run import AuditRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """The parts of an audit as plain values, which cross a process boundary: ``"MODULE:NAME"`` for each of them.

    ``images`` is the most examples that are used; the other fields are those of `audit_model`.
    """

    model: str
    teacher: str | None = None
    data: str | None = None
    evaluation: str | None = None
    ood: str | None = None
    shifts: str | None = None
    slices: str | None = None
    loss: str | None = None
    stage: StageOption = "auto"
    task: TaskOption = "auto"
    output: str | None = None
    images: int = MAX_EXAMPLES
    batch_dim: int = 0
    evaluation_images: int | Literal["all"] | None = None
    shard_size: int | None = None
    unreadable: float = UNREADABLE

    def load(self, called: str = "--{}", seed_parts: bool = False) -> Parts:
        """Import what is named, call the factories, and move the networks to the device of the settings.

        Args:
            called: How messages call a part, with the part's name in place of the braces.
            seed_parts: Whether the global generators start anew before each factory, so that what draws without a seed
                of its own is the same in every process. They are not put back.

        Raises:
            InputError: A name or what it stands for cannot be used; whatever it raises is told, an exit too.
        """
        seed, start = in_force().seed, Path.cwd()

        def part(name: str, load: Callable[[str, str], T], named: str | None) -> T | None:
            if named is None:
                return None
            if seed_parts:
                seed_everything(seed)
            with reading():
                return load(named, called.format(name))

        def examples(name: str, option: str) -> Samples:
            return sources.load_data(name, option, self.images, seed=seed, dim=self.batch_dim)

        def labelled(name: str, option: str) -> Samples | LargeData:
            if self.evaluation_images is None:
                return examples(name, option)
            found = sources.load_named(name, option)
            return LargeData.of(
                found, self.evaluation_images, source=f"{option}: {name}", few=self.images, seed=seed,
                dim=self.batch_dim, shard_size=self.shard_size, unreadable=self.unreadable,
            )  # fmt: skip

        said = {"shard-size": self.shard_size is not None, "unreadable": self.unreadable != UNREADABLE}
        alone = [name for name, given in said.items() if given and self.evaluation_images is None]
        if alone:
            raise InputError(
                f"{called.format(alone[0])} without {called.format('evaluation-images')}",
                fix=f"say how many examples are judged shard by shard: {called.format('evaluation-images')} N",
            )
        if self.evaluation is None and self.evaluation_images is not None:
            raise InputError(
                f"{called.format('evaluation-images')} without {called.format('evaluation')}",
                fix=f"name the labelled examples with {called.format('evaluation')} MODULE:FACTORY",
            )

        with files_read() as of_model:
            made = part("model", sources.load_model_and_factory, self.model)
        assert made is not None
        model, factory = made
        with files_read() as beside:
            teacher = part("teacher", sources.load_model, self.teacher)
            data, evaluation = part("data", examples, self.data), part("evaluation", labelled, self.evaluation)
            ood, shifts = part("ood", sources.load_named, self.ood), part("shifts", sources.load_named, self.shifts)
            slices = part("slices", sources.load_function, self.slices)
            loss = part("loss", sources.load_loss, self.loss)
        placement.take(model, teacher)
        named = {part: name for part, name in asdict(self).items() if part in _BY_NAME and name is not None}
        return Parts(
            named=self,
            model=model,
            factory=factory,
            teacher=teacher,
            data=data,
            evaluation=evaluation,
            ood=ood,
            shifts=shifts,
            slices=slices,
            loss=loss,
            of_model=Origin(files=of_model.digests()),
            beside=Origin(
                sources={part: origin.named(name, start) for part, name in named.items()}, files=beside.digests()
            ),
        )


#: The fields of `Named` that name something.
_BY_NAME = ("model", "teacher", "data", "evaluation", "ood", "shifts", "slices", "loss")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Parts:
    """What `Named` stands for, loaded; ``model`` is what its factory gave.

    ``of_model`` and ``beside`` say which files were read for the model, and for all else.
    """

    named: Named
    model: nn.Module
    factory: Factory | None
    teacher: nn.Module | None
    data: Samples | None
    evaluation: Samples | LargeData | None
    ood: Any
    shifts: Any
    slices: Callable[[int], object] | None
    loss: Loss | None
    of_model: Origin
    beside: Origin

    @property
    def origin(self) -> Origin:
        """Where all of it came from."""
        return Origin(sources=self.beside.sources, files=(*self.of_model.files, *self.beside.files))

    def with_state(self, path: str | Path, name: str = "") -> Parts:
        """Return a copy of the network with the state of a checkpoint, beside the same teacher, data and loss.

        Args:
            path: The checkpoint.
            name: How messages call it; its path when empty.

        Raises:
            WeightsError: It cannot be read, or does not fit; see `pytest_bnn.data.checkpoints.load_into`.
        """
        model = copy.deepcopy(self.model)
        with files_read() as read:
            checkpoints.load_into(model, path, name)
        return replace(self, model=model, factory=None, of_model=Origin(files=read.digests()))

    def with_model(self, model: str, called: str = "--{}") -> Parts:
        """Return another network with the same teacher, data and loss.

        Args:
            model: Its factory, ``MODULE:FACTORY``.
            called: As in `Named.load`.

        Raises:
            InputError: As in `Named.load`.
        """
        start = Path.cwd()
        with reading(), files_read() as read:
            made, factory = sources.load_model_and_factory(model, called.format("model"))
        placement.take(made)
        return replace(
            self,
            named=replace(self.named, model=model),
            model=made,
            factory=factory,
            of_model=Origin(files=read.digests()),
            beside=replace(self.beside, sources={**self.beside.sources, "model": origin.named(model, start)}),
        )

    def audit(
        self,
        *,
        name: str = "",
        checks: Iterable[str] | None = None,
        options: Explicit | None = None,
        progress: Progress | None = None,
        executor: Workers | None = None,
    ) -> AuditRun:
        """Run every applicable check.

        Args:
            name: The subject's; that of the factory when empty.
            checks: As in `audit_model`.
            options: As in `audit_model`.
            progress: As in `audit_model`.
            executor: As in `audit_model`.
        """
        return audit_model(
            self.model,
            checks=checks,
            options=options,
            progress=progress,
            origin=self.origin,
            executor=executor if isinstance(self.evaluation, LargeData) else None,
            **self._beside(name),
        )

    def subject(self, *, name: str = "") -> Subject:
        """Return what `audit` judges, to be judged check by check.

        Args:
            name: As in `audit`.
        """
        return subject_of(self.model, **self._beside(name))

    @property
    def missing(self) -> list[str]:
        """What was not given, as in the checks' ``needs``."""
        return not_given(teacher=self.teacher, data=self.data, loss=self.loss, slices=self.slices)

    def _beside(self, name: str) -> dict[str, Any]:
        return {
            "teacher": self.teacher,
            "data": self.data,
            "loss": self.loss,
            "name": name or self.named.model,
            "stage": self.named.stage,
            "max_images": self.named.images,
            "task": self.named.task,
            "output": self.named.output,
            "batch_dim": self.named.batch_dim,
            "factory": self.factory,
            "evaluation": self.evaluation,
            "ood": self.ood,
            "shifts": self.shifts,
            "slices": self.slices,
        }


@contextmanager
def reading() -> Iterator[None]:
    """Let whatever a factory or a data set raises be wrong input, an exit too."""
    try:
        yield
    except (PytestBnnError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise InputError(
            f"reading the model, the teacher, the data and the loss raised {in_words(error)}",
            fix="make it work in Python first; -v shows the traceback",
        ) from error
