"""The same seed gives the same audit: in every run, with workers, in any order of the tests, with more threads."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration import warm

CONFTEST = """
import os


def pytest_collection_modifyitems(items):
    if os.environ["ORDER"] == "reversed":
        items.reverse()
"""

#: Tests disturb the global random state, so that another order leaves another one. "own": models beyond the engine.
#: "likewise": a kind of outcome and of sampler that another test has, too.
TESTS = '''
import pytest
import torch
from torch import nn

import net
import pytest_bnn

GIVEN = dict(teacher=net.teacher(), data=net.held_out(), loss=net.loss)
IMAGES = net.held_out()[0]


def wide():
    """Wide enough for torch to share the work among threads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10),
        ).eval()


@pytest.fixture(scope="session")
def shared():
    model = net.bayesian()
    yield model
    pytest_bnn.measure_kl_present(model, name="at the end")


@pytest.mark.parametrize("type", ["Reparameterization", "Flipout"])
def test_sound(bnn_audit, type):
    torch.rand(3)
    bnn_audit(pytest_bnn.convert(net.teacher(), type=type, moped_delta=0.01), num_batches=100, **GIVEN)


@pytest.mark.parametrize("type", ["Reparameterization", "Flipout"])
def test_wide(bnn_audit, type):
    pictures = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    bnn_audit(pytest_bnn.convert(wide(), type=type), teacher=wide(), data=pictures)


def test_wrong(bnn_audit):
    torch.randn(7)
    bnn_audit(net.forgetful(), **GIVEN)


def test_shared(shared):
    pytest_bnn.measure_noise_varies(shared, images=IMAGES)


def test_shared_again(shared):
    torch.manual_seed(torch.initial_seed() // 3)
    pytest_bnn.measure_teacher_agreement(shared, teacher=net.teacher(), images=IMAGES, population=True)


@pytest.mark.bnn(samples=6, inconclusive="warn")
def test_undecided(bnn_audit):
    bnn_audit(net.bayesian(), **GIVEN)


def test_likewise_collapsed(bnn_audit):
    model = net.bayesian()
    with torch.no_grad():
        for name, rho in model.named_parameters():
            if "rho" in name:
                rho.fill_(-20)
    bnn_audit(model, **GIVEN)


def test_trained(bnn_audit):
    model = net.bayesian()
    steps = pytest_bnn.finetune(model, net.teacher(), IMAGES, steps=12)
    pytest_bnn.audit_model(model, training=steps, name="trained", teacher=net.teacher(), data=net.held_out())


def test_own_dropout(bnn_audit):
    model = pytest_bnn.convert(nn.Sequential(net.teacher(), nn.Dropout(0.5)).eval())
    model[1].train()
    bnn_audit(model, teacher=net.teacher(), data=net.held_out())


def test_likewise_own_code(bnn_audit):
    class Twice(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            out = self.inner(x)
            return out + 0.1 * self.inner(x.flip(-1)) if float(out.sum()) else out

    teacher = Twice(net.teacher()).eval()
    bnn_audit(pytest_bnn.convert(teacher, moped_delta=0.01), teacher=teacher, data=net.held_out())
'''

#: What is different by its nature: when, what was typed, and how many threads there were.
ENVIRONMENT = ("seconds", "created", "duration", "command", "repeat", "threads")

#: A rounding error of float32. What another number of threads adds up in another order may move by so much, and
#: differences that are nothing but rounding may do what they like below.
ROUNDING = 1e-7

Run = Callable[..., Any]


LATER = pytest.mark.nightly("as many processes again; in every push most passes are the engine's, too")


@pytest.fixture(scope="module", params=["auto", pytest.param("engine", marks=LATER)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, net_py: str) -> Run:
    """Run the tests in a process of their own and give the audit; with the engine, those that it can draw for."""
    folder = tmp_path_factory.mktemp(request.param)
    for name, text in {"net.py": net_py, "conftest.py": CONFTEST, "test_same.py": TESTS}.items():
        (folder / name).write_text(text, encoding="utf-8")
    left_out = ["own"] if request.param == "engine" else []
    if not request.config.getoption("--nightly"):
        # The first are there for threads to change something, which a nightly test looks at; the others fail, and leave
        # the engine, as models of other tests do.
        left_out += ["wide", "likewise"]
    chosen = ["--bnn-sampler=engine"] if request.param == "engine" else []
    chosen += ["-k", " and ".join(f"not {name}" for name in left_out)] if left_out else []

    def run(*arguments: str, order: str = "as written", threads: int = 1) -> Any:
        environment = {**os.environ, "ORDER": order, "OMP_NUM_THREADS": str(threads)}
        command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--bnn-report=a.html",
                   f"--bnn-threads={threads}", *chosen, *arguments)  # fmt: skip
        # A fork has the hashes and the threads of where it came from: good for one run, and where workers do the work.
        forked = threads == 1 and (order == "as written" or "-n" in arguments)
        start = warm.python if forked else warm.alone
        done = start(*command, cwd=folder, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((folder / "a.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture(scope="module")
def plain(run: Run) -> Any:
    return run()


def values(found: object, where: str = "") -> Iterator[tuple[str, object]]:
    """Yield every value of an audit that is not the environment's, with the place where it stands."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key not in ENVIRONMENT:
                yield from values(value, f"{where}.{key}")
    elif isinstance(found, list):
        yield f"{where}, length", len(found)
        for index, value in enumerate(found):
            name = f"{value['subject']} {value['id']}" if isinstance(value, dict) and "subject" in value else index
            yield from values(value, f"{where}[{name}]")
    else:
        yield where, found


def masked(value: object) -> object:
    """Leave out of a text the numbers that are not whole: they are rounded floats."""
    return re.sub(r"\d+\.\d+(e[-+]\d+)?|\d+e[-+]\d+", "#", value) if isinstance(value, str) else value


def test_it_is_an_audit_of_many_kinds(plain: Any, request: pytest.FixtureRequest) -> None:
    """Or nothing would be shown below: all verdicts but error, and passes by the engine."""
    verdicts = {check["verdict"] for check in plain["checks"]}
    assert verdicts == {"pass", "warn", "fail", "inconclusive", "not_applicable"}
    assert any(check["sampler"].startswith("engine") for check in plain["checks"])
    subjects = {check["subject"] for check in plain["checks"]}
    assert len(subjects) >= (10 if request.config.getoption("--nightly") else 9)


APART = pytest.mark.nightly("another process each; every push has both at once")


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        pytest.param(("-n", "2"), "reversed", id="workers, reversed"),
        pytest.param(("-n", "2"), "as written", id="workers", marks=APART),
        pytest.param((), "reversed", id="reversed", marks=APART),
    ],
)
def test_runs_are_equal_to_the_last_digit(plain: Any, run: Run, arguments: tuple[str, ...], order: str) -> None:
    """Each is a process of its own, with another order of hashes, and each test finds another random state."""
    assert list(values(run(*arguments, order=order))) == list(values(plain))


@pytest.mark.nightly("two sessions; every push has workers and the reversed order, which change more")
@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(("-k", "wide or trained"), id="some"),
        pytest.param((), id="all", marks=pytest.mark.nightly("every push has those that threads can change the most")),
    ],
)
def test_more_threads_change_rounding_and_nothing_else(plain: Any, run: Run, chosen: tuple[str, ...]) -> None:
    """Verdicts, counts and words are equal. What was trained is another model then: rounding grows in training."""
    many = run(*chosen, threads=3)
    if chosen:
        names = {subject["name"] for subject in many["subjects"]}
        assert len(names) == 3
        plain = {
            "checks": [check for check in plain["checks"] if check["subject"] in names],
            "subjects": [subject for subject in plain["subjects"] if subject["name"] in names],
        }
        many = {part: many[part] for part in plain}
    verdicts = [[(c["subject"], c["id"], c["verdict"]) for c in audit["checks"]] for audit in (plain, many)]
    assert verdicts[0] == verdicts[1]

    def untrained(audit: Any) -> dict[str, object]:
        checks = [check for check in audit["checks"] if check["subject"] != "trained"]
        subjects = [subject for subject in audit["subjects"] if subject["name"] != "trained"]
        return dict(values({**audit, "checks": checks, "subjects": subjects, "changed": []}))

    before, after = untrained(plain), untrained(many)
    assert list(before) == list(after)
    for where, one in before.items():
        other = after[where]
        if isinstance(one, float) and isinstance(other, float):
            assert math.isclose(one, other, rel_tol=1e-6, abs_tol=ROUNDING), (where, one, other)
        else:
            assert masked(one) == masked(other), where
