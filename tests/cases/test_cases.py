"""Every case is judged as it should be, with the words that it should have; its data stay as they were."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pytest_bnn
from pytest_bnn import AuditRun, render_html, render_markdown
from tests.cases import bad, healthy, origins, structures, trained
from tests.cases.case import CASES, SOUND, Case, Input
from tests.integration import warm

MODULES = (healthy, trained, structures, origins, bad)
NAMES = {case.name: case for case in CASES}
LATER = pytest.mark.nightly("another input of its kind runs in every push")


def audit(given: Input, data: Any) -> AuditRun:
    return pytest_bnn.audit_model(
        given.model,
        teacher=given.teacher,
        data=data,
        loss=given.loss,
        stage=given.stage,  # type: ignore[arg-type]
        name="case",
        thresholds=pytest_bnn.Thresholds(kl_weight=given.kl_weight),
    )


def wrong(case: Case, run: AuditRun) -> list[str]:
    """Return what an audit says against the right answer."""
    found = []
    for evidence in run.checks:
        allowed = case.verdicts.get(evidence.id, SOUND)
        if str(evidence.verdict) not in allowed:
            found.append(f"{evidence.id} must be {' or '.join(allowed)}: {evidence.explain()}")
        elif evidence.id in case.says and not re.search(case.says[evidence.id], evidence.explain()):
            found.append(f"{evidence.id} must say {case.says[evidence.id]!r}: {evidence.explain()}")
        if str(evidence.verdict) == "not_applicable" and not evidence.headline.strip():
            found.append(f"{evidence.id} does not apply and does not say why")
    judged = {evidence.id for evidence in run.checks}
    return found + [f"{id} was not judged" for id in {*case.verdicts, *case.says} - judged]


def tensors(value: object) -> list[Tensor]:
    """Copies of the tensors that somebody gave, where they are given as such."""
    if isinstance(value, Tensor):
        return [value.clone()]
    if isinstance(value, dict):
        return [tensor for one in value.values() for tensor in tensors(one)]
    if isinstance(value, tuple | list):
        return [tensor for one in value for tensor in tensors(one)]
    return []


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=() if case.push else LATER) for case in CASES])
def test_case(case: Case) -> None:
    if case.needs is not None:
        try:
            distribution(case.needs)
        except PackageNotFoundError:
            pytest.skip(f"runs where {case.needs} is installed, as nox -s nightly does")
    given = case.make()
    data = None if given.data is None else given.data()
    before, random = tensors(data), torch.get_rng_state()
    state = copy.deepcopy(given.model.state_dict())
    run = audit(given, data)
    assert wrong(case, run) == []
    for one, other in zip(before, tensors(data), strict=True):
        assert torch.equal(one, other), "the audit changed the data that it was given"
    assert torch.equal(random, torch.get_rng_state()), "the audit moved the global random state"
    for name, value in given.model.state_dict().items():
        same = value.is_meta or torch.equal(value.nan_to_num(), state[name].nan_to_num())
        assert same, f"the audit changed {name}"


def test_each_kind_is_judged_in_every_push() -> None:
    pushed = {case.kind for case in CASES if case.push}
    assert pushed == {case.kind for case in CASES}
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []
    assert {case.make.__module__ for case in CASES} == {module.__name__ for module in MODULES}


OBEYED = {"\x1b", "\x07", "\u202e"}


def test_names_are_escaped_wherever_they_are_shown() -> None:
    """In the page as text, in Markdown and in a terminal without what either would obey."""
    given = bad.names_with_escapes_and_markup()
    assert given.data is not None
    run = audit(given, given.data())
    page, summary = render_html(run), render_markdown(run)
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    told = "\n".join(evidence.explain() for evidence in run.checks)
    for text in (page, summary, told):
        assert not OBEYED & set(text)
    assert "a�[31mred�[0m&lt;/script&gt;" in page


#: By the command line: a case, how it is given, and the exit code.
COMMANDS = {
    "confident shares": ("--num-batches", "22", 0),
    "two inputs and a target": ("--kl-weight", repr(1 / 30), 0),
    "tokens and mask by keyword": ("--kl-weight", repr(1 / 30), 0),
    "variance head made anew": (1,),
    "network that normalises in place": ("--num-batches", "10", 0),
}

FILE = """
from tests.cases.{module} import {name} as make

given = make()
model = lambda: given.model
teacher = lambda: given.teacher
data = given.data
loss = given.loss
"""


def audited(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Audit by the command line, in a folder from which these cases can be imported."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    program = "import sys; from pytest_bnn.cli import main; sys.exit(main())"
    return warm.python(
        "-c", program, "audit", *arguments, "-o", "audit.html", cwd=folder, env={**os.environ, "PYTHONPATH": path}
    )


def by_command(case: Case, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    module = case.make.__module__.rpartition(".")[2]
    (folder / "given.py").write_text(FILE.format(module=module, name=case.make.__name__), encoding="utf-8")
    given = case.make()
    options = ["--model", "given:model"]
    for name in ("teacher", "data", "loss"):
        if getattr(given, name) is not None:
            options += [f"--{name}", f"given:{name}"]
    return audited(folder, *options, *arguments)


@pytest.mark.nightly("a process for each; one runs in every push, below")
@pytest.mark.parametrize("name", COMMANDS)
def test_case_by_the_command_line(name: str, tmp_path: Path) -> None:
    *arguments, code = COMMANDS[name]
    done = by_command(NAMES[name], tmp_path, *[str(word) for word in arguments])
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    accused = {check["id"] for check in found["checks"] if check["verdict"] not in SOUND}
    assert accused <= set(NAMES[name].verdicts), done.stdout


def test_an_exit_of_the_model_is_not_the_exit_of_the_audit(tmp_path: Path) -> None:
    """Exit code 0 means that every claim holds: nobody but the audit may say so."""
    done = by_command(NAMES["network that exits where gradients are on"], tmp_path)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert (tmp_path / "audit.json").is_file()


def test_names_are_escaped_by_the_command_line(tmp_path: Path) -> None:
    done = by_command(NAMES["names with escapes and markup"], tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "[31mred" in done.stdout
    assert not OBEYED & set(done.stdout + done.stderr)


LEAVING = """
import sys

import torch
from tests.cases.bad import _as, nn


class Leaving(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        sys.exit(0)


model = lambda: _as(nn.Sequential).model
data = Leaving
"""


def test_an_exit_of_the_data_is_not_the_exit_of_the_audit(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING, encoding="utf-8")
    done = audited(tmp_path, "--model", "leaving:model", "--data", "leaving:data")
    assert done.returncode not in (0, 1), done.stdout + done.stderr
