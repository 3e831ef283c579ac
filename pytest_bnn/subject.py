"""What is audited: a model with its teacher, examples and training loss, and the passes its checks share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import torch
from torch import Tensor, nn

from pytest_bnn.data import placement
from pytest_bnn.data.batch import device_of
from pytest_bnn.data.examples import Examples
from pytest_bnn.data.factory import Factory
from pytest_bnn.data.fitting import fitted as fitted
from pytest_bnn.data.given import (
    HOW_TO_GIVE,
    does_not_accept,
    named_series,
    named_sets,
    require_finite_answers,
    require_functions,
    require_weights,
)
from pytest_bnn.data.large import LargeData
from pytest_bnn.data.loss import Loss
from pytest_bnn.data.samples import Samples
from pytest_bnn.libraries.alignment import Alignment, Standing, align, standing_of
from pytest_bnn.libraries.history import Trace, traces
from pytest_bnn.network.calling import ForwardError
from pytest_bnn.records.evidence import Stage
from pytest_bnn.records.recorder import default_subject_key, default_subject_name
from pytest_bnn.sampling.bank import PassBank
from pytest_bnn.tasks.deciding import decide, decide_each
from pytest_bnn.tasks.reached import gradients_at_outputs
from pytest_bnn.tasks.task import Task, TaskOption

StageOption: TypeAlias = Literal["auto", "converted", "finetuned"]


class About(TypedDict, total=False):
    """The arguments of `Subject` that are no examples."""

    teacher: nn.Module | None
    loss: Loss | None
    name: str
    stage: StageOption
    class_names: Sequence[str]
    task: TaskOption
    output: str | None
    factory: Callable[[], nn.Module] | None
    slices: Callable[[int], object] | None


class Given(About, total=False):
    """The arguments that every check takes beside the model; see `Subject`."""

    images: Any
    labels: Any
    seed: int
    evaluation: Any
    ood: Any
    shifts: Any


class Subject(Examples):
    """A model under audit.

    Args:
        model: The Bayesian network. Judged in eval mode; it is never changed. Where the settings name another device
            than its own, a copy of it is judged there.
        teacher: The deterministic network that it was converted from.
        images: Inputs that both networks accept: a tensor ``[N, ...]``, several as the network takes them (a tuple, a
            dictionary, any tree of tensors or numpy arrays), or `Samples` (of `pytest_bnn.data.samples`), which may
            hold labels too. They are moved to the model's device and dtype.
        labels: For the loss, the task and the report: class indices ``[N]``, or whatever else the loss takes, with a
            row for each example.
        loss: The training loss, ``loss(model, batch) -> scalar tensor``; the batch has the structure of the data,
            ``(images, labels)`` where both are given.
        name: The name in the report; the running test's name, or "model", when empty.
        stage: ``"converted"``, ``"finetuned"``, or ``"auto"``: see `libraries.alignment.standing_of`.
        seed: The seed of all randomness in the audit.
        class_names: The names of the classes, for the report.
        task: What the outputs mean; ``"auto"`` lets labels, loss and names decide: see `pytest_bnn.tasks`.
        output: The name of the output that the task's claims are about, where the network gives several.
        factory: What made the model, a function without arguments. It is called again, where that is quick, by claims
            about what another model of it does.
        evaluation: Labelled examples ``(images, labels)`` on which claims about the predictions are judged, where those
            in ``images`` are too easy for it; these when None. More than memory holds are a `LargeData`.
        ood: Examples that are none of the model's task, or several such sets by name.
        shifts: The examples in ``images``, in the same order, at growing amounts of a shift: a list of such sets, or
            several lists by name.
        slices: Returns the group of an example by its number in the data (in those of ``evaluation``, where they are
            given); None leaves it out.

    Raises:
        TypeError: An argument is of the wrong type.
        InputError: The images, the labels or the parameters of a network cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        teacher: nn.Module | None = None,
        images: Any = None,
        labels: Any = None,
        loss: Loss | None = None,
        name: str = "",
        stage: StageOption = "auto",
        seed: int = 0,
        class_names: Sequence[str] = (),
        task: TaskOption = "auto",
        output: str | None = None,
        factory: Callable[[], nn.Module] | None = None,
        evaluation: Any = None,
        ood: Any = None,
        shifts: Any = None,
        slices: Callable[[int], object] | None = None,
    ) -> None:
        for role, value in (("model", model), ("teacher", teacher)):
            if not isinstance(value, nn.Module) and not (value is None and role == "teacher"):
                raise TypeError(f"{role} must be a torch.nn.Module, not {type(value).__name__}")
            require_weights(role, value)
        require_functions(loss, factory, slices)
        if stage not in ("auto", "converted", "finetuned"):
            raise ValueError(f"stage must be 'auto', 'converted' or 'finetuned', not {stage!r}")
        if task not in get_args(TaskOption):
            raise ValueError(f"task must be one of {', '.join(get_args(TaskOption))}, not {task!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number from 0, not {seed!r}")
        model, teacher = placement.judged(model, teacher)
        super().__init__(model, teacher, images, labels, seed)
        self.loss = loss
        self.factory = factory if factory is None or isinstance(factory, Factory) else Factory(factory)
        self.name = name or default_subject_name()
        self.key = "" if name else default_subject_key()
        self.class_names = tuple(class_names)
        self._stage_option = stage
        self._task_option: TaskOption = task
        self._output = output
        self._alignment: Alignment | None = None
        self._standing: Standing | None = None
        self._shown: Standing | None = None
        self._traces: tuple[Trace, ...] | None = None
        self._bank: PassBank | None = None
        self._teacher_output: Tensor | None = None
        self._task: Task | None = None
        #: Labelled examples that are judged shard by shard; None where there are none.
        self.large = evaluation if isinstance(evaluation, LargeData) else None
        self._evaluation = evaluation if self.large is None else self.large.few
        self._ood, self._shifts = named_sets(ood, images), named_series(shifts)
        self.slices = slices
        self._beside: dict[tuple[object, ...], Subject] = {}
        self._origin: Subject | None = None
        #: What checks of the loss found out about it, for each other.
        self.evaluations: dict[str, object] = {}

    @classmethod
    def of(cls, model: nn.Module | Subject, given: Given) -> Subject:
        """Return a subject as it is, or a new one of a model and of what was given beside it."""
        if not isinstance(model, Subject):
            return cls(model, **given)
        if given:
            raise TypeError(f"a Subject already says what {', '.join(sorted(given))} is; give it there")
        return model

    def on(self, images: Any, labels: Any = None) -> Subject:
        """Return the same model and teacher with other examples, and with passes of their own."""
        other = copy.copy(self)
        other._give(images, labels)
        other._take_as(self)
        other._bank = other._teacher_output = None
        other._task = None if self.images is None or labels is not None else self.task
        other._evaluation, other._ood, other._shifts, other.large = None, {}, {}, None
        other._beside, other.evaluations = {}, {}
        other._origin = self
        return other

    def beside(self, samples: Samples, task: Task) -> Subject:
        """Return the same model and teacher with more examples of the same kind, of which the task is known."""
        other = self.on(samples)
        other._task = task
        return other

    def _on(self, place: tuple[object, ...], examples: Any) -> Subject:
        """Return the subject on examples that were given beside its own; made once for each place."""
        if place not in self._beside:
            self._beside[place] = self.on(examples)
        return self._beside[place]

    @property
    def evaluated(self) -> Subject:
        """The examples with labels on which claims about the predictions are judged: this subject's own, or others."""
        if self._evaluation is None:
            return self
        new = ("evaluation",) not in self._beside
        found = self._on(("evaluation",), self._evaluation)
        if new:
            found._task = None  # their labels may tell it
        return found

    @property
    def outside(self) -> dict[str, Subject]:
        """The sets of examples that are none of the model's task, by name."""
        return {name: self._on(("ood", name), examples) for name, examples in self._ood.items()}

    @property
    def shifted(self) -> dict[str, list[Subject]]:
        """The same examples at growing amounts of a shift, by name; empty where no such series were given."""
        return {
            name: [self._on(("shift", name, number), examples) for number, examples in enumerate(steps)]
            for name, steps in self._shifts.items()
        }

    @property
    def example_sets(self) -> Mapping[tuple[object, ...], Subject]:
        """This subject, under (), and those on other examples that were asked for so far, by which these are."""
        return {(): self, **self._beside}

    @property
    def stage(self) -> Stage:
        """What the model is: as told, or found by `libraries.alignment.standing_of`."""
        return self.standing.stage

    @property
    def standing(self) -> Standing:
        """The stage of the model, and the evidence for it."""
        if self._standing is None:
            told = self._stage_option
            self._standing = self.shown if told == "auto" else Standing(told, "the stage was given", told=True)
        return self._standing

    @property
    def shown(self) -> Standing:
        """The stage that the model's weights show, whatever stage was given."""
        if self._shown is None:
            pairs = {(id(tensor.module), tensor.mu_name) for tensor, _ in self.alignment.pairs}
            prints = [t.print for t in self.traces if (id(t.tensor.module), t.tensor.mu_name) in pairs] if pairs else []
            self._shown = standing_of(self.alignment, prints)
        return self._shown

    @property
    def traces(self) -> tuple[Trace, ...]:
        """What each posterior tensor tells of its history."""
        if self._traces is None:
            self._traces = traces(self.model, self.teacher, self.alignment)
        return self._traces

    @property
    def alignment(self) -> Alignment:
        """The module of the model that each module of the teacher became."""
        if self._alignment is None:
            self._alignment = align(self.model, self.teacher)
        return self._alignment

    @property
    def task(self) -> Task:
        """What the outputs mean, and by what evidence; decided once."""
        if self._task is None:
            self._task = decide(
                self._task_option,
                output=self._output,
                fields=self.fields,
                example=self.forward_once(),
                labels=self.labels,
                classes=len(self.class_names),
                reached=cache(lambda: gradients_at_outputs(self.model, self.loss, self.loss_batch, self.seed)),
            )
        return self._task

    @property
    def heads(self) -> tuple[Task, ...]:
        """What the outputs mean, one by one: `task` first, then those of which labels, loss or names tell it, too.

        Where the user names an output it is the only one.
        """
        main = self.task
        if self._output is not None or len(self.fields) < 2 or self.teacher is None:
            return (main,)
        if self.teacher_output().shape[-1] != sum(field.size for field in self.fields):
            return (main,)
        reached = cache(lambda: gradients_at_outputs(self.model, self.loss, self.loss_batch, self.seed))
        return decide_each(
            main, fields=self.fields, example=self.forward_once(), labels=self.labels_of, reached=reached
        )

    def labels_of(self, output: str) -> Any:
        """Return the labels of one output: those of its name, where they have names; all where there is one output."""
        labels = self.labels
        if isinstance(labels, Mapping):
            return labels.get(output, labels.get(output.rpartition(".")[2]))
        return labels if len(self.fields) < 2 or (self._task is not None and output == self._task.field) else None

    def forward_once(self) -> Tensor:
        """Return outputs on all images as an example: the teacher's if there is one, else those of the first pass."""
        return self.teacher_output() if self.teacher is not None else self.bank.example()

    @property
    def bank(self) -> PassBank:
        """The Monte-Carlo passes over the images, shared by all checks."""
        if self._bank is None:
            like = None if self._origin is None or self._origin.images is None else self._origin.bank
            numbers = sum(field.size for field in self.fields) or 1000
            self._bank = PassBank(self.model, self.require_images(), self.seed, like=like, numbers=numbers)
        return self._bank

    @property
    def samplers(self) -> dict[str, None]:
        """What drew the passes that were given out since this was cleared, and why, in words."""
        return {} if self._bank is None else self._bank.used

    @property
    def drawn(self) -> int:
        """The number of passes on all images that were drawn so far, by whichever process."""
        return 0 if self._bank is None else self._bank.drawn

    def missing(self, need: str) -> str:
        """Say why something that a check needs is not there; empty where it is."""
        if need == "images" and self.probed is not None and self.probed.rowless:
            return f"{self.probed.rowless}: its outputs belong to no single example"
        return "" if getattr(self, need) is not None else HOW_TO_GIVE[need]

    def teacher_output(self) -> Tensor:
        """Return the teacher's output on all images, computed once, on the model's device.

        Raises:
            InputError: The teacher does not accept the images, or its outputs are NaN or infinite for some.
        """
        if self._teacher_output is None:
            assert self.teacher is not None
            images = fitted(self.require_images(), self.teacher)
            try:
                output = PassBank(self.teacher, images, self.seed, sampler="own").draw(0, 1)[0]
            except ForwardError as error:
                raise does_not_accept("teacher", self.teacher, images, error) from error
            require_finite_answers(self.teacher, output)
            self._teacher_output = output.to(device_of(self.require_images()))
        return self._teacher_output

    def try_images(self) -> None:
        """Make sure that the teacher, or without one the model, accepts the images.

        Raises:
            InputError: It does not.
        """
        if self.images is None:
            return
        if self.teacher is not None:
            self.teacher_output()
            return
        try:
            self.bank.draw(0, 1, torch.arange(1))
        except ForwardError as error:
            raise does_not_accept("model", self.model, self.require_images(), error) from error
