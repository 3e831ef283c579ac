"""What is installed is the package and nothing else: sdist, wheel from that sdist, import from that wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

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


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_version_is_one_everywhere() -> None:
    """Package, citation and changelog name the same release, and the changelog its day."""
    version = _project()["project"]["version"]
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (released,) = re.findall(rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", changes, re.M)
    assert f"\nversion: {version}\n" in cited
    assert f'\ndate-released: "{released}"\n' in cited
    assert re.findall(r"^## \[(.+?)\]", changes, re.M)[:2] == ["Unreleased", version]


def test_dependency_groups_are_the_extras() -> None:
    """PEP 735's groups name the extras, so that no list stands twice; `dev` has all of them."""
    project = _project()
    groups = project["dependency-groups"]
    extras = {name: one for name, one in project["project"]["optional-dependencies"].items() if name != "ray"}
    assert groups.keys() == extras.keys()
    for name in extras:
        assert f"pytest-bnn[{name}]" in groups[name]
    included = {entry["include-group"] for entry in groups["dev"] if isinstance(entry, dict)}
    assert included == extras.keys() - {"dev"}


def test_pytest_is_strict(pytestconfig: pytest.Config) -> None:
    """By settings: as options in ``addopts`` pytest 9.0 ignored them, so that a mistyped marker was a warning."""
    for setting in ("strict_config", "strict_markers", "strict_xfail"):
        assert pytestconfig.getini(setting) is True


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_trust_little(path: Path) -> None:
    """Actions by commit with their version, no rights but what a job names, no credentials left in the checkout."""
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)$", text, re.M)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    assert "\npermissions: {}\n" in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    yaml = pytest.importorskip("yaml", reason="runs where the docs extra is installed (myst-parser brings PyYAML)")
    for name, job in yaml.safe_load(text)["jobs"].items():
        assert job["timeout-minutes"] <= 180, name
        assert set(job["permissions"]) <= {"contents", "id-token"}, name


def test_workflows_run_what_the_project_runs() -> None:
    """Every supported Python is tested, and each session that a workflow names exists."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    classifiers = _project()["project"]["classifiers"]
    supported = [c.rpartition(" ")[2] for c in classifiers if re.fullmatch(r".*Python :: 3\.\d+", c)]
    (matrix,) = re.findall(r"python: \[(.*)\]", text)
    assert re.findall(r'"(.+?)"', matrix) == supported
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.M))
    named = {session for line in re.findall(r"run: nox -s (.*)$", text, re.M) for session in line.split()}
    assert named
    assert named <= sessions


def test_workflows_are_clean() -> None:
    """By zizmor, a static analysis of workflows, in its pedantic mood."""
    zizmor = shutil.which("zizmor", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if zizmor is None:
        pytest.skip("runs where the lint extra is installed, as in .ci/run")
    command = [zizmor, "--offline", "--no-progress", "--persona=pedantic", str(ROOT / ".github")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_issue_forms_are_valid() -> None:
    """What GitHub asks of a form: a name, a description, and fields with a label each under ids of their own."""
    yaml = pytest.importorskip("yaml", reason="runs where the docs extra is installed (myst-parser brings PyYAML)")
    paths = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))
    assert len(paths) == 4
    for path in paths:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"], path
        assert form["description"], path
        ids = [field["id"] for field in form["body"]]
        assert len(set(ids)) == len(ids) > 0
        for field in form["body"]:
            assert field["type"] in {"input", "textarea", "checkboxes"}, path
            assert field["attributes"]["label"], path
