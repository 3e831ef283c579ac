"""What a session of pytest shows beside verdicts: a header, waiting, tracebacks; and what other plugins can do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.integration.sessions import Session
from tests.integration.test_plugin import session

TESTS = """
import net
import pytest
import pytest_bnn
import torch


def test_assert():
    pytest_bnn.assert_layers_replaced(helper())


def helper():
    return net.partly()


def test_audit(bnn_audit):
    bnn_audit(net.partly(), checks=["layers.replaced"]).raise_for_failures()


def test_evidence():
    pytest_bnn.measure_layers_replaced(net.partly()).raise_if_failed()


def test_input(bnn_audit):
    bnn_audit(net.partly(), checks=["layers.replacd"])


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return broken()


def broken():
    raise ZeroDivisionError("the data set's own trouble")


def test_data(bnn_audit):
    bnn_audit(net.partly(), data=Data())


def test_option():
    pytest_bnn.assert_layers_replaced(net.partly(), alow={})


def test_fixture(fixture):
    pass


@pytest.fixture
def fixture():
    return pytest_bnn.assert_layers_replaced(net.partly())


def test_defect(monkeypatch):
    from pytest_bnn.audit import run

    monkeypatch.setattr(run, "planned", lambda *_: 1 / 0)
    pytest_bnn.audit_model(net.partly())
"""

NAMES = ("assert", "audit", "evidence", "input", "data", "option", "fixture", "defect")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory, net_py: str) -> Session:
    return session(tmp_path_factory.mktemp("failing"), {"net.py": net_py, "test_it.py": TESTS}, "--tb=short")


def story(told: Session, name: str) -> str:
    """Return what stands below the headline of a failed test."""
    found = re.search(rf"^_+ (?:ERROR at setup of )?test_{name} _+$\n(.*?)(?=^[_=]{{5,}})", told.text, re.M | re.S)
    assert found, told.text
    return found[1]


def places(text: str) -> list[str]:
    """Return the files of a short traceback, one for each frame."""
    return [Path(name).name for name in re.findall(r"^(\S+\.py):\d+: in ", text, re.M)]


@pytest.mark.parametrize("name", ["assert", "audit", "evidence", "input", "option", "fixture"])
def test_a_traceback_is_the_user_s_line_and_the_sentence(failing: Session, name: str) -> None:
    """The place in this package where a claim or a mistake was noticed helps nobody."""
    told = story(failing, name)
    assert places(told) == ["test_it.py"], told
    assert f"test_{name}" in told or name == "fixture"
    assert re.search(r"^E  +\S*(AssertionError|InputError|TypeError): ", told, re.M), told


def test_the_user_s_own_frames_stay(failing: Session) -> None:
    """A data set that raises is shown where it raised, without what called it."""
    told = story(failing, "data")
    assert set(places(told)) == {"test_it.py"}, told
    for words in (
        "in broken",
        "in __getitem__",
        "ZeroDivisionError: the data set's own trouble",
        "InputError",
        "in test_data",
    ):
        assert words in told


def test_a_defect_of_ours_shows_where(failing: Session) -> None:
    """Whoever reports it needs the frames."""
    assert "run.py" in places(story(failing, "defect"))


def test_full_trace_shows_all(tmp_path: Path, net_py: str) -> None:
    """Who asks for everything gets it."""
    files = {"net.py": net_py, "test_it.py": TESTS}
    told = session(tmp_path, files, "--tb=short", "--full-trace", "-k", "assert or input")
    assert re.search(r"evidence\.py:\d+: AssertionError$", story(told, "assert"), re.M)
    assert re.search(r"registry\.py:\d+: InputError$", story(told, "input"), re.M)


def test_a_check_of_a_taken_id_shows_its_line(tmp_path: Path) -> None:
    """A module that cannot be collected, for what it declares: the decorator's line is the last one."""
    text = "import pytest_bnn\n\n\n@pytest_bnn.check('kl.loss', claim='Mine.')\ndef mine(subject):\n    pass\n"
    told = session(tmp_path, {"test_it.py": text}, "--tb=short")
    assert "'kl.loss' is a check of pytest-bnn" in told.text
    assert places(told.text)[-1] == "test_it.py"


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "test_plain.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    return folder


def test_sessions_that_use_none_of_it_show_nothing(plain_folder: Path) -> None:
    """The plugin is active in every project of an environment."""
    assert "bnn:" not in session(plain_folder, {}).text


@pytest.mark.parametrize("arguments", [("--bnn-seed=3",), ("--bnn-set", "kl.loss.severity=warn"), ("-o", "bnn_seed=3")])
def test_a_setting_brings_the_header(plain_folder: Path, arguments: tuple[str, ...]) -> None:
    """Who gave one wants to see that it counts."""
    told = session(plain_folder, {}, *arguments).text
    assert re.search(r"^bnn: weights digits, seed [03], at most 128 passes a check$", told, re.M)


SLOW = """
import net
import pytest_bnn
import pytest_bnn.waiting

pytest_bnn.waiting.FIRST = pytest_bnn.waiting.NEXT = 0.0


def test_audit(bnn_audit):
    print("captured")
    bnn_audit(net.bayesian(), data=net.held_out(), name="mine", checks=["noise.varies", "kl.present"])
"""


def test_long_checks_say_so(tmp_path: Path, net_py: str) -> None:
    """On the terminal, past the capture; -qq stays quiet."""
    files = {"net.py": net_py, "test_slow.py": SLOW}
    told = session(tmp_path, files).text
    line = r"^bnn: 0 s in test_slow\.py::test_audit: check 2 of 2, kl\.present on mine$"
    assert re.search(line, told, re.M), told
    assert "captured" not in told
    assert "1 passed" in told
    assert "bnn: 0 s" not in session(tmp_path, {}, "-qq").text


@pytest.mark.nightly("a session with a worker")
def test_workers_do_not_say_that_checks_are_long(tmp_path: Path, net_py: str) -> None:
    files = {"net.py": net_py, "test_slow.py": SLOW}
    assert "bnn: 0 s" not in session(tmp_path, files, "-n", "1").text


HOOKS = """
import json
import pathlib

import pytest

import pytest_bnn


@pytest.fixture(scope="session")
def shared():
    import net

    return pytest_bnn.measure_layers_replaced(net.bayesian(), name="shared")


def pytest_bnn_evidence(item, evidence):
    assert isinstance(evidence, pytest_bnn.Evidence)
    with pathlib.Path("evidence.txt").open("a") as file:
        file.write(f"{item.name} {evidence.subject} {evidence.id} {evidence.verdict}\\n")


def pytest_bnn_subject(subject):
    with pathlib.Path("evidence.txt").open("a") as file:
        file.write(f"subject {subject.name}\\n")


def pytest_bnn_report(config, run):
    return {"build": 42, "checks": f"{len(run.checks)} in {config.rootpath.name}"}
"""

HOOKED = """
import net


def test_audit(bnn_audit, shared):
    bnn_audit(net.partly(), name="mine", checks=["layers.replaced"])


def test_nothing():
    pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "worker"])
def test_hooks_of_other_plugins(tmp_path: Path, net_py: str, workers: tuple[str, ...]) -> None:
    """Evidence as it is recorded, of shared fixtures too, and texts for the report's provenance."""
    files = {"net.py": net_py, "conftest.py": HOOKS, "test_hooked.py": HOOKED}
    told = session(tmp_path, files, "--bnn-report=out/audit.html", *workers)
    assert told.code == 0, told.text
    assert (tmp_path / "evidence.txt").read_text(encoding="utf-8").splitlines() == [
        "test_audit shared layers.replaced pass",
        "test_audit mine layers.replaced fail",
        "subject mine",
    ]
    provenance = json.loads((tmp_path / "out/audit.json").read_text(encoding="utf-8"))["provenance"]
    assert (provenance["build"], provenance["checks"]) == ("42", f"2 in {tmp_path.name}")
