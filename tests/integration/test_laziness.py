"""Nobody pays for what they do not use: torch and its kin load with the first check, not with the plugin."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "torchvision", "bayesian_torch", "numpy", "scipy", "sklearn", "PIL", "safetensors", "jinja2", "rich",
    "hypothesis", "msgspec",
)  # fmt: skip


def loaded(code: str) -> set[str]:
    """Run code in a new process; give the modules that it loaded, those of the heavy packages and ours."""
    ours = (*HEAVY, "pytest_bnn")
    told = f"{code}\nimport sys\nprint('LOADED', [m for m in sys.modules if m.partition('.')[0] in {ours}])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=120)
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOADED "))
    modules: list[str] = ast.literal_eval(line.removeprefix("LOADED "))
    return set(modules)


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--markers"], ["--collect-only", "-q"], ["-q"]],
    ids=lambda arguments: arguments[0],
)
def test_pytest_loads_nothing_heavy(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The plugin is active in every project of an environment; only what it adds counts, compared with -p no:bnn."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_plain.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    run = "import os, pytest; os.chdir({!r}); pytest.main(['-p', 'no:cacheprovider', *{!r}])"
    with_us = loaded(run.format(str(folder), arguments))
    without_us = loaded(run.format(str(folder), [*arguments, "-p", "no:bnn"]))
    assert packages(with_us - without_us) <= {"pytest_bnn"}
    assert "pytest_bnn.plugin" in with_us, "the plugin was not active, so nothing was shown"
    assert packages(without_us) <= {"hypothesis"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    """import pytest_bnn is what every test module of a user starts with."""
    assert packages(loaded("import pytest_bnn; dir(pytest_bnn)")) == {"pytest_bnn"}


def test_what_needs_no_torch_loads_none() -> None:
    """Verdicts and records are for readers of audits, who may have nothing to do with torch."""
    assert "torch" not in packages(loaded("from pytest_bnn import AuditRun, Evidence, Verdict, InputError"))


@pytest.mark.parametrize("how", ["option", "table"])
def test_networks_that_are_only_named_are_collected_without_torch(
    how: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nor is their own module imported before an item runs."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text("import torch\n", encoding="utf-8")
    table = '[tool.pytest-bnn.subjects.net]\nmodel = "net:make"\nteacher = "net:teacher"\n'
    (folder / "pyproject.toml").write_text(table, encoding="utf-8")
    arguments = ["net:make", "--bnn-teacher=net:teacher"] if how == "option" else ["pyproject.toml"]
    run = "import os, pytest; os.chdir({!r}); pytest.main(['--co', '-q', '-p', 'no:cacheprovider', *{!r}])"
    found = loaded(run.format(str(folder), arguments))
    assert "pytest_bnn.items.nodes" in found
    assert not packages(found) & {"torch", "torchvision", "numpy", "scipy", "bayesian_torch", "jinja2", "rich"}


@pytest.mark.parametrize("arguments", [["--help"], ["audit", "--help"], ["init", "--help"], ["schema"]], ids=" ".join)
def test_the_command_line_starts_without_torch(arguments: list[str]) -> None:
    """--help answers at once."""
    code = f"import pytest_bnn.cli\ntry:\n    pytest_bnn.cli.main({arguments!r})\nexcept SystemExit:\n    pass"
    assert not packages(loaded(code)) & {"torch", "torchvision", "numpy", "scipy", "sklearn", "hypothesis"}


def test_public_names_resolve_and_are_listed() -> None:
    """A lazy name that leads nowhere would show only when somebody uses it."""
    import pytest_bnn

    assert {name for name in pytest_bnn.__all__ if getattr(pytest_bnn, name) is None} == set()
    assert set(pytest_bnn.__all__) <= set(dir(pytest_bnn))
    assert list(pytest_bnn.__all__) == sorted(set(pytest_bnn.__all__))
    assert set(pytest_bnn._HOME_OF) == set(pytest_bnn.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """hasattr() and typing tools rely on it."""
    import pytest_bnn

    with pytest.raises(AttributeError, match="'pytest_bnn' has no attribute 'audit_everything'"):
        pytest_bnn.audit_everything  # type: ignore[attr-defined]  # noqa: B018
