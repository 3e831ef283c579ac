"""User code in a project of its own, checked by mypy in strict mode against the installed stubs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CODE = Path(__file__).with_name("user_code.py")

WRONG = """
import pytest_bnn
from torch import nn

def test(bnn_audit: pytest_bnn.Audit, model: nn.Module) -> None:
    bnn_audit(model, los=None)
    bnn_audit(model, loss=3)
    pytest_bnn.assert_kl_loss(model, num_batches="45")
    pytest_bnn.no_such_name
"""


def mypy(folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mypy", reason="comes with the extra lint")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", ".mypy", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.nightly("mypy reads torch from scratch, a minute; every push checks the same file with all tests")
def test_user_code_is_typed(tmp_path: Path) -> None:
    """What fits passes; each of four mistakes is found."""
    shutil.copy(CODE, tmp_path / "good.py")
    done = mypy(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    told = mypy(tmp_path).stdout
    assert [line.split(":")[:2] for line in told.splitlines() if ": error: " in line] == [
        ["wrong.py", str(number)] for number in (6, 7, 8, 9)
    ], told


def test_public_types_are_what_the_fixtures_and_callbacks_have() -> None:
    """The names in annotations are those that are used inside."""
    import pytest_bnn
    from pytest_bnn import example
    from pytest_bnn.data import batch, loss
    from pytest_bnn.fixtures import audits

    assert pytest_bnn.Audit is audits.Audit
    assert pytest_bnn.Batch is batch.Batch
    assert pytest_bnn.Loss == loss.Loss
    assert set(example.__all__) <= set(dir(example))
    assert {name for name in example.__all__ if getattr(example, name) is None} == set()
    assert example.digits is pytest_bnn.digits
    with pytest.raises(AttributeError, match="no attribute 'dgits'"):
        example.dgits  # type: ignore[attr-defined]  # noqa: B018
