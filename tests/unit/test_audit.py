"""An audit runs what applies, says what it is about, and leaves the model as it was."""

from __future__ import annotations

import inspect
import platform
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_bnn.audit.run import CHECK_IDS, Thresholds, audit_model, provenance, subject_of
from pytest_bnn.checks import registry
from pytest_bnn.conversion import convert
from pytest_bnn.data.loss import Loss
from pytest_bnn.errors import InputError
from pytest_bnn.fixtures.audits import Audit
from pytest_bnn.progress import Event
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.records.run import AuditRun
from pytest_bnn.subject import Subject
from pytest_bnn.training.finetune import distillation_loss

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "reference" / "checks.md"

Given = tuple[nn.Module, nn.Module, Tensor, Loss]


@pytest.fixture
def given() -> Given:
    """A teacher that is sure of its twelve images, its conversion, and the loss that it is trained with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 3))
        images = torch.randn(64, 3, 8, 8)
    teacher.eval()
    with torch.no_grad():
        for module in teacher.modules():
            if isinstance(module, nn.Linear):
                module.weight *= 40
        images = images[teacher(images).softmax(1).max(1).values > 0.999][:12]
    return convert(teacher, moped_delta=0.01), teacher, images, distillation_loss(teacher, 0.01)


@pytest.mark.parametrize(
    ("narrower", "own"),
    [
        (Audit.__call__, {"self", "kl_weight", "num_batches", "num_data", "allow", "subtests"}),
        (subject_of, {"about"}),
        (Subject.__init__, {"self", "images", "labels", "seed"}),
    ],
    ids=["bnn_audit", "subject_of", "Subject"],
)
def test_what_an_audit_takes_is_called_and_assumed_alike_everywhere(narrower: Any, own: set[str]) -> None:
    """One argument has one name, type and default, whoever hands it on."""
    whole = inspect.signature(audit_model).parameters
    some = {name: each for name, each in inspect.signature(narrower).parameters.items() if name not in own}
    assert len(some) > 10
    for name, each in some.items():
        assert (each.default, each.annotation) == (whole[name].default, whole[name].annotation), name


def test_the_fixture_refuses_what_it_does_not_take(bnn_audit: Audit, given: Given) -> None:
    """An option that is spelt wrong, and what the settings of the session say."""
    for wrong in ({"tacher": given[1]}, {"seed": 3}):
        with pytest.raises(TypeError, match=rf"bnn_audit\(\) got an unexpected keyword argument '{next(iter(wrong))}'"):
            bnn_audit(given[0], **wrong)


def test_everything_given_everything_checked(given: Given) -> None:
    """All of them, in the order of the table, on the same subject."""
    model, teacher, images, loss = given
    said: list[Event] = []
    run = audit_model(
        model,
        teacher=teacher,
        data=(images, torch.zeros(12, dtype=torch.long)),
        loss=loss,
        name="mine",
        seed=3,
        class_names=["a", "b", "c"],
        thresholds=Thresholds(kl_weight=0.01),
        progress=said.append,
    )
    assert [check.id for check in run.checks] == list(CHECK_IDS)
    verdicts = {check.id: check.verdict for check in run.checks}
    assert verdicts.pop("estimator.flipout") is Verdict.NOT_APPLICABLE
    about_data = {id: verdicts.pop(id) for id in list(verdicts) if registry.load(id).declaration.of_data}
    shifted = about_data.pop("uncertainty.shift")
    assert shifted in (Verdict.PASS, Verdict.WARN, Verdict.NOT_APPLICABLE), "twelve examples decide little, or nothing"
    assert set(about_data.values()) == {Verdict.NOT_APPLICABLE}, "one class, which nobody knows better than by chance"
    assert set(verdicts.values()) == {Verdict.PASS}, run.raise_for_failures()
    assert {(check.subject, check.stage, check.seed) for check in run.checks} == {("mine", "converted", 3)}
    assert list(dict.fromkeys(event.check for event in said)) == list(CHECK_IDS)
    (subject,) = run.subjects
    assert (subject.name, subject.images, len(subject.predictions)) == ("mine", 12, 8)


def test_a_model_alone(given: Given) -> None:
    """What was not given makes checks inapplicable, and says what it would take; it fails nothing."""
    run = audit_model(given[0])
    assert {check.id for check in run.checks if check.verdict is Verdict.PASS} == {
        "layers.replaced",
        "memory.separate",
        "posterior.start",
        "kl.present",
    }
    assert {check.verdict for check in run.checks} == {Verdict.PASS, Verdict.NOT_APPLICABLE}
    assert "images" in run["noise.varies"].headline
    assert "loss" in run["kl.loss"].headline
    with recording(Recorder()):
        assert audit_model(given[0], checks=["kl.present"]).subjects[0].name == "model"


def test_thresholds_reach_the_checks(given: Given) -> None:
    """Each field of the record must change the check that it belongs to."""
    model, teacher, images, loss = given
    model[0] = teacher[0]  # type: ignore[index,operator]
    everything = {"teacher": teacher, "data": images, "loss": loss}
    everything["task"] = "classification"
    run = audit_model(model, **everything, thresholds=Thresholds(num_batches=50, min_agreement=0.5, max_passes=8))  # type: ignore[arg-type]
    assert run["layers.replaced"].verdict is Verdict.FAIL
    assert run["kl.loss"]["expected weight"] == pytest.approx(1 / 50)
    assert run["kl.loss"].verdict is Verdict.FAIL
    assert run["teacher.agreement"].verdict is Verdict.INCONCLUSIVE
    assert run["teacher.agreement"].samples == run["noise.varies"].samples == 8
    threshold = run["teacher.agreement"].threshold
    assert threshold is not None
    assert threshold.allowed == 0.5
    allowed = audit_model(model, teacher=teacher, thresholds=Thresholds(allow={"0": "on purpose"}))
    assert allowed["layers.replaced"].verdict is Verdict.PASS


def test_chosen_checks_run_in_the_order_of_the_report(given: Given) -> None:
    """The order in which they were named says nothing; one id alone may be a text."""
    run = audit_model(given[0], checks=["kl.present", "layers.replaced", "kl.present"])
    assert [check.id for check in run.checks] == ["layers.replaced", "kl.present"]
    assert [check.id for check in audit_model(given[0], checks="kl.present").checks] == ["kl.present"]


@pytest.mark.parametrize(
    ("unknown", "fix"),
    [
        ("kl.presant", r"\. .*\bkl\.present\b"),
        ("layer.replaced", r"\. .*\blayers\.replaced\b"),
        ("everything", r"\. the checks are layers\.replaced, memory"),
    ],
)
def test_unknown_checks_are_refused_before_anything_runs(given: Given, unknown: str, fix: str) -> None:
    """A typing error must not mean that a check is left out silently."""
    with (
        recording(Recorder()) as recorder,
        pytest.raises(InputError, match=f"(?i)there is no check '{unknown}'{fix}"),
    ):
        audit_model(given[0], checks=["kl.present", unknown])
    assert recorder.checks == []


def test_the_model_is_left_as_it_was(given: Given) -> None:
    """An audit in the middle of a training: train mode, gradients and random state survive."""
    model, teacher, images, loss = given
    model.train()
    loss(model, (images, None)).backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    audit_model(model, teacher=teacher, data=images, loss=loss)
    assert all(module.training for module in model.modules())
    assert not teacher.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or (parameter.grad is not None and torch.equal(parameter.grad, gradient))


def test_the_same_seed_gives_the_same_numbers(given: Given) -> None:
    """The time apart, a run can be repeated to the last digit."""
    model, teacher, images, loss = given

    def numbers(seed: int) -> str:
        run = audit_model(model, teacher=teacher, data=images, loss=loss, seed=seed)
        plain = re.sub(r'"seconds": [\d.e-]+', "", run.to_json())
        return re.sub(r'"(created|duration)": "[^"]*"', "", plain)

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def test_images_that_do_not_suit_are_wrong_input(given: Given) -> None:
    """A network that cannot take the images says nothing about the claims; the message has both names."""
    model, teacher, _, _ = given
    with pytest.raises(InputError, match=r"the teacher Sequential does not accept images of shape \[2, 1, 8, 8\]"):
        audit_model(model, teacher=teacher, data=torch.zeros(2, 1, 8, 8))
    with pytest.raises(InputError, match="the model Sequential does not accept"):
        audit_model(model, data=torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("argument", [{"model": 3}, {"teacher": "net"}, {"loss": 1}])
def test_arguments_of_the_wrong_type(given: Given, argument: dict[str, object]) -> None:
    """A mistake in the call is an exception, not a verdict."""
    with pytest.raises(TypeError, match=f"{next(iter(argument))} must be"):
        audit_model(**{"model": given[0], **argument})  # type: ignore[arg-type]


def test_evidence_is_recorded_once(given: Given) -> None:
    """What an audit returns is what a recorder in force gets."""
    with recording(Recorder(subject="test_mine")) as recorder:
        run = audit_model(given[0], checks=["kl.present"])
    assert tuple(recorder.checks) == run.checks
    assert tuple(recorder.subjects) == run.subjects
    assert run.checks[0].subject == run.subjects[0].name == "test_mine"


def test_provenance() -> None:
    """When, with which command, seed, threads and versions: what it takes to run it again."""
    said = provenance(seed=7, command=["pytest-bnn", "audit", "--model", "a b:c"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", said["created"])
    assert said["seed"] == "7"
    assert shlex.split(said["command"]) == ["pytest-bnn", "audit", "--model", "a b:c"]
    assert said["threads"] == str(torch.get_num_threads())
    for package in ("pytest-bnn", "torch", "bayesian-torch", "numpy"):
        assert said[package] == version(package)
    assert "command" not in provenance(seed=0)
    assert "duration" not in provenance(seed=0)
    assert [provenance(seed=0, duration=t)["duration"] for t in (0.1234, 62.4, 3600)] == ["0.12 s", "62 s", "3,600 s"]
    assert all(isinstance(value, str) for value in said.values())


def test_audit_has_its_provenance(given: Given) -> None:
    """Also where nobody wrote a file."""
    run = audit_model(given[0], checks=["kl.loss"], seed=5)
    assert run.provenance["seed"] == "5"
    assert float(run.provenance["duration"].removesuffix(" s")) >= 0
    assert platform.system() in run.provenance["machine"]
    assert run.verdict is Verdict.NOT_APPLICABLE


def test_no_check_is_never_a_pass(given: Given) -> None:
    """An empty list may come from an empty variable: the run describes its subject and claims nothing."""
    run = audit_model(given[0], checks=[])
    assert (run.checks, run.verdict, len(run.subjects)) == ((), Verdict.NOT_APPLICABLE, 1)


def test_merged_keeps_the_order(given: Given) -> None:
    """Two subjects, one report."""
    runs = [audit_model(given[0], checks=["kl.present"], name=name) for name in "ba"]
    both = AuditRun.merged(iter(runs), provenance={"seed": "0"})
    assert isinstance(both, AuditRun)
    assert [check.subject for check in both.checks] == [subject.name for subject in both.subjects] == ["b", "a"]
    assert both.provenance == {"seed": "0"}


def test_check_ids_are_those_of_the_documentation() -> None:
    """Somebody looks an id up that they saw in a report."""
    text = DOCUMENTATION.read_text(encoding="utf-8")
    assert {path.stem for path in (DOCUMENTATION.parents[1] / "checks").glob("*.md")} == {*CHECK_IDS}
    assert tuple(re.findall(r"^\| \[`([^`]+)`\]", text, re.M)) == CHECK_IDS
    assert len({registry.load(id).declaration.claim for id in CHECK_IDS}) == len(CHECK_IDS)


def test_more_images_than_the_default_can_be_asked_for() -> None:
    """A limit that the user raised must not be cut back to the default on the way."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    images = torch.zeros(600, 1, 2, 2)
    runs = [audit_model(network, data=images, checks=[], max_images=limit) for limit in (600, 512, 7)]
    assert [run.subjects[0].images for run in runs] == [600, 512, 7]
