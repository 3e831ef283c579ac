"""Every applicable check on a subject, as one run; and the audit of a ResNet18 from its weights to its report."""

from __future__ import annotations

import copy
import datetime
import difflib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from pytest_bnn.audit.environment import versions
from pytest_bnn.audit.exhibits import describe
from pytest_bnn.checks.check import Check
from pytest_bnn.checks.estimator.flipout import ESTIMATOR_FLIPOUT, measure_estimator_flipout
from pytest_bnn.checks.gradient.samples import GRADIENT_SAMPLES, measure_gradient_samples
from pytest_bnn.checks.kl.loss import KL_LOSS, measure_kl_loss
from pytest_bnn.checks.kl.present import KL_PRESENT, measure_kl_present
from pytest_bnn.checks.layers.replaced import LAYERS_REPLACED, measure_layers_replaced
from pytest_bnn.checks.mean.equals_teacher import MEAN_EQUALS_TEACHER, measure_mean_equals_teacher
from pytest_bnn.checks.memory.separate import MEMORY_SEPARATE, measure_memory_separate
from pytest_bnn.checks.noise.posterior import MAX_PASSES as MAX_NOISE_PASSES
from pytest_bnn.checks.noise.posterior import NOISE_POSTERIOR, measure_noise_posterior
from pytest_bnn.checks.noise.source import NOISE_SOURCE, measure_noise_source
from pytest_bnn.checks.noise.spread import BAND, NOISE_SPREAD, measure_noise_spread
from pytest_bnn.checks.noise.varies import NOISE_VARIES, measure_noise_varies
from pytest_bnn.checks.teacher.agreement import MAX_PASSES, MIN_AGREEMENT, TEACHER_AGREEMENT, measure_teacher_agreement
from pytest_bnn.conversion import Conversion, convert_with
from pytest_bnn.data.loss import Loss
from pytest_bnn.data.samples import MAX_EXAMPLES, samples_of
from pytest_bnn.errors import InputError
from pytest_bnn.example.images import suitable
from pytest_bnn.example.weights import Teacher
from pytest_bnn.options import Settings
from pytest_bnn.records.evidence import Evidence
from pytest_bnn.records.recorder import record
from pytest_bnn.records.run import AuditRun, TrainingStep
from pytest_bnn.sampling.threads import share
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import StageOption, Subject
from pytest_bnn.tasks.task import TaskOption
from pytest_bnn.training.finetune import batch_size, distillation_loss, finetune, number_of_batches

#: Called with what the audit is about to do.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What the checks of an audit require, and how many passes they may draw; see each ``measure_*``."""

    min_agreement: float = MIN_AGREEMENT
    population: bool = False
    spread: tuple[float, float] = BAND
    max_passes: int = MAX_PASSES
    kl_weight: float | None = None
    num_batches: int | None = None
    allow: Mapping[str, str] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        kl_weight: float | None = None,
        num_batches: int | None = None,
        allow: Mapping[str, str] | None = None,
    ) -> Thresholds:
        """Take what settings say, and what they cannot."""
        least, most = (float(end) for end in settings.spread.split(":"))
        return cls(
            min_agreement=settings.min_agreement,
            population=settings.population == "yes",
            spread=(least, most),
            max_passes=settings.samples,
            kl_weight=kl_weight,
            num_batches=num_batches,
            allow=allow or {},
            budget=Budget(alpha=settings.alpha, beta=settings.beta),
        )


_Measure = Callable[[Subject, Thresholds], Evidence]

#: Every check, in the order of the report.
CHECKS: tuple[tuple[Check, _Measure], ...] = (
    (LAYERS_REPLACED, lambda s, t: measure_layers_replaced(s, allow=t.allow)),
    (MEMORY_SEPARATE, lambda s, t: measure_memory_separate(s)),
    (MEAN_EQUALS_TEACHER, lambda s, t: measure_mean_equals_teacher(s)),
    (NOISE_SOURCE, lambda s, t: measure_noise_source(s, max_passes=t.max_passes, budget=t.budget)),
    (NOISE_VARIES, lambda s, t: measure_noise_varies(s, max_passes=t.max_passes, budget=t.budget)),
    (NOISE_SPREAD, lambda s, t: measure_noise_spread(s, band=t.spread, max_passes=t.max_passes, budget=t.budget)),
    (
        NOISE_POSTERIOR,
        lambda s, t: measure_noise_posterior(s, max_passes=min(MAX_NOISE_PASSES, t.max_passes), budget=t.budget),
    ),
    (ESTIMATOR_FLIPOUT, lambda s, t: measure_estimator_flipout(s, budget=t.budget)),
    (KL_PRESENT, lambda s, t: measure_kl_present(s)),
    (KL_LOSS, lambda s, t: measure_kl_loss(s, kl_weight=t.kl_weight, num_batches=t.num_batches)),
    (GRADIENT_SAMPLES, lambda s, t: measure_gradient_samples(s)),
    (
        TEACHER_AGREEMENT,
        lambda s, t: measure_teacher_agreement(
            s,
            min_agreement=t.min_agreement,
            max_passes=t.max_passes,
            population=t.population,
            budget=t.budget,
        ),
    ),
)

CHECK_IDS = tuple(check.id for check, _ in CHECKS)


def audit_model(
    model: nn.Module,
    *,
    teacher: nn.Module | None = None,
    data: Any = None,
    loss: Loss | None = None,
    checks: Iterable[str] | None = None,
    name: str = "",
    stage: StageOption = "auto",
    seed: int = 0,
    class_names: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    training: Sequence[TrainingStep] = (),
    progress: Progress | None = None,
    max_images: int = MAX_EXAMPLES,
    task: TaskOption = "auto",
    output: str | None = None,
    batch_dim: int = 0,
) -> AuditRun:
    """Run every applicable check on a model, which is judged as it is and never changed.

    The error budget is split evenly over the checks that sample.

    Args:
        model: The Bayesian network.
        teacher: The deterministic network that it was converted from.
        data: Images, ``(images, labels)``, any other tree of tensors or numpy arrays that the network takes, a Dataset
            of such items or a DataLoader of such batches.
        loss: The training loss, ``loss(model, batch) -> scalar tensor``; the batch has the structure of the data.
        checks: Ids of the checks to run; all when None.
        name: How the report calls the model.
        stage: ``"converted"``, ``"finetuned"`` or ``"auto"``.
        seed: Of all randomness.
        class_names: For the report.
        thresholds: What the checks require.
        training: The trajectory of `finetune`, for the report.
        progress: Called with the id of each check before it runs.
        max_images: The most examples of the data that are used: a random subset, from the seed, of more.
        task: What the outputs mean; see `Subject`.
        output: The output that the task's claims are about, by name, where the network gives several.
        batch_dim: The dimension of the inputs that counts the examples: 1 where time comes first.

    Raises:
        InputError: An argument cannot be used: data that neither network accepts, unknown check ids.
        TypeError: An argument is of the wrong type.
    """
    chosen = _chosen(checks)
    subject = Subject(
        model,
        teacher=teacher,
        images=None if data is None else samples_of(data, limit=max_images, seed=seed, dim=batch_dim),
        loss=loss,
        name=name,
        stage=stage,
        seed=seed,
        class_names=class_names,
        task=task,
        output=output,
    )
    subject.try_images()
    requirements = thresholds or Thresholds()
    sampled = sum(check.sampled for check, _ in CHECKS if check.id in chosen)
    requirements = replace(requirements, budget=requirements.budget.split(sampled))
    evidence = []
    for check, measure in CHECKS:
        if check.id in chosen:
            if progress is not None:
                progress(f"{subject.name}: {check.id}")
            evidence.append(measure(subject, requirements))
    description = describe(subject, training)
    record(description)
    return AuditRun(checks=tuple(evidence), subjects=(description,), provenance=provenance(seed=seed))


def audit_resnet18(
    teacher: Teacher,
    conversion: Conversion,
    *,
    checks: Iterable[str] | None = None,
    seed: int = 0,
    thresholds: Thresholds | None = None,
    progress: Progress | None = None,
) -> AuditRun:
    """Convert a ResNet18, fine-tune a copy toward its teacher, and audit both: the fresh and the fine-tuned.

    The images are those bundled for the teacher's task. Without an expectation in ``thresholds`` the KL term of
    the fine-tuning loss is expected at 1 / number of batches, which is what it is trained with.
    """
    say = progress or (lambda _: None)
    _chosen(checks)
    train, _ = suitable(teacher.images, "train")
    data = suitable(teacher.images, "held_out")
    batch = batch_size(train)
    batches = number_of_batches(len(train), batch)
    requirements = thresholds or Thresholds()
    if requirements.kl_weight is None and requirements.num_batches is None:
        requirements = replace(requirements, num_batches=batches)
    requirements = replace(requirements, budget=requirements.budget.split(2))  # two models are judged
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
            loss=loss,
            checks=checks,
            name=name,
            seed=seed,
            class_names=teacher.class_names,
            thresholds=requirements,
            training=steps,
            progress=say,
        )
        for name, model, steps in (
            ("resnet18 converted", converted, ()),
            ("resnet18 fine-tuned", finetuned, trajectory),
        )
    ]
    details = {
        "teacher": f"resnet18, weights {teacher.name}, {len(teacher.class_names)} classes",
        "teacher sha256": teacher.sha256,
        "conversion": ", ".join(f"{key}={getattr(conversion, key)}" for key in Conversion.__dataclass_fields__),
    }
    return AuditRun.merged(runs, provenance={**runs[0].provenance, **details})


def provenance(*, seed: int, command: Sequence[str] | None = None) -> dict[str, str]:
    """Say when, with what and how an audit ran."""
    now = datetime.datetime.now(datetime.UTC)
    said = {"created": now.strftime("%Y-%m-%d %H:%M:%S UTC"), "seed": str(seed)}
    if command is not None:
        said["command"] = shlex.join(command)
    return {**said, "threads": str(share()), **versions()}


def _chosen(checks: Iterable[str] | None) -> frozenset[str]:
    if checks is None:
        return frozenset(CHECK_IDS)
    chosen = frozenset([checks] if isinstance(checks, str) else checks)
    for unknown in sorted(chosen - set(CHECK_IDS)):
        near = difflib.get_close_matches(unknown, CHECK_IDS, n=1)
        fix = f"did you mean {near[0]}" if near else f"the checks are {', '.join(CHECK_IDS)}"
        raise InputError(f"there is no check {unknown!r}", fix=fix)
    return chosen
