"""``python -m pytest_bnn.checks.stubs``: write what follows from the list of checks, so that nobody writes it by hand.

That is the stubs for type checkers, the tables of checks in the README and the documentation, and the names in its
API page. With ``--check`` nothing is written, and the exit code says whether all of it is fresh.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from pytest_bnn.checks import registry
from pytest_bnn.checks.declaration import Declaration

_PACKAGE = Path(__file__).resolve().parents[1]
_DOCS = _PACKAGE.parent / "docs" / "reference"
_BY = "python -m pytest_bnn.checks.stubs"


def _declared(id: str) -> Declaration:
    found = registry.declaration(id)
    assert found is not None
    return found


def stub_of_checks() -> str:
    """Return the stub of `pytest_bnn.checks`: the signature of every ``measure_*`` and ``assert_*``."""
    functions = []
    for what in ("assert", "measure"):
        for id in sorted(registry.built_in()):
            check = _declared(id)
            options = [f"{option.name}: {option.kind.annotation} = ..." for option in check.options]
            options += ["budget: Budget | None = ..."] if check.sampled else []
            parts = ["model: nn.Module | Subject", *(["*", *options] if options else []), "**given: Unpack[Given]"]
            name = f"{what}_{id.replace('.', '_')}"
            line = f"def {name}({', '.join(parts)}) -> Evidence: ..."
            if len(line) > 120:
                line = "\n".join([f"def {name}(", *(f"    {part}," for part in parts), ") -> Evidence: ..."])
            functions.append(line)
    used = "\n".join(functions)
    imports = [
        "from collections.abc import Mapping\n" if "Mapping[" in used else "",
        f"from typing import {'Literal, ' if 'Literal[' in used else ''}Unpack\n\n",
        "from torch import nn\n\n",
        "from pytest_bnn.records.evidence import Evidence\n",
        "from pytest_bnn.stats.budget import Budget\n" if "Budget" in used else "",
        "from pytest_bnn.subject import Given, Subject\n",
    ]
    return f"# Written by {_BY}.\n{''.join(imports)}\nNAMES: dict[str, str]\n\n{used}\n"


def stub_of_package(name: str) -> str:
    """Return the stub of a package with lazy names: where each of them comes from."""
    lines = []
    for home, names in sorted(importlib.import_module(name)._HOMES.items()):
        parts = [f"{name} as {name}" for name in sorted(names)]
        line = f"from {name}.{home} import {', '.join(parts)}"
        if len(line) > 120:
            line = "\n".join([f"from {name}.{home} import (", *(f"    {part}," for part in parts), ")"])
        lines.append(line)
    homes = "_HOMES: dict[str, tuple[str, ...]]\n_HOME_OF: dict[str, str]\n__all__: list[str]\n"
    return f"# Written by {_BY}.\n# ruff: noqa: I001\n" + "\n".join(lines) + f"\n\n{homes}"


def readme(text: str) -> str:
    """Return the README with the table of checks as it has to be."""
    rows = []
    for id in registry.built_in():
        check = _declared(id)
        rows.append(f"| `{id}` | {check.claim} | {'by sampling' if check.sampled else 'exact'} |\n")
    table = f"| check | claim | kind |\n|---|---|---|\n{''.join(rows)}"
    return re.sub(r"^\| check \| claim \| kind \|\n(?:\|.*\n)+", lambda _: table, text, flags=re.M)


def api(text: str) -> str:
    """Return the API page with the names of all checks."""
    for what in ("measure", "assert"):
        names = [f".. autofunction:: pytest_bnn.{what}_{id.replace('.', '_')}\n" for id in sorted(registry.built_in())]
        text = re.sub(rf"(?:^\.\. autofunction:: pytest_bnn\.{what}_\w+\n)+", "".join(names), text, flags=re.M)
    return text


def checks(text: str) -> str:
    """Return the page of checks with its table: the page of each, what it needs, how it is decided."""
    rows = []
    for id in registry.built_in():
        check = _declared(id)
        needs = ", ".join(check.needs) or "the model"
        can = ", ".join(f"`{one}`" for one in check.can)
        rows.append(
            f"| [`{id}`](../checks/{id}.md) | {needs} | {can} | {'by sampling' if check.sampled else 'exact'} |\n"
        )
    table = f"| id | needs | capabilities | decision |\n|---|---|---|---|\n{''.join(rows)}"
    return re.sub(r"^\| id \| needs \|.* decision \|\n(?:\|.*\n)+", lambda _: table, text, flags=re.M)


def written() -> dict[Path, str]:
    """Return every file that follows from the list of checks, with the text that it should have."""
    found = {
        _PACKAGE / "checks" / "__init__.pyi": stub_of_checks(),
        _PACKAGE / "__init__.pyi": stub_of_package("pytest_bnn"),
        _PACKAGE / "example" / "__init__.pyi": stub_of_package("pytest_bnn.example"),
    }
    pages = {_PACKAGE.parent / "README.md": readme, _DOCS / "api.md": api, _DOCS / "checks.md": checks}
    for path, made in pages.items():
        if path.is_file():
            found[path] = made(path.read_text(encoding="utf-8"))
    return found


def main(arguments: list[str]) -> int:
    """Write the files, or say which of them are not fresh."""
    stale = [p for p, text in written().items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        sys.stderr.writelines(f"{path} is not fresh: run {_BY}\n" for path in stale)
        return int(bool(stale))
    texts = written()
    for path in stale:
        path.write_text(texts[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
