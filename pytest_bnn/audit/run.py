"""Every applicable check on a subject, as one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, Unpack

from torch import nn

from pytest_bnn.audit.beside import Task, each, in_words, side_by_side
from pytest_bnn.audit.causes import explain
from pytest_bnn.audit.description import describe
from pytest_bnn.audit.known import Known, Place, known_of, learn
from pytest_bnn.audit.plan import Explicit, Step, Thresholds, left_out, merged, not_given, plan
from pytest_bnn.audit.provenance import provenance
from pytest_bnn.checks import choices, registry
from pytest_bnn.checks._looks import dismiss
from pytest_bnn.checks.changed import changes
from pytest_bnn.checks.declaration import Declaration
from pytest_bnn.data.given import named_series, named_sets
from pytest_bnn.data.large import UNREADABLE, LargeData, Workers
from pytest_bnn.data.loss import Loss
from pytest_bnn.data.origin import Origin
from pytest_bnn.data.samples import MAX_EXAMPLES, Samples, samples_of
from pytest_bnn.errors import InputError
from pytest_bnn.options import budget_in_force, in_force, preset_in_force
from pytest_bnn.progress import Event, Progress, begin, watching
from pytest_bnn.records.evidence import Evidence
from pytest_bnn.records.recorder import held_back, record, record_cut
from pytest_bnn.records.run import AuditRun, TrainingStep
from pytest_bnn.sampling.threads import limited
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import About, StageOption, Subject
from pytest_bnn.tasks.task import TaskOption

#: Our checks, in the order of a report; `registry.ids` has those of others too.
CHECK_IDS = registry.built_in()


def audit_model(
    model: nn.Module,
    *,
    teacher: nn.Module | None = None,
    data: Any = None,
    loss: Loss | None = None,
    checks: Iterable[str] | None = None,
    name: str = "",
    stage: StageOption = "auto",
    seed: int | None = None,
    class_names: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    budget: Budget | None = None,
    training: Sequence[TrainingStep] = (),
    progress: Progress | None = None,
    max_images: int = MAX_EXAMPLES,
    task: TaskOption = "auto",
    output: str | None = None,
    batch_dim: int = 0,
    factory: Callable[[], nn.Module] | None = None,
    evaluation: Any = None,
    ood: Any = None,
    shifts: Any = None,
    slices: Callable[[int], object] | None = None,
    origin: Origin | None = None,
    max_evaluation: int | Literal["all"] | None = None,
    shard_size: int | None = None,
    unreadable: float = UNREADABLE,
    executor: Workers | None = None,
) -> AuditRun:
    """Run every applicable check on a model, which is judged as it is and never changed.

    The error budget is split evenly over the checks that sample. Input that one check cannot use is that check's
    verdict ``error``, and the audit goes on.

    Args:
        model: The Bayesian network.
        teacher: The deterministic network that it was converted from.
        data: Images, ``(images, labels)``, any other tree of tensors or numpy arrays that the network takes, a Dataset
            of such items or a DataLoader of such batches.
        loss: The training loss, ``loss(model, batch) -> scalar tensor``; the batch has the structure of the data.
        checks: Ids of the checks to run; all when None.
        name: The model's name in the report.
        stage: ``"converted"``, ``"finetuned"`` or ``"auto"``.
        seed: The seed of all randomness; that of the settings in force when None, which is 0 by default.
        class_names: The names of the classes, for the report.
        thresholds: What the checks require; the settings in force when None.
        options: Options of single checks, which go before all else: ``{"kl.loss": {"num_batches": 45}}``.
        budget: Error rates of this audit; those of ``thresholds``, or of the settings in force, when None.
        training: The trajectory of `finetune`, for the report.
        progress: Called with an `Event` before each check, and some times a second while passes are drawn.
        max_images: The most examples of the data that are used: a random subset, from the seed, of more.
        task: What the outputs mean; see `Subject`.
        output: The output that the task's claims are about, by name, where the network gives several.
        batch_dim: The dimension of the inputs that counts the examples: 1 where time comes first.
        factory: What made the model, a function without arguments; see `Subject`.
        evaluation: Labelled examples on which claims about the predictions are judged, in a form that ``data`` may
            have; the data when None.
        ood: Examples that are none of the model's task, in a form that ``data`` may have, or several such by name.
        shifts: The data at growing amounts of a shift, the least first: a list of sets in a form that ``data`` may
            have, or several lists by name.
        slices: Returns the group of an example by its number in the data; see `Subject`.
        origin: Where the parts came from and which files were read for them, for the report.
        max_evaluation: Judge claims about the labels of ``evaluation`` on up to so many examples, or on ``"all"``,
            read shard by shard until each claim is certain; on at most ``max_images``, held in memory, when None.
        shard_size: The examples of a shard; when None, as many as hold 2**25 numbers, at most 2,048.
        unreadable: The share of these examples that may be unreadable; they are left out, counted and named.
        executor: What judges shards side by side: any `concurrent.futures.Executor`, or a function that makes one,
            which is called again where its workers die; this process when None.

    Raises:
        InputError: An argument cannot be used: data that neither network accepts, unknown check ids.
        TypeError: An argument is of the wrong type.
    """
    start = time.perf_counter()
    missing = not_given(teacher=teacher, data=data, loss=loss, slices=slices)
    steps = planned(checks, thresholds, options, budget, missing)
    subject = subject_of(
        model,
        teacher=teacher,
        data=data,
        loss=loss,
        name=name,
        stage=stage,
        seed=seed,
        class_names=class_names,
        max_images=max_images,
        task=task,
        output=output,
        batch_dim=batch_dim,
        factory=factory,
        evaluation=evaluation,
        ood=ood,
        shifts=shifts,
        slices=slices,
        max_evaluation=max_evaluation,
        shard_size=shard_size,
        unreadable=unreadable,
        executor=executor,
    )
    try:
        with side_by_side(_parts(subject, steps)):
            threads = in_words()
            evidence = run_steps(subject, steps, progress)
            with limited():
                description = describe(subject, training, evidence, origin)
    finally:
        dismiss(subject)
    record(description)
    words = preset_in_force().words if checks is None else ""
    cut = (words,) if words else left_out([step.id for step in steps])
    for words in cut:
        record_cut(words)
    return AuditRun(
        checks=tuple(evidence),
        subjects=(description,),
        provenance=provenance(
            seed=subject.seed, model=subject.model, duration=time.perf_counter() - start, threads=threads
        ),
        changed=changes(),
        cut=cut,
    )


def subject_of(
    model: nn.Module,
    *,
    data: Any = None,
    evaluation: Any = None,
    ood: Any = None,
    shifts: Any = None,
    seed: int | None = None,
    batch_dim: int = 0,
    max_images: int = MAX_EXAMPLES,
    max_evaluation: int | Literal["all"] | None = None,
    shard_size: int | None = None,
    unreadable: float = UNREADABLE,
    executor: Workers | None = None,
    **about: Unpack[About],
) -> Subject:
    """Return what an audit judges: a model with its examples, which are taken here and tried.

    The arguments are those of `audit_model`.

    Raises:
        InputError: As in `audit_model`.
        TypeError: An argument is of the wrong type.
    """
    fewer = preset_in_force().images
    most = fewer if fewer is not None and max_images == MAX_EXAMPLES else max_images
    chosen_seed = int(in_force().seed) if seed is None else seed

    def taken(examples: Any) -> Samples | None:
        if examples is None:
            return None
        return samples_of(examples, limit=most, seed=chosen_seed, dim=batch_dim)

    def labelled(examples: Any) -> Samples | LargeData | None:
        if isinstance(examples, LargeData):
            return examples if executor is None else examples.by(executor)
        if max_evaluation is None:
            said = {"shard_size": shard_size is not None, "unreadable": unreadable != UNREADABLE}
            said["executor"] = executor is not None
            if name := next((name for name, given in said.items() if given), ""):
                raise InputError(
                    f"{name} without max_evaluation",
                    fix=f"say how many examples are judged by shards, or 'all'; or leave out {name}=",
                )
            return taken(examples)
        if examples is None:
            raise InputError("max_evaluation without evaluation", fix="give the labelled examples as evaluation=")
        return LargeData.of(
            examples, max_evaluation, few=most, seed=chosen_seed, dim=batch_dim, shard_size=shard_size,
            unreadable=unreadable, workers=executor,
        )  # fmt: skip

    subject = Subject(
        model,
        images=taken(data),
        evaluation=labelled(evaluation),
        ood={name: taken(one) for name, one in named_sets(ood, data).items()} or None,
        shifts={name: [taken(step) for step in steps] for name, steps in named_series(shifts).items()} or None,
        seed=chosen_seed,
        **about,
    )
    subject.try_images()
    return subject


def planned(
    checks: Iterable[str] | None = None,
    thresholds: Thresholds | None = None,
    options: Explicit | None = None,
    budget: Budget | None = None,
    missing: Collection[str] = (),
) -> tuple[Step, ...]:
    """Return the plan of an audit: the checks that were chosen, with their options and shares of the error rates.

    Raises:
        InputError: There is no such check, or an option cannot be used.
        TypeError: A name in ``options`` is no option of the check.
    """
    for module in choices.chosen().plugins:
        registry.import_module(module, "plugins in pyproject.toml")
    ids = registry.chosen(checks)
    if checks is None:
        ids = tuple(id for id in ids if not choices.left_out_by_preset(id))
    chosen = [_declaration(id) for id in ids]
    choices.require_usable(choices.chosen(), finally_=True)
    required = {} if thresholds is None else {check.id: thresholds.options_of(check) for check in chosen}
    whole = budget or (budget_in_force() if thresholds is None else thresholds.budget)
    return plan(chosen, merged(required, options or {}), whole, missing)


def run_steps(subject: Subject, steps: Iterable[Step], progress: Progress | None = None) -> list[Evidence]:
    """Run the checks of a plan on a subject: side by side, where this process may share its work.

    Args:
        subject: What is judged.
        steps: What `planned` gave.
        progress: Called with an `Event` before each check of this process, and some times a second while it draws
            passes.
    """
    steps = list(steps)
    found: dict[int, Evidence] = {}
    told: set[tuple[Place, str]] = set()

    def begin_step(number: int, ahead: Collection[int], processes: int) -> None:
        step = steps[number]
        begin(
            Event(
                subject=subject.name,
                check=step.id,
                number=len(steps) - len(ahead),
                of=len(steps),
                ahead=tuple(steps[later].id for later in ahead),
                most_passes=_most_passes(step),
                processes=processes,
            )
        )

    def task(number: int, step: Step) -> Task[tuple[Evidence, Known]]:
        check = registry.load(step.id)

        def judge() -> tuple[Evidence, Known]:
            found[number] = check.judge(subject, step.options, step.budget, severity=step.severity)
            return found[number], known_of(subject, told)

        # Others' checks may count on this process, and slices on what is open here; workers of large data are its own.
        needs = check.declaration.needs
        here = (
            step.id not in CHECK_IDS or "slices" in needs or (subject.large is not None and check.declaration.of_data)
        )
        return Task(judge, here=here, long="loss" in needs)  # a gradient takes several passes' time

    def take(number: int, value: tuple[Evidence, Known]) -> None:
        found[number], known = value
        learn(subject, known)

    tasks = [task(number, step) for number, step in enumerate(steps)]

    try:
        with watching(progress), held_back(), side_by_side(_parts(subject, steps)):
            each(tasks, first_here=_drawing(steps), begin=begin_step, take=take)
    finally:
        for number in sorted(found):
            record(found[number])
    return explain([found[number] for number in range(len(steps))])


def _parts(subject: Subject, steps: Sequence[Step]) -> int:
    """Return into how many parts an audit may be shared: the threads of an executor would be lost in a fork."""
    by_executor = subject.large is not None and isinstance(subject.large.workers, Executor)
    return 1 if by_executor else len(steps)


def _drawing(steps: Sequence[Step]) -> list[int]:
    """Return the numbers of the checks that share passes, which the report shows too."""
    declared = [_declaration(step.id) for step in steps]
    return [number for number, check in enumerate(declared) if check.sampled or check.of_data]


def _most_passes(step: Step) -> int:
    most = step.options.get("max_passes")
    return most if isinstance(most, int) else 0


def _declaration(id: str) -> Declaration:
    return registry.declaration(id) or registry.load(id).declaration


__all__ = ["CHECK_IDS", "Progress", "Thresholds", "audit_model", "planned", "provenance", "run_steps", "subject_of"]
