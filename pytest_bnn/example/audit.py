"""The audit of a ResNet18 from its weights to its report: converted, fine-tuned, and both judged."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pytest_bnn.audit.beside import elsewhere, side_by_side
from pytest_bnn.audit.plan import Thresholds, merged
from pytest_bnn.audit.provenance import lasting
from pytest_bnn.audit.run import audit_model, planned
from pytest_bnn.checks import choices, registry
from pytest_bnn.conversion import Conversion, convert_with
from pytest_bnn.data.origin import Origin
from pytest_bnn.example.images import digits, outside_digits, suitable
from pytest_bnn.example.weights import Teacher
from pytest_bnn.options import budget_in_force, in_force, preset_in_force
from pytest_bnn.progress import Event, Progress
from pytest_bnn.records.recorder import record_run
from pytest_bnn.records.run import AuditRun, FileDigest, TrainingStep
from pytest_bnn.training.finetune import STEPS, batch_size, distillation_loss, finetune, number_of_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

#: Images of each set from outside of the task, and those that are corrupted: as many as a verdict takes.
_OUTSIDE, _CORRUPTED = 96, 64
_NO_FINE_TUNING = "the preset fine-tunes no copy: the fresh conversion alone is judged"


def audit_resnet18(
    teacher: Teacher,
    conversion: Conversion,
    *,
    checks: Iterable[str] | None = None,
    seed: int | None = None,
    thresholds: Thresholds | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    progress: Progress | None = None,
    files: tuple[FileDigest, ...] = (),
) -> AuditRun:
    """Convert a ResNet18, fine-tune a copy toward its teacher, and audit both: the fresh and the fine-tuned.

    The images are those bundled for the teacher's task. Without an expectation the KL term of the fine-tuning loss is
    expected at 1 / number of batches, which is what it is trained with. ``files`` are those that the teacher was read
    from, for the report.
    """
    start, watcher = time.perf_counter(), progress or (lambda _: None)
    chosen = None if checks is None else registry.chosen(checks)
    ids = tuple(step.id for step in planned(chosen, thresholds, options))  # wrong input is told before the training
    seed = int(in_force().seed) if seed is None else seed
    train, _ = suitable(teacher.images, "train")
    data = suitable(teacher.images, "held_out")
    batch = batch_size(train)
    batches = number_of_batches(len(train), batch)
    explicit = merged(options or {})
    explicit = merged({"uncertainty.shift": {"examples": _CORRUPTED}}, explicit)
    if not _weight_is_expected(thresholds, explicit):
        explicit = merged({"kl.loss": {"num_batches": batches}}, explicit)
    budget = budget_in_force() if thresholds is None else thresholds.budget
    watcher(Event(note="converting"))
    converted = convert_with(teacher.model, conversion)
    loss = distillation_loss(teacher.model, 1 / batches)
    fine_tunes = preset_in_force().fine_tunes
    names = ["resnet18 converted", *(["resnet18 fine-tuned"] if fine_tunes else [])]

    def judged(place: int, model: nn.Module, steps: Sequence[TrainingStep] = ()) -> AuditRun:
        return audit_model(
            model,
            teacher=teacher.model,
            data=data,
            evaluation=digits("hard") if teacher.images == "digits" else None,
            ood=outside(teacher.images),
            loss=loss,
            checks=chosen,
            name=names[place],
            seed=seed,
            class_names=teacher.class_names,
            thresholds=thresholds,
            options=explicit,
            budget=budget.split(len(names)),
            training=steps,
            progress=None if progress is None else functools.partial(_told_of_all, progress, ids, len(names), place),
            origin=Origin(
                sources=_sources(teacher, "converted and fine-tuned here" if steps else "converted here"), files=files
            ),
        )

    if fine_tunes:
        with side_by_side(len(names)), elsewhere(lambda: judged(0, converted), received=record_run) as first:
            finetuned = copy.deepcopy(converted)
            watcher(Event(note="fine-tuning"))
            trajectory = finetune(
                finetuned,
                teacher.model,
                train,
                batch=batch,
                seed=seed,
                class_names=teacher.class_names,
                progress=lambda step: watcher(Event(note=_step_in_words(step))),
            )
            second = judged(1, finetuned, trajectory)
            runs = [first.result(), second]
    else:
        runs = [judged(0, converted)]
    details = {
        "duration": lasting(time.perf_counter() - start),
        "teacher": f"resnet18, weights {teacher.name}, {len(teacher.class_names)} classes",
        "teacher sha256": teacher.sha256,
        "conversion": ", ".join(f"{key}={getattr(conversion, key)}" for key in Conversion.__dataclass_fields__),
    }
    run = AuditRun.merged(runs, provenance={**runs[0].provenance, **details})
    return run if fine_tunes else replace(run, cut=(*run.cut, _NO_FINE_TUNING))


def _told_of_all(watcher: Progress, checks: tuple[str, ...], models: int, place: int, now: Event) -> None:
    """Tell of one model's check as one of those of all models; ``place`` is the model's, from 0."""
    after = (models - 1 - place) * checks
    watcher(replace(now, number=place * len(checks) + now.number, of=models * len(checks), ahead=now.ahead + after))


def _step_in_words(step: TrainingStep) -> str:
    return f"fine-tuning, step {step.step} of {STEPS}: loss {step.loss:.4g}"


def _sources(teacher: Teacher, made: str) -> dict[str, str]:
    return {
        "model": f"the teacher, {made}",
        "teacher": f"resnet18, weights {teacher.name}",
        "data": f"the bundled {teacher.images}, held out",
        "loss": "pytest_bnn.distillation_loss",
    }


def outside(images: Literal["digits", "photographs"]) -> dict[str, Tensor] | None:
    """Return sets of images that are none of the teacher's task, each of as many as a verdict takes."""
    return {name: some[:_OUTSIDE] for name, some in outside_digits().items()} if images == "digits" else None


def _weight_is_expected(thresholds: Thresholds | None, explicit: Mapping[str, Mapping[str, object]]) -> bool:
    names = ("kl_weight", "num_batches")
    given = [explicit.get("kl.loss", {}).get(name) for name in names]
    given += [] if thresholds is None else [thresholds.kl_weight, thresholds.num_batches]
    chosen = any(choices.chosen().strongest("kl.loss", name) is not None for name in names)
    return chosen or any(value is not None for value in given)
