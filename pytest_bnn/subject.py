"""What is audited: a model with its teacher, examples and training loss, and the passes its checks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeAlias, TypedDict, get_args

import torch
from torch import Tensor, nn

from pytest_bnn.data.batch import Batch, Inputs, device_of
from pytest_bnn.data.factory import Factory
from pytest_bnn.data.fitting import fitted as fitted
from pytest_bnn.data.given import (
    batch_for_loss,
    does_not_accept,
    given_samples,
    labels_in,
    require_finite_answers,
    require_finite_inputs,
    require_weights,
)
from pytest_bnn.data.loss import BATCH, Loss
from pytest_bnn.data.probing import Probed, probe
from pytest_bnn.libraries.alignment import Alignment, Standing, align, standing_of
from pytest_bnn.libraries.history import Trace, traces
from pytest_bnn.network.calling import Field, ForwardError
from pytest_bnn.records.evidence import Stage
from pytest_bnn.records.recorder import default_subject_name
from pytest_bnn.sampling.bank import PassBank
from pytest_bnn.tasks.deciding import decide, decide_each
from pytest_bnn.tasks.reached import gradients_at_outputs
from pytest_bnn.tasks.task import Task, TaskOption

StageOption: TypeAlias = Literal["auto", "converted", "finetuned"]


class Given(TypedDict, total=False):
    """The arguments that every check takes beside the model; see `Subject`."""

    teacher: nn.Module | None
    images: Any
    labels: Any
    loss: Loss | None
    name: str
    stage: StageOption
    seed: int
    class_names: Sequence[str]
    task: TaskOption
    output: str | None
    factory: Callable[[], nn.Module] | None


class Subject:
    """A model under audit.

    Args:
        model: The Bayesian network. Judged in eval mode; it is never changed.
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
        factory: The function without arguments that made the model. Where that is quick, it is called again, by claims
            about another model that it makes.

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
    ) -> None:
        for role, value in (("model", model), ("teacher", teacher)):
            if not isinstance(value, nn.Module) and not (value is None and role == "teacher"):
                raise TypeError(f"{role} must be a torch.nn.Module, not {type(value).__name__}")
            require_weights(role, value)
        if loss is not None and not callable(loss):
            raise TypeError(f"loss must be a function loss(model, batch), not {type(loss).__name__}")
        if factory is not None and (not callable(factory) or isinstance(factory, nn.Module)):
            raise TypeError(f"factory must be a function without arguments, not {type(factory).__name__}")
        if stage not in ("auto", "converted", "finetuned"):
            raise ValueError(f"stage must be 'auto', 'converted' or 'finetuned', not {stage!r}")
        if task not in get_args(TaskOption):
            raise ValueError(f"task must be one of {', '.join(get_args(TaskOption))}, not {task!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number from 0, not {seed!r}")
        self._samples, self._labels = given_samples(images, labels)
        self.model = model
        self.teacher = teacher
        self.loss = loss
        self.factory = factory if factory is None or isinstance(factory, Factory) else Factory(factory)
        self.name = name or default_subject_name()
        self.seed = seed
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
        self._probed: Probed | None = None
        self._inputs: Inputs | None = None
        self._task: Task | None = None
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
    def notes(self) -> tuple[str, ...]:
        """What the evidence should say about how the networks take the examples."""
        found = self.probed
        return () if found is None else found.notes

    @property
    def fields(self) -> tuple[Field, ...]:
        """The tensors of the model's output, in the order in which `forward` puts them side by side."""
        found = self.probed
        return () if found is None else found.fields

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
        return self.teacher_output() if self.teacher is not None else self.bank.first(1)[0]

    @property
    def bank(self) -> PassBank:
        """The Monte-Carlo passes over the images, shared by all checks."""
        if self._bank is None:
            self._bank = PassBank(self.model, self.require_images(), self.seed)
        return self._bank

    @property
    def asked(self) -> int:
        """How often a check has asked for passes."""
        return 0 if self._bank is None else self._bank.asked

    @property
    def sampler(self) -> str:
        """What draws the passes, and why, in words; empty where none was drawn."""
        return "" if self._bank is None else self._bank.sampler

    def missing(self, need: str) -> str:
        """Say why something that a check needs is not there; empty where it is."""
        if need == "images" and self.probed is not None and self.probed.rowless:
            return f"{self.probed.rowless}: its outputs belong to no single example"
        return "" if getattr(self, need) is not None else HOW_TO_GIVE[need]

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

    def teacher_output(self) -> Tensor:
        """Return the teacher's output on all images, computed once, on the model's device.

        Raises:
            InputError: The teacher does not accept the images, or its outputs are NaN or infinite for some.
        """
        if self._teacher_output is None:
            assert self.teacher is not None
            images = fitted(self.require_images(), self.teacher)
            try:
                output = PassBank(self.teacher, images, self.seed, sampler="own").first(1)[0]
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


#: How to give what a check needs.
HOW_TO_GIVE = {
    "teacher": "no teacher was given: --teacher MODULE:FACTORY, or teacher= in Python",
    "images": "no images were given: --data MODULE:FACTORY, or images= in Python",
    "loss": "no training loss was given: --loss MODULE:FUNCTION, or loss= in Python",
}
