"""pytest-bnn as it is typed: what it prints, which files it leaves, its exit codes, and how it words mistakes."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import pytest_bnn
from pytest_bnn import cli, render_html, render_markdown
from pytest_bnn.audit import named
from pytest_bnn.audit import run as audit
from pytest_bnn.checks import registry
from pytest_bnn.checks.check import Check
from pytest_bnn.commands import command as exits
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.records.run import AuditRun, json_schema

SCRIPT = Path(sys.executable).parent / "pytest-bnn"

MORE = """

import numpy
from PIL import Image


def raises():
    raise ZeroDivisionError("the factory's own trouble")


def on_cuda():
    raise RuntimeError("Found no NVIDIA driver on your system. Please check that CUDA is installed")


def needs(classes, mps, *, depth=3):
    return teacher()


def forgets():
    import json

    return json.dumps()


def loads():
    net = teacher()
    net.load_state_dict({"module.weight": torch.zeros(1)})
    return net


def nothing():
    return None


def none_held_out():
    return []


def an_empty_tensor():
    return torch.zeros(0, 3, 8, 8)


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Image.new("RGB", (8, 8)), 0


def not_numbers():
    images, labels = held_out()
    images[5, 0, 0, 0] = float("nan")
    return images, labels


def diverged():
    net = teacher()
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    return net


def grey():
    return torch.zeros(4, 1, 8, 8)


def few_labels():
    images, labels = held_out()
    return images, labels[:7]


def raising_loss(model, batch):
    raise ValueError("the loss's own trouble")


def vector_loss(model, batch):
    return model(batch[0]).sum(1)


def number_loss(model, batch):
    return 3.0


def words():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(24, 3)).eval()
    with torch.no_grad():
        net[2].weight *= 40
    return net


def bayesian_words():
    return pytest_bnn.convert(words(), moped_delta=0.01)


def sentences():
    ids = torch.arange(600).reshape(100, 6) * 7 % 50
    with torch.no_grad():
        return ids[words()(ids).softmax(1).max(1).values > 0.999][:10]
"""


@pytest.fixture
def folder(tmp_path: Path, net_py: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with a module, which this process forgets afterwards."""
    (tmp_path / "own_net.py").write_text(net_py + MORE, encoding="utf-8")
    (tmp_path / "broken_net.py").write_text("import a_package_that_is_missing\n", encoding="utf-8")
    (tmp_path / "raising_net.py").write_text("raise OSError('no such disk')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    # A machine that is busy gets lines about it.
    monkeypatch.setattr("pytest_bnn.commands.watching.FIRST", 1e6)
    yield tmp_path
    for name in ("own_net", "broken_net", "raising_net"):
        sys.modules.pop(name, None)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command as if it were typed; argparse's way out is an exit code like the others."""

    def run(*arguments: str) -> Said:
        try:
            with recording(Recorder(subject="model")):
                code: Any = cli.main(arguments)
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert isinstance(code, int)
        return Said(code, said.out, said.err)

    return run


OWN = ("audit", "--model", "own_net:bayesian")
WHOLE = (*OWN, "--teacher", "own_net:teacher", "--data", "own_net:held_out", "--loss", "own_net:loss")


def read(path: str = "audit.json") -> Any:
    document = json.loads(Path(path).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(json_schema()).validate(document)
    return document


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The audit that the README begins with, by the installed script, with the two cheapest checks."""
    folder = tmp_path_factory.mktemp("default")
    command = [str(SCRIPT), "audit", "--checks", "layers.replaced,kl.present", "-o", "out/resnet18.html"]
    environment = {**os.environ, "COLUMNS": "200"}
    return (
        subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment),
        folder / "out",
    )


@pytest.mark.nightly("half a minute of fine-tuning; every push has a few of its steps, below")
def test_default_audit(default: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Without a network of one's own both conversions of the embedded ResNet18 are audited, and they are sound."""
    done, _ = default
    assert done.returncode == exits.PASSED, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "verdict: pass. All 4 claims about 2 models that were judged hold."
    assert len(lines) == 5
    assert all(re.match(r"pytest-bnn: \d+ s: ", line) for line in done.stderr.splitlines())
    last = done.stdout.strip().splitlines()[-1]
    assert last == f"report: {Path('out/resnet18.html')}  data: {Path('out/resnet18.json')}"


@pytest.mark.nightly("half a minute of fine-tuning; every push has a few of its steps, below")
def test_default_audit_s_files(default: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """JSON that fits the schema, with the trajectory of fine-tuning; the page is its function."""
    _, folder = default
    text = (folder / "resnet18.json").read_text(encoding="utf-8")
    document = json.loads(text)
    jsonschema.Draft202012Validator(json_schema()).validate(document)
    assert [subject["stage"] for subject in document["subjects"]] == ["converted", "finetuned"]
    assert [len(subject["training"]) for subject in document["subjects"]] == [0, 40]
    assert [(check["id"], check["verdict"]) for check in document["checks"]] == 2 * [
        ("layers.replaced", "pass"),
        ("kl.present", "pass"),
    ]
    assert document["provenance"]["command"].startswith("pytest-bnn audit --checks")
    assert "digits" in document["provenance"]["teacher"]
    assert (folder / "resnet18.html").read_text(encoding="utf-8") == render_html(AuditRun.from_json(text))


@pytest.mark.nightly("half a minute; .ci/run has the whole default audit in every push")
def test_default_audit_after_a_few_steps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in this process: converted, fine-tuned by the engine, both audited."""
    from pytest_bnn.training.finetune import finetune

    monkeypatch.setattr("pytest_bnn.example.audit.finetune", functools.partial(finetune, steps=10))
    said = run("audit", "--checks", "layers.replaced,kl.present", "-v")
    assert said.code == exits.PASSED, said
    assert said.out.count("21 of 21 convolution and linear layers are Bayesian") == 2
    document = read()
    assert [subject["stage"] for subject in document["subjects"]] == ["converted", "finetuned"]
    assert [len(subject["training"]) for subject in document["subjects"]] == [0, 10]
    assert [check["verdict"] for check in document["checks"]] == ["pass"] * 4
    assert "digits" in document["provenance"]["teacher"]


def test_script_ends_with_the_code(folder: Path) -> None:
    """What a CI job sees is the process's exit code."""
    command = [str(SCRIPT), "audit", "--model", "own_net:partly", "--checks", "layers.replaced"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == exits.FAILED, done.stderr
    assert "1 of 2" in done.stdout


def test_own_network(run: Run) -> None:
    """Everything given: all checks, a report beside the JSON, exit code 0."""
    said = run(*WHOLE, "--num-batches", "100", "--seed", "3", "--samples", "64")
    assert said.code == exits.PASSED, said
    assert said.err == ""
    document = read()
    assert [check["id"] for check in document["checks"]] == list(audit.CHECK_IDS)
    assert {(check["subject"], check["seed"]) for check in document["checks"]} == {("own_net:bayesian", 3)}
    verdicts = {check["id"]: check["verdict"] for check in document["checks"]}
    assert verdicts.pop("estimator.flipout") == "not_applicable"  # it is for the other estimator
    for id in [id for id in verdicts if registry.load(id).declaration.of_data]:  # few examples decide nothing
        assert verdicts.pop(id) in ("pass", "warn", "not_applicable")
    assert set(verdicts.values()) == {"pass"}
    assert document["provenance"]["seed"] == "3"
    for id in verdicts:
        assert f"{id} pass for" not in said.out, "-v tells them"
    assert re.search(r"^verdict: (pass|warn)\. ", said.out, re.M), "warnings are about these few examples"
    assert Path("audit.html").read_text(encoding="utf-8") == render_html(
        AuditRun.from_json(Path("audit.json").read_text("utf-8"))
    )


def test_a_factory_that_goes_elsewhere(run: Run, folder: Path) -> None:
    """The report, and what is written beside it, are where they were asked for."""
    (folder / "moving_net.py").write_text(
        "import os, own_net\ndef moves():\n    os.chdir('/')\n    return own_net.bayesian()\n", encoding="utf-8"
    )
    said = run("audit", "--model", "moving_net:moves", "--checks", "layers.replaced", "-o", "out/a.html",
               "--baseline", "b.json", "--update-baseline", "--ctrf", "c.json")  # fmt: skip
    assert said.code == exits.PASSED, said.err
    assert Path.cwd() == folder
    assert all((folder / name).is_file() for name in ("out/a.html", "out/a.json", "b.json", "c.json"))
    torch.save({}, folder / "state.pt")
    run("audit", "--model", "moving_net:moves", "--checks", "layers.replaced", "--checkpoints", "state.pt", "-o",
        "series/index.html")  # fmt: skip
    assert (folder / "series/index.html").is_file()
    sys.modules.pop("moving_net")


def test_verbose_shows_the_evidence_of_passed_claims(run: Run) -> None:
    """-v is for those who want to see why."""
    arguments = (*OWN, "--checks", "layers.replaced")
    assert "claim:" not in run(*arguments).out
    assert "claim:" in run(*arguments, "-v").out


def test_quiet(run: Run) -> None:
    """One line and the exit code, for scripts; and not both of -q and -v."""
    said = run("audit", "--model", "own_net:partly", "--checks", "layers.replaced", "-q")
    assert said.code == exits.FAILED
    assert said.out == ("verdict: fail. The one claim about own_net:partly that was judged does not hold.\n")
    assert run(*OWN, "-q", "-v").code == exits.USAGE


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(run: Run, option: str) -> None:
    """Of the installed package; the same in Python."""
    import importlib.metadata

    said = run(option)
    assert (said.code, said.out) == (0, f"pytest-bnn {importlib.metadata.version('pytest-bnn')}\n")
    assert said.out.split()[1] == pytest_bnn.__version__


def test_what_reads_the_output_may_leave(folder: Path) -> None:
    """``pytest-bnn audit | head -1`` ends without a traceback, with the verdict's exit code."""
    code = "import sys; from pytest_bnn.cli import main; sys.exit(main())"
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", code, "audit", "--model", "own_net:partly", "--checks", "layers.replaced"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    told = [line for line in done.stderr.splitlines() if not re.match(r"pytest-bnn: \d+ s", line)]  # where it took long
    assert (done.returncode, told) == (exits.FAILED, []), done.stderr


def test_a_terminal_that_lacks_a_symbol(folder: Path) -> None:
    """An escape stands for it, and the exit code is the verdict's."""
    command = [sys.executable, "-m", "pytest_bnn.cli", "audit", "--model", "own_net:partly", "-v"]
    command += ["--checks", "layers.replaced", "--allow", "0=größer ✓"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == exits.PASSED, done.stderr
    assert "gr\\xf6\\xdfer \\u2713" in done.stdout


def test_failed_claim(run: Run) -> None:
    """Exit code 1, and the terminal explains."""
    said = run("audit", "--model", "own_net:partly", "--teacher", "own_net:teacher", "--checks", "layers.replaced")
    assert said.code == exits.FAILED
    for words in ("0 (Conv2d): It is still nn.Conv2d", "fix:", "verdict: fail"):
        assert words in said.out
    assert read()["verdict"] == "fail"


def test_allowed_layers(run: Run) -> None:
    """Said with a reason, a deterministic layer is no failure, and the reason is in the report."""
    said = run("audit", "--model", "own_net:partly", "--checks", "layers.replaced", "--allow", "0=kept = for speed")
    assert said.code == exits.PASSED
    assert "kept = for speed" in read()["checks"][0]["notes"][0]


@pytest.mark.parametrize(("policy", "code"), [("fail", exits.FAILED), ("warn", exits.PASSED)])
def test_undecided_claim(run: Run, policy: str, code: int) -> None:
    """Four passes decide nothing; whether that fails is the user's choice, the word stays."""
    said = run(*WHOLE, "--checks", "teacher.agreement", "--samples", "4", "--inconclusive", policy)
    assert said.code == code
    assert "verdict: inconclusive" in said.out
    assert read()["verdict"] == "inconclusive"


def test_settings_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same names as in pytest; the command line has the last word."""
    monkeypatch.setenv("PYTEST_BNN_SEED", "5")
    monkeypatch.setenv("PYTEST_BNN_INCONCLUSIVE", "warn")
    assert run(*WHOLE, "--checks", "teacher.agreement", "--samples", "4").code == exits.PASSED
    assert read()["checks"][0]["seed"] == 5
    assert run(*WHOLE, "--checks", "kl.present", "--seed", "6").code == exits.PASSED
    assert read()["checks"][0]["seed"] == 6
    monkeypatch.setenv("PYTEST_BNN_SEED", "five")
    said = run(*OWN)
    assert said.code == exits.USAGE
    assert said.err == "pytest-bnn: PYTEST_BNN_SEED is 'five'. Give a whole number from 0, or random.\n"


def test_a_check_that_breaks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An auditor's own defect is neither a pass nor the model's fault; the other checks' evidence is kept."""
    broken = Check(id="layers.replaced", claim="A check that breaks.", function=lambda subject, **options: 1 / 0)  # type: ignore[arg-type]
    registry.load("layers.replaced")
    monkeypatch.setitem(registry._registered, "layers.replaced", broken)
    said = run(*OWN, "--checks", "layers.replaced,kl.present")
    assert said.code == exits.BROKEN
    assert "the check itself broke: ZeroDivisionError" in said.out
    assert [check["verdict"] for check in read()["checks"]] == ["error", "pass"]


def test_an_audit_that_breaks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the way to more."""

    def breaks(*arguments: object, **more: object) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(audit, "describe", breaks)
    said = run(*OWN, "--checks", "layers.replaced")
    assert said.code == exits.BROKEN
    assert said.err == "pytest-bnn: the audit broke: ZeroDivisionError: deep inside; -v shows where\n"
    assert "Traceback" in run(*OWN, "--checks", "layers.replaced", "-v").err
    assert not Path("audit.json").exists()


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no defect and needs no traceback."""

    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "describe", interrupt)
    said = run(*OWN)
    assert (said.code, said.err) == (130, "pytest-bnn: interrupted\n")


def test_nothing_applies(run: Run) -> None:
    """A pass that is none must not look like one in CI."""
    said = run(*OWN, "--checks", "noise.varies,kl.loss")
    assert said.code == exits.NOTHING_APPLIES
    assert "verdict: not applicable" in said.out
    assert "noise.varies (give --data); kl.loss (give --loss and --data)" in said.out


def test_the_number_of_examples_is_declared(run: Run) -> None:
    """A mean per tensor has no weight that it says; the option comes to kl.loss and is in the report's command."""
    said = run(*LOSS, "own_net:loss", "--num-data", "720")
    (check,) = read()["checks"]
    assert (said.code, check["verdict"]) == (exits.PASSED, "pass"), said


def test_token_ids_instead_of_images(run: Run) -> None:
    """Nothing in an audit is about pictures, when the user brings the data."""
    said = run(
        "audit", "--model", "own_net:bayesian_words", "--teacher", "own_net:words", "--data", "own_net:sentences"
    )
    verdicts = {check["id"]: check["verdict"] for check in read()["checks"]}
    for id in ("kl.loss", "gradient.samples", "loss.data", "estimator.flipout"):
        assert verdicts.pop(id) == "not_applicable"
    for id in [id for id in verdicts if registry.load(id).declaration.of_data]:
        assert verdicts.pop(id) in ("warn", "not_applicable"), "there are no labels"
    assert said.code == exits.PASSED, said
    assert set(verdicts.values()) == {"pass"}


MODEL = ("audit", "--checks", "layers.replaced", "--model")
DATA = (*OWN, "--checks", "noise.varies", "--data")
LOSS = (*OWN, "--data", "own_net:held_out", "--checks", "kl.loss", "--loss")
CHECKS = (*OWN, "--checks")
MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no colon": ((*MODEL, "own_net"), ("--model is 'own_net', not MODULE:NAME", "own_net:make_model")),
    "no name": ((*MODEL, "own_net:"), ("not MODULE:NAME",)),
    "no module": ((*MODEL, ":bayesian"), ("not MODULE:NAME",)),
    "a path": ((*MODEL, "own_net.py:bayesian"), ("not MODULE:NAME", "Write it like own_net:bayesian")),
    "a path in folders": ((*MODEL, "./zoo/net.py:make"), ("not MODULE:NAME", "zoo.net:make")),
    "missing module": ((*MODEL, "my_missing_net:make"), ("no module 'my_missing_net'", "Run from the folder")),
    "missing parent": ((*MODEL, "my_missing.net:make"), ("no module 'my_missing'",)),
    "module that imports what is missing": (
        (*MODEL, "broken_net:make"),
        ("importing 'broken_net' raised ModuleNotFoundError", "a_package_that_is_missing"),
    ),
    "module that raises": ((*MODEL, "raising_net:make"), ("importing 'raising_net' raised OSError: no such disk",)),
    "missing name": ((*MODEL, "own_net:baysian"), ("has no 'baysian'", "bayesian")),
    "missing method": ((*MODEL, "own_net:bayesian.small"), ("has no 'bayesian.small'",)),
    "factory raises": (
        (*MODEL, "own_net:raises"),
        ("own_net:raises() raised ZeroDivisionError: the factory's own trouble", "-v shows the traceback"),
    ),
    "factory wants CUDA": (
        (*MODEL, "own_net:on_cuda"),
        ("raised RuntimeError: Found no NVIDIA", "CPU", "map_location"),
    ),
    "factory lacks an argument": (
        (*MODEL, "own_net:needs"),
        ("own_net:needs needs the arguments classes, mps", "a function without arguments"),
    ),
    "factory forgets an argument inside": (
        (*MODEL, "own_net:forgets"),
        ("dumps() missing 1 required positional argument", "Make it work in Python first"),
    ),
    "factory loads another network's weights": (
        (*MODEL, "own_net:loads"),
        ("Missing key(s) in state_dict", "0.weight", "Unexpected key(s)", "module.weight"),
    ),
    "factory returns None": ((*MODEL, "own_net:nothing"), ("returned None, not a torch.nn.Module",)),
    "factory returns data": ((*MODEL, "own_net:grey"), ("returned a Tensor, not a torch.nn.Module",)),
    "model is a number": ((*MODEL, "own_net:NUMBER"), ("has no 'NUMBER'",)),
    "teacher returns None": ((*OWN, "--teacher", "own_net:nothing"), ("--teacher: own_net:nothing returned None",)),
    "data is an empty list": ((*DATA, "own_net:none_held_out"), ("--data: own_net:none_held_out", "a list")),
    "data is an empty tensor": ((*DATA, "own_net:an_empty_tensor"), ("[0, 3, 8, 8]", "at least 1")),
    "data is None": ((*DATA, "own_net:nothing"), ("--data: own_net:nothing gave None",)),
    "data of pictures": ((*DATA, "own_net:Pictures"), ("an Image", "a transform that makes tensors")),
    "data with NaN": ((*DATA, "own_net:not_numbers"), ("1 of 12 images hold NaN", "number 5")),
    "wrong shape": (
        (*DATA, "own_net:grey"),
        ("the model Sequential does not accept images of shape [4, 1, 8, 8]", "to have 3 channels"),
    ),
    "wrong shape for the teacher": (
        (*OWN, "--teacher", "own_net:teacher", "--data", "own_net:grey"),
        ("the teacher Sequential does not accept images of shape [4, 1, 8, 8]",),
    ),
    "too few labels": ((*DATA, "own_net:few_labels"), ("12 images and 7 labels", "one label for each")),
    "no images": ((*DATA, "own_net:held_out", "--images", "0"), ("argument --images", "from 1")),
    "teacher is NaN": (
        (*OWN[:3], "--teacher", "own_net:diverged", "--data", "own_net:held_out"),
        ("the outputs of the teacher", "NaN or infinite for 12 of 12 images", "so is its", "Load its weights again"),
    ),
    "loss is missing": ((*LOSS, "own_net:los"), ("has no 'los'", "loss")),
    "unknown check": ((*CHECKS, "layers.replacd"), ("no check 'layers.replacd'", "layers.replaced")),
    "a check of nothing like": ((*CHECKS, "everything"), ("The checks are layers.replaced, memory.separate",)),
    "no check": ((*CHECKS, ","), ("--checks", "layers.replaced, memory")),
    "allow without reason": ((*OWN, "--allow", "fc"), ("--allow is 'fc'", "give a reason too")),
    "allow with an empty reason": ((*OWN, "--allow", "fc= "), ("--allow is 'fc= '",)),
    "both weights": ((*OWN, "--kl-weight", "0.1", "--num-batches", "10"), ("--num-batches", "not allowed with")),
    "weight 0": ((*OWN, "--kl-weight", "0"), ("argument --kl-weight", "above 0")),
    "weight NaN": ((*OWN, "--kl-weight", "nan"), ("argument --kl-weight",)),
    "weight of words": ((*OWN, "--kl-weight", "small"), ("argument --kl-weight: 'small' is not a number above 0",)),
    "batches 1.5": ((*OWN, "--num-batches", "1.5"), ("argument --num-batches: '1.5' is not a whole number from 1",)),
    "data 0": ((*OWN, "--num-data", "0"), ("argument --num-data: '0' is not a whole number from 1",)),
    "teacher alone": (("audit", "--teacher", "own_net:teacher"), ("--teacher without --model",)),
    "data alone": (("audit", "--data", "own_net:held_out"), ("--data without --model",)),
    "weights are missing": (("audit", "--weights", "nowhere.pt"), ("no weights 'nowhere.pt'",)),
    "bad setting": ((*OWN, "--samples", "1"), ("--samples is '1'", "a whole number from 2")),
    "output is no page": ((*OWN, "-o", "audit.pdf"), ("'audit.pdf'", "ends in .html")),
    "output is a folder": ((*OWN, "-o", "a_folder.html"), ("'a_folder.html'",)),
    "output under a file": ((*OWN, "-o", "own_net.py/audit.html"), ("own_net.py/audit.html", "cannot be written")),
    "unknown option": (("audit", "--modle", "own_net:bayesian"), ("--modle",)),
    "unknown command": (("adit",), ("adit",)),
    "no command": ((), ("audit | compare | digest | init | merge | render | schema",)),
    "unknown stage": ((*OWN, "--stage", "trained"), ("--stage", "finetuned")),
    "render nothing": (("render", "missing.json"), ("'missing.json' cannot be read", "the JSON of an audit")),
    "render a page": (("render", "own_net.py"), ("the audit is not JSON", "Give the audit.json of a run")),
    "render to another format": (("render", "audit.json", "-o", "audit.pdf"), ("'audit.pdf'", ".html or .md")),
}


OF_ONE_CHECK = {
    "own_net:raising_loss": ("raising_loss", "ValueError: the loss's own trouble", "give a function that takes"),
    "own_net:vector_loss": ("a tensor of shape [12]", "one scalar tensor"),
    "own_net:number_loss": ("returned float", "one scalar tensor"),
}


@pytest.mark.parametrize("loss", OF_ONE_CHECK)
def test_what_one_check_cannot_use_is_its_verdict(run: Run, loss: str) -> None:
    """The audit goes on: the other checks' verdicts, the report and the exit code of an audit that broke are there."""
    said = run(*LOSS, loss, "--checks", "kl.present,kl.loss,noise.varies")
    assert said.code == exits.BROKEN, said
    assert said.err == ""
    for word in OF_ONE_CHECK[loss]:
        assert word.lower() in said.out.lower()
    assert {check["id"]: check["verdict"] for check in read()["checks"]} == {
        "noise.varies": "pass",
        "kl.present": "pass",
        "kl.loss": "error",
    }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_worded(run: Run, folder: Path, mistake: str) -> None:
    """Exit code 4 and one sentence on stderr that says what is wrong and how to mend it; nothing is left behind."""
    (folder / "a_folder.html").mkdir()
    arguments, words = MISTAKES[mistake]
    before = sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
    said = run(*arguments)
    assert said.code == exits.USAGE, said
    assert said.out == ""
    assert "Traceback" not in said.err
    for word in words:
        assert word.lower() in said.err.lower()
    message = [line for line in said.err.splitlines() if line.startswith("pytest-bnn")]
    assert len(message) == 1
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


def test_verbose_shows_the_traceback_of_a_mistake(run: Run) -> None:
    """Who wrote the factory needs to see where it raised."""
    said = run(*MODEL, "own_net:raises", "-v")
    assert said.code == exits.USAGE
    assert "Traceback" in said.err
    assert "in raises" in said.err


def test_render(run: Run) -> None:
    """The same JSON gives the same bytes, those of the audit's own page."""
    run(*OWN, "--checks", "layers.replaced,kl.present")
    page = Path("audit.html").read_bytes()
    said = run("render", "audit.json", "-o", "sub/again.html")
    assert (said.code, said.out) == (exits.PASSED, f"{Path('sub/again.html')}\n")
    assert Path("sub/again.html").read_bytes() == page
    Path("audit.html").unlink()
    assert run("render", "audit.json").code == exits.PASSED
    assert Path("audit.html").read_bytes() == page
    assert run("render", "audit.json", "-o", "summary.md").code == exits.PASSED
    expected = render_markdown(AuditRun.from_json(Path("audit.json").read_text(encoding="utf-8")))
    assert Path("summary.md").read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "no schema_version"),
        ('{"schema_version": "9.0", "checks": []}', "schema version 9.0"),
        ('{"schema_version": "1.0", "checks": [{"id": 3}]}', "does not fit its schema"),
        ("\ufeff{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
    ids=["broken", "no audit", "another version", "wrong record", "byte order mark", "deep"],
)
def test_render_refuses(run: Run, text: str, words: str) -> None:
    """What is no audit of this version is told from one that is, without a page being written."""
    Path("odd.json").write_text(text, encoding="utf-8")
    said = run("render", "odd.json")
    assert said.code == exits.USAGE
    assert words in said.err
    assert "Traceback" not in said.err
    assert not Path("odd.html").exists()


def test_render_of_bytes_that_are_no_text(run: Run) -> None:
    """A binary file given by mistake."""
    Path("odd.json").write_bytes(b"\xff\xfe\x00")
    said = run("render", "odd.json")
    assert said.code == exits.USAGE
    assert "'odd.json' cannot be read" in said.err


def test_render_never_overwrites_its_source(run: Run) -> None:
    """AUDIT.json is all that is left of an audit: a page must not take its place."""
    Path("audit.html").write_text(AuditRun().to_json(), encoding="utf-8")
    before = Path("audit.html").read_bytes()
    assert run("render", "audit.html").code == exits.USAGE
    assert Path("audit.html").read_bytes() == before


def test_schema(run: Run) -> None:
    """What is printed is JSON Schema, and an audit fits it."""
    said = run("schema")
    assert said.code == exits.PASSED
    schema = json.loads(said.out)
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(AuditRun(checks=()).to_json())
    jsonschema.Draft202012Validator(schema).validate(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**document, "verdict": "fine"})


@pytest.mark.parametrize("verdict", Verdict)
def test_exit_code_of_each_verdict(run: Run, monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    """The help's list of exit codes, verdict by verdict."""
    expected = {
        Verdict.PASS: exits.PASSED,
        Verdict.WARN: exits.PASSED,
        Verdict.FAIL: exits.FAILED,
        Verdict.INCONCLUSIVE: exits.FAILED,
        Verdict.ERROR: exits.BROKEN,
        Verdict.NOT_APPLICABLE: exits.NOTHING_APPLIES,
    }
    whole = audit.audit_model

    def judged(*arguments: Any, **more: Any) -> AuditRun:
        found = whole(*arguments, **more)
        return replace(found, checks=tuple(replace(check, verdict=verdict) for check in found.checks))

    monkeypatch.setattr(named, "audit_model", judged)
    assert run(*OWN, "--checks", "layers.replaced").code == expected[verdict]


def test_help_names_every_option_and_exit_code(run: Run) -> None:
    """--help is the command line's documentation."""
    said = run("audit", "--help")
    assert said.code == 0
    text = " ".join(said.out.split())
    for option in ("--model", "--teacher", "--data", "--images", "--loss", "--stage", "--checks", "--allow",
                   "--kl-weight", "--num-batches", "--num-data", "--weights", "--type", "--delta", "--samples",
                   "--seed", "--min-agreement", "--inconclusive", "--threads", "--sampler", "--output",
                   "--verbose"):  # fmt: skip
        assert option in text
    assert (
        "exit codes: 0 every claim holds, or with --baseline nothing is new or worse; 1 a claim failed or stayed "
        "inconclusive; 2 the audit itself broke, or " in text
    )


def test_a_part_of_the_audit_says_so(run: Run) -> None:
    """What was asked for, what was changed and from where, and the command that repeats it anywhere."""
    os.environ["PYTEST_BNN_BETA"] = "0.01"
    try:
        said = run("audit", "--model", "own_net:partly", "--checks", "layers.replaced,kl.present", "--seed", "random",
                   "--allow", "0=too small", "--num-batches", "3")  # fmt: skip
    finally:
        del os.environ["PYTEST_BNN_BETA"]
    assert said.code == exits.PASSED, said
    document = read()
    others = len(registry.ids()) - 2
    assert document["cut"] == [
        f"only layers.replaced and kl.present were asked for, {others} other checks were not run"
    ]
    seed = document["provenance"]["seed"]
    assert {(one["name"], one["value"], one["default"], one["source"]) for one in document["changed"]} == {
        ("seed", seed, "0", "random, as --seed"),
        ("beta", "0.01", "0.001", "PYTEST_BNN_BETA"),
        ("layers.replaced.allow", "0=too small", "none", "--allow"),
        ("predictions.rows.allow", "0=too small", "none", "--allow"),
        ("kl.loss.num_batches", "3", "none", "--num-batches"),
    }
    program, *repeat = shlex.split(document["provenance"]["repeat"])
    assert program == "pytest-bnn"
    assert "random" not in repeat
    assert {f"--seed={seed}", "--beta=0.01"} < set(repeat)
    again = run(*repeat)
    assert again.code == exits.PASSED, again
    assert read()["checks"] == [{**check, "seconds": new["seconds"]} for check, new in
                                zip(document["checks"], read()["checks"], strict=True)]  # fmt: skip


def test_ci_services_are_told(run: Run, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """CTRF beside the report, annotations at the factory, the summary of the step."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    said = run("audit", "--model", "own_net:partly", "--checks", "layers.replaced", "--ctrf", "out/ctrf.json")
    assert said.code == exits.FAILED, said
    line = 1 + (folder / "own_net.py").read_text(encoding="utf-8").splitlines().index("def partly():")
    (told,) = [text for text in said.out.splitlines() if text.startswith("::")]
    assert told.startswith(f"::error file=own_net.py,line={line},title=layers.replaced%2C own_net%3Apartly::1 of 2")
    assert Path("summary.md").read_text(encoding="utf-8").startswith("## ")
    summary = json.loads(Path("out/ctrf.json").read_text(encoding="utf-8"))["results"]["summary"]
    assert (summary["tests"], summary["failed"]) == (1, 1)
    wrong = run("audit", "--model", "own_net:partly", "--ctrf", "ctrf.txt")
    assert (wrong.code, "--ctrf is 'ctrf.txt'" in wrong.err) == (exits.USAGE, True)
