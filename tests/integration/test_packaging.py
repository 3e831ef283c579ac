"""What is installed is the package and nothing else: sdist, wheel from that sdist, import from that wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pytest_bnn.records.run import json_schema

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True, text=True
    )
    (found,) = folder.glob("*.whl")
    return found


def test_top_level(wheel: Path) -> None:
    """The links checks and fixtures at the root must not become packages of their own."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"pytest_bnn"}
    for needed in (
        "pytest_bnn/py.typed",
        "pytest_bnn/checks/layers/replaced.py",
        "pytest_bnn/fixtures/teachers.py",
        "pytest_bnn/schema/audit.schema.json",
        "pytest_bnn/example/teachers/digits-resnet18.safetensors",
        "pytest_bnn/example/teachers/digits-resnet18.json",
    ):
        assert needed in names
    assert any(name.startswith("pytest_bnn/report/templates/") for name in names)


def test_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Both sub-packages import from what was installed, and not from the checkout."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import pytest_bnn.checks, pytest_bnn.fixtures\n"
        "print(pytest_bnn.checks.__file__); print(pytest_bnn.fixtures.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert all(line.startswith(str(tmp_path / "site")) for line in done.stdout.split())
    entry_points = next((tmp_path / "site").glob("*.dist-info/entry_points.txt")).read_text(encoding="utf-8")
    assert "bnn = pytest_bnn.plugin" in entry_points
    assert "pytest-bnn = pytest_bnn.cli:main" in entry_points


def test_links() -> None:
    """The two parts that users extend are one step away from the root."""
    for name in ("checks", "fixtures"):
        assert (ROOT / name).resolve() == ROOT / "pytest_bnn" / name


def test_schema_is_published_as_it_is() -> None:
    """The schema file is what the records say: regenerate it with ``pytest-bnn schema``."""
    published = json.loads((ROOT / "pytest_bnn" / "schema" / "audit.schema.json").read_text(encoding="utf-8"))
    assert published == json_schema()


def test_modules_are_short() -> None:
    """A stranger finds his way in modules of about 300 lines."""
    long = {
        str(path.relative_to(ROOT)): count
        for path in (ROOT / "pytest_bnn").rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 360
    }
    assert not long
