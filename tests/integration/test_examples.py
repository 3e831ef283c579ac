"""The examples, run as a user runs them: by their command lines, and audited from their own folder."""

from __future__ import annotations

import functools
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import sklearn.datasets
import torch
import torchvision

import pytest_bnn
from pytest_bnn.audit.run import CHECK_IDS
from tests.integration import warm

EXAMPLES = Path(__file__).parents[2] / "examples"
PUBLISHED = "resnet18_notebook_as_published"


def run(*command: str, folder: Path = EXAMPLES, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return subprocess.run(
        command, cwd=folder, env={**kept, "COLUMNS": "250", **environment}, capture_output=True, text=True, check=False
    )


def notebook(*arguments: str, patch: pytest.MonkeyPatch) -> object:
    """Run the script as its own main program, in this process, and give its exit code."""
    patch.setattr(sys, "argv", ["resnet18_notebook.py", *arguments])
    with pytest.raises(SystemExit) as end, warnings.catch_warnings():
        runpy.run_path(str(EXAMPLES / "resnet18_notebook.py"), run_name="__main__")
    return end.value.code


def verdicts(audit: Path) -> dict[str, str]:
    document = json.loads(audit.read_text(encoding="utf-8"))
    return {check["id"]: check["verdict"] for check in document["checks"]}


def percents(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"^ +([\d.]+) %", text, re.M)]


@pytest.mark.nightly("a minute and more; every push runs it with two checks, below")
def test_notebook_on_digits(tmp_path: Path) -> None:
    """Offline and without arguments but for its length: the teacher knows the digit, and the conversion keeps it."""
    report = tmp_path / "audit.html"
    done = run(
        *(sys.executable, "resnet18_notebook.py", "--steps", "6", "--passes", "40", "--images", "60"),
        *("--output", str(report)),
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    teacher, conversion, training, prediction, audit = done.stdout.split("\n\n")[1:]

    label = re.search(r"labelled (\w+)", done.stdout)
    assert label is not None
    assert f"%  {label[1]}" in teacher.splitlines()[1]
    assert len(percents(teacher)) == 5
    assert percents(teacher) == sorted(percents(teacher), reverse=True)

    assert "Conv2d -> Conv2dReparameterization" in conversion
    first, second = re.findall(r"pass \d: (.+)", conversion)
    assert first != second

    steps = re.findall(r"step +(\d+): loss ([\d.]+), one pass says (\w+) ([\d.]+) %", training)
    assert [int(step) for step, *_ in steps] == list(range(1, 7))
    assert {name for _, _, name, _ in steps} == {label[1]}
    assert "KL weight 1/45" in training

    assert "over 40 passes" in prediction
    assert prediction.splitlines()[1].endswith(f" {label[1]}")
    for mean, low, high in re.findall(r"^ +([\d.]+) %  \[([\d.]+), ([\d.]+)\]", prediction, re.M):
        assert float(low) <= float(high)
        assert 0 <= float(mean) <= 100
    entropy, information = (float(number) for number in re.findall(r"([\d.]+) nats", prediction))
    assert 0 <= information <= entropy

    found = verdicts(report.with_suffix(".json"))
    assert len(found) == len(audit.splitlines()) - 2 == len(CHECK_IDS)
    assert found.pop("mean.equals_teacher") == "not_applicable"
    assert found.pop("estimator.flipout") == "not_applicable"
    # With so few passes the undecided images may be too many.
    assert found.pop("teacher.agreement") in ("pass", "inconclusive")
    assert set(found.values()) == {"pass"}
    assert label[1] in report.read_text(encoding="utf-8")


def test_notebook_with_two_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of its steps, each as short as can be, and an audit of what costs little."""
    checks = ["layers.replaced", "kl.present"]
    monkeypatch.setattr(pytest_bnn, "audit_model", functools.partial(pytest_bnn.audit_model, checks=checks))
    report = tmp_path / "audit.html"
    code = notebook("--steps", "2", "--passes", "4", "--images", "2", "--output", str(report), patch=monkeypatch)
    said = capsys.readouterr().out
    assert code == 0, said
    teacher, conversion, training, prediction, audit = said.split("\n\n")[1:]
    assert percents(teacher) == sorted(percents(teacher), reverse=True)
    assert "Conv2d -> Conv2dReparameterization" in conversion
    assert re.findall(r"step +(\d+): loss [\d.]+, one pass says \w+ [\d.]+ %", training) == ["1", "2"]
    assert "over 4 passes" in prediction
    assert len(audit.splitlines()) == 4
    assert verdicts(report.with_suffix(".json")) == dict.fromkeys(checks, "pass")


@pytest.mark.nightly("a minute and more at 224x224; every push runs the same script on digits")
def test_notebook_on_imagenet(tmp_path: Path) -> None:
    """The original's way: torchvision's checkpoint in its cache, a JPEG, a thousand classes; random weights."""
    checkpoint = tmp_path / "cache" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    checkpoint.parent.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(torchvision.models.resnet18().state_dict(), checkpoint)
    photograph = Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg"
    report = tmp_path / "audit.html"
    done = run(
        *(sys.executable, "resnet18_notebook.py", str(photograph), "--weights", "imagenet", "--steps", "2"),
        *("--passes", "2", "--images", "4", "--type", "Flipout", "--output", str(report)),
        TORCH_HOME=str(tmp_path / "cache"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "weights imagenet, 1000 classes" in done.stdout
    assert "image: 640x427 pixels, as a batch [1, 3, 224, 224]" in done.stdout
    assert "from logits of shape [1, 1000]" in done.stdout
    assert "Conv2d -> Conv2dFlipout" in done.stdout
    categories = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    named = re.findall(r"one pass says (.+?) [\d.]+ %", done.stdout)
    assert len(named) == 2
    assert set(named) <= set(categories)
    found = verdicts(report.with_suffix(".json"))
    assert found["layers.replaced"] == found["kl.present"] == found["kl.loss"] == "pass"
    # No teacher's opinion can be decided in two passes, and one of random weights is too unsure for any number.
    assert found["teacher.agreement"] in ("inconclusive", "not_applicable")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--weights", "missing.pth"), "there are no weights 'missing.pth'"),
        (("missing.jpg",), "there is no image 'missing.jpg'"),
    ],
    ids=["weights", "image"],
)
def test_notebook_says_what_is_missing(
    arguments: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on what to give instead of a traceback."""
    assert notebook(*arguments, patch=monkeypatch) == 4
    said = capsys.readouterr().err
    assert problem in said
    assert "Traceback" not in said


@pytest.mark.nightly("forty steps; every push audits what two of them make, below")
def test_published_exercise_runs() -> None:
    """Forty steps, each with what a single pass says."""
    done = run(sys.executable, f"{PUBLISHED}.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [int(step) for step in re.findall(r"step +(\d+): \w+ [\d.]+ %", done.stdout)] == list(range(1, 41))
    for moment in ("the BNN", "the BNN after fine-tuning"):
        assert re.findall(rf"^{moment}, pass (\d): \w+ [\d.]+ %$", done.stdout, re.M) == ["1", "2"]


#: The exercise again, but for its length.
SHORTENED = f"""
from {PUBLISHED} import converted, finetune, held_out


def bayesian():
    model = converted()
    finetune(model, held_out()[0][:1], steps=2)
    return model
"""


@pytest.mark.parametrize(
    ("model", "checks"),
    [
        pytest.param(PUBLISHED, (), id="whole", marks=pytest.mark.nightly("a minute; every push has less of it")),
        pytest.param("shortened", ("--checks", "layers.replaced,kl.present,kl.loss"), id="shortened"),
    ],
)
def test_audit_of_the_published_exercise(model: str, checks: tuple[str, ...], tmp_path: Path) -> None:
    """What the reader should have been told and an audit of the result can tell: the loss lacks its KL term."""
    (tmp_path / "shortened.py").write_text(SHORTENED, encoding="utf-8")
    report = tmp_path / "audit.html"
    named = (f"--{role}={module}:{name}" for role, module, name in
             (("model", model, "bayesian"), ("teacher", PUBLISHED, "teacher"), ("data", PUBLISHED, "held_out"),
              ("loss", PUBLISHED, "loss")))  # fmt: skip
    arguments = ("audit", *named, *checks, "--images", "12", "--samples", "16", "--output", str(report))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = warm.python(
        *("-m", "pytest_bnn.cli", *arguments),
        cwd=EXAMPLES,
        env={**os.environ, "COLUMNS": "250", "PYTHONPATH": path},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The KL term is missing from the loss" in done.stdout
    found = verdicts(report.with_suffix(".json"))
    assert found["kl.loss"] == "fail"
    assert found["layers.replaced"] == "pass"
    assert [id for id, verdict in found.items() if verdict in ("fail", "error")] == ["kl.loss"]
