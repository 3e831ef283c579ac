"""What is audited: a model with its teacher, images and training loss, and the passes its checks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.errors import InputError
from pytest_bnn.libraries.alignment import Alignment, Standing, align, standing_of
from pytest_bnn.records.evidence import Stage
from pytest_bnn.records.recorder import default_subject_name
from pytest_bnn.sampling.bank import ForwardError, PassBank
from pytest_bnn.training.finetune import Loss

StageOption: TypeAlias = Literal["auto", "converted", "finetuned"]


class Given(TypedDict, total=False):
    """What every check takes beside the model, by name; see `Subject`."""

    teacher: nn.Module | None
    images: Tensor | None
    labels: Tensor | None
    loss: Loss | None
    name: str
    stage: StageOption
    seed: int
    class_names: Sequence[str]


class Subject:
    """A model under audit.

    Args:
        model: The Bayesian network. Judged in eval mode; it is never changed.
        teacher: The deterministic network that it was converted from.
        images: Inputs ``[N, ...]`` that both networks accept; they are moved to the model's device and dtype.
        labels: Class indices ``[N]``, for the user's loss and the report; or what else the loss takes, one an image.
        loss: The training loss, ``loss(model, (images, labels)) -> scalar tensor``.
        name: How the report calls it; the running test's name, or "model", when empty.
        stage: ``"converted"``, ``"finetuned"``, or ``"auto"``: see `libraries.alignment.standing_of`.
        seed: Of all randomness in the audit.
        class_names: For the report.

    Raises:
        TypeError: An argument is of the wrong type.
        InputError: The images, the labels or the parameters of a network cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        teacher: nn.Module | None = None,
        images: Tensor | None = None,
        labels: Tensor | None = None,
        loss: Loss | None = None,
        name: str = "",
        stage: StageOption = "auto",
        seed: int = 0,
        class_names: Sequence[str] = (),
    ) -> None:
        for role, value in (("model", model), ("teacher", teacher)):
            if not isinstance(value, nn.Module) and not (value is None and role == "teacher"):
                raise TypeError(f"{role} must be a torch.nn.Module, not {type(value).__name__}")
            _require_weights(role, value)
        if loss is not None and not callable(loss):
            raise TypeError(f"loss must be a function loss(model, batch), not {type(loss).__name__}")
        if stage not in ("auto", "converted", "finetuned"):
            raise ValueError(f"stage must be 'auto', 'converted' or 'finetuned', not {stage!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number from 0, not {seed!r}")
        _require_usable(images, labels)
        self.model = model
        self.teacher = teacher
        self.images = images if images is None else fitted(images, model)
        self.labels = labels
        self.loss = loss
        self.name = name or default_subject_name()
        self.seed = seed
        self.class_names = tuple(class_names)
        self._stage_option = stage
        self._alignment: Alignment | None = None
        self._standing: Standing | None = None
        self._bank: PassBank | None = None
        self._teacher_output: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module | Subject, given: Given) -> Subject:
        """Take a subject as it is, or make one from a model and what was given beside it."""
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
        """What the model is, and why."""
        if self._standing is None:
            told = self._stage_option
            self._standing = (
                standing_of(self.alignment) if told == "auto" else Standing(told, "the stage was given", told=True)
            )
        return self._standing

    @property
    def alignment(self) -> Alignment:
        """Which module of the teacher is which of the model."""
        if self._alignment is None:
            self._alignment = align(self.model, self.teacher)
        return self._alignment

    @property
    def bank(self) -> PassBank:
        """The Monte-Carlo passes over the images, shared by all checks."""
        if self._bank is None:
            self._bank = PassBank(self.model, self.require_images(), self.seed)
        return self._bank

    @property
    def asked(self) -> int:
        """How often passes were asked for."""
        return 0 if self._bank is None else self._bank.asked

    @property
    def sampler(self) -> str:
        """What draws the passes, and why, in words; empty where none was drawn."""
        return "" if self._bank is None else self._bank.sampler

    def require_images(self) -> Tensor:
        """Give the images; `Check.run` has made sure that there are some."""
        assert self.images is not None
        return self.images

    def teacher_output(self) -> Tensor:
        """Give the teacher's output on all images, computed once, on the model's device.

        Raises:
            InputError: The teacher does not accept the images, or says nothing finite about some.
        """
        if self._teacher_output is None:
            assert self.teacher is not None
            images = fitted(self.require_images(), self.teacher)
            try:
                output = PassBank(self.teacher, images, self.seed, sampler="own").first(1)[0]
            except ForwardError as error:
                raise does_not_accept("teacher", self.teacher, images, error) from error
            _require_finite(self.teacher, output)
            self._teacher_output = output.to(self.require_images().device)
        return self._teacher_output

    def try_images(self) -> None:
        """Make sure that the images suit: the teacher accepts them or, without a teacher, the model.

        Raises:
            InputError: They do not suit.
        """
        if self.images is None:
            return
        if self.teacher is not None:
            self.teacher_output()
            return
        try:
            self.bank.draw(0, 1, torch.arange(1))
        except ForwardError as error:
            raise does_not_accept("model", self.model, self.images, error) from error


def does_not_accept(role: str, model: nn.Module, images: Tensor, error: ForwardError) -> InputError:
    """Word the error of a network that cannot take the images."""
    return InputError(
        f"the {role} {type(model).__name__} does not accept images of shape {list(images.shape)} "
        f"and dtype {str(images.dtype).removeprefix('torch.')} ({error})",
        fix="give data that fits it: --data MODULE:FACTORY, or images= in Python",
    )


def fitted(images: Tensor, model: nn.Module) -> Tensor:
    """Move images to the device and, where both are floating point, the dtype of a model."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    if reference is None:
        return images
    dtype = reference.dtype if images.is_floating_point() else images.dtype
    return images.to(device=reference.device, dtype=dtype)


def _require_usable(images: Tensor | None, labels: Tensor | None) -> None:
    if labels is not None and not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor [N], not {type(labels).__name__}")
    if images is None:
        return
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, ...], not {type(images).__name__}")
    if images.ndim < 2 or len(images) == 0:
        raise InputError(f"images have the shape {list(images.shape)}", fix="give a batch [N, ...] with N at least 1")
    if rows := _rows_not_finite(images):
        raise InputError(
            f"{len(rows)} of {len(images)} images hold NaN or infinity, the first is number {rows[0]}",
            fix="remove them, or mend the transform that made them",
        )
    if labels is not None and labels.shape[:1] != images.shape[:1]:
        given = f"{len(labels)} labels" if labels.ndim else "labels without a dimension"
        raise InputError(f"there are {len(images)} images and {given}", fix="give one label for each image")


def _require_weights(role: str, network: nn.Module | None) -> None:
    """Refuse parameters that hold no numbers, or that no gradient can reach."""
    parameters = () if network is None else network.named_parameters()
    for name, parameter in ((name, parameter) for name, parameter in parameters if not is_lazy(parameter)):
        if parameter.is_meta:
            raise InputError(
                f"the {role}'s {name} is on the meta device, without numbers", fix="load its weights before the audit"
            )
        if parameter.is_inference():
            raise InputError(
                f"the {role}'s {name} was made in inference mode: no gradient can reach it",
                fix="build, convert or load the network outside of torch.inference_mode()",
            )


def _rows_not_finite(values: Tensor) -> list[int]:
    """Give the numbers of the rows that hold NaN or infinity."""
    found: list[int] = (~torch.isfinite(values)).unsqueeze(-1).flatten(1).any(1).nonzero().flatten().tolist()
    return found


def _require_finite(teacher: nn.Module, output: Tensor) -> None:
    """Refuse a teacher that no network could agree with."""
    rows = _rows_not_finite(output)
    if not rows:
        return
    # Infinity in a buffer may be a mask's.
    sick = [name for name, value in teacher.named_parameters() if not bool(torch.isfinite(value).all())]
    sick += [name for name, value in teacher.named_buffers() if bool(torch.isnan(value).any())]
    raise InputError(
        f"the outputs of the teacher {type(teacher).__name__} are NaN or infinite for {len(rows)} of {len(output)} "
        f"images, number {rows[0]} first" + (f", and so is its {sick[0]}" if sick else ""),
        fix="load its weights again; where the model shares memory with it, as after bayesian-torch's utils.MOPED(), "
        "training the model changed it"
        if sick
        else "leave these images out, or look where its forward divides, takes a logarithm or overflows",
    )
