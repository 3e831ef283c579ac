"""The audit of a ResNet18 from its weights to its report: converted, fine-tuned, and both judged."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pytest_bnn.audit.plan import Thresholds, merged
from pytest_bnn.audit.run import Progress, audit_model, planned
from pytest_bnn.checks import choices, registry
from pytest_bnn.conversion import Conversion, convert_with
from pytest_bnn.data.origin import Origin
from pytest_bnn.example.images import digits, outside_digits, suitable
from pytest_bnn.example.weights import Teacher
from pytest_bnn.options import budget_in_force, in_force
from pytest_bnn.records.run import AuditRun, FileDigest
from pytest_bnn.training.finetune import batch_size, distillation_loss, finetune, number_of_batches

if TYPE_CHECKING:
    from torch import Tensor

#: Images of each set from outside of the task, and those that are corrupted: as many as a verdict takes.
_OUTSIDE, _CORRUPTED = 96, 64


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
    say = progress or (lambda _: None)
    chosen = registry.chosen(checks)
    planned(chosen, thresholds, options)  # wrong input is told before the training
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
    say("converting")
    converted = convert_with(teacher.model, conversion)
    finetuned = copy.deepcopy(converted)
    loss = distillation_loss(teacher.model, 1 / batches)
    say("fine-tuning")
    trajectory = finetune(
        finetuned,
        teacher.model,
        train,
        batch=batch,
        seed=seed,
        class_names=teacher.class_names,
        progress=lambda step: say(f"fine-tuning, step {step.step}: loss {step.loss:.4g}"),
    )
    runs = [
        audit_model(
            model,
            teacher=teacher.model,
            data=data,
            evaluation=digits("hard") if teacher.images == "digits" else None,
            ood=outside(teacher.images),
            loss=loss,
            checks=chosen,
            name=name,
            seed=seed,
            class_names=teacher.class_names,
            thresholds=thresholds,
            options=explicit,
            budget=budget.split(2),  # two models are judged
            training=steps,
            progress=say,
            origin=Origin(sources=_sources(teacher, made), files=files),
        )
        for name, model, steps, made in (
            ("resnet18 converted", converted, (), "converted here"),
            ("resnet18 fine-tuned", finetuned, trajectory, "converted and fine-tuned here"),
        )
    ]
    details = {
        "teacher": f"resnet18, weights {teacher.name}, {len(teacher.class_names)} classes",
        "teacher sha256": teacher.sha256,
        "conversion": ", ".join(f"{key}={getattr(conversion, key)}" for key in Conversion.__dataclass_fields__),
    }
    return AuditRun.merged(runs, provenance={**runs[0].provenance, **details})


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
