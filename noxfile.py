"""What CI does, on a laptop: ``nox`` runs what every push runs, ``nox -s nightly`` everything.

Each session has an environment of its own; ``nox -R`` takes the one of the last run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "imports", "types", "docs"]
nox.options.default_venv_backend = "venv"

#: One thread a worker: many small tensors do not gain by more.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WORKERS = ("-n", str(min(os.cpu_count() or 1, 8)), "--dist", "worksteal")


@nox.session
def tests(session: nox.Session) -> None:
    """What every push runs, some minutes; give pytest's arguments after ``--``."""
    session.install(".[test]")
    session.run("pytest", *WORKERS, *session.posargs, env=ONE_THREAD)


@nox.session
def lowest(session: nox.Session) -> None:
    """The oldest versions that ``pyproject.toml`` allows: the README's tour, as a user's tests and as one command."""
    session.install("uv>=0.5")
    python = session.virtualenv.bin + "/python"
    session.run("uv", "pip", "install", "--resolution", "lowest-direct", "--python", python, ".")
    readme = Path("README.md").read_text(encoding="utf-8")
    folder = Path(session.create_tmp())
    for name, text in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", readme, re.M | re.S):
        (folder / name).write_text(text, encoding="utf-8")
    session.chdir(folder)
    session.run("pytest", "-q", "--bnn-report=tests.html", env=ONE_THREAD)
    session.run(
        *("pytest-bnn", "audit", "--model", "my_net:bayesian", "--teacher", "my_net:teacher"),
        *("--data", "my_net:held_out", "--loss", "my_net:loss", "--num-batches", "45"),
        env=ONE_THREAD,
    )


@nox.session
def nightly(session: nox.Session) -> None:
    """Every test, with random examples and more of them: an hour or so."""
    # A library that no adapter knows, whose licence is not ours to bring to everyone who runs the tests.
    session.install(
        *(".[test,ray]", "distributed>=2024.8", "loky>=3.4"),
        *("blitz-bayesian-pytorch>=0.2.8", "pytest-rerunfailures>=14"),
    )
    session.run("pytest", "--nightly", *WORKERS, *session.posargs, env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, by ruff, and the workflows, by zizmor."""
    session.install("ruff>=0.6", "zizmor>=1.20")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("zizmor", "--offline", "--no-progress", ".github")


@nox.session
def imports(session: nox.Session) -> None:
    """Which room may know which, by import-linter."""
    session.install(".", "import-linter>=2.7")
    session.run("lint-imports", "--no-logo")


@nox.session
def types(session: nox.Session) -> None:
    """Types, by mypy in strict mode."""
    session.install(".[test,lint,dev]")
    session.run("mypy", "pytest_bnn", "tests", "examples", "benchmarks", "noxfile.py")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, built without a warning, its examples run."""
    session.install(".[test,docs]")
    session.run("pytest", "-q", "tests/integration/test_docs.py", env=ONE_THREAD)
