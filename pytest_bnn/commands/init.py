"""``pytest-bnn init``: a module and a test to begin with, for a network of one's own."""

from __future__ import annotations

import argparse
import keyword
import re
import subprocess
import sys
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.audit.fields import reading
from pytest_bnn.audit.subjects import is_named
from pytest_bnn.commands.command import BROKEN, FAILED, PASSED
from pytest_bnn.commands.starter import FUNCTIONS, Starter
from pytest_bnn.errors import InputError
from pytest_bnn.reading import whole

if TYPE_CHECKING:
    from pytest_bnn.commands.command import Commands

_TOML = "pyproject.toml"
_WHAT = {
    "model": "the Bayesian network, as you converted and trained it",
    "teacher": "the deterministic network that it was converted from",
    "data": "examples that training has not seen, best with labels",
    "loss": "the loss that trains the Bayesian network, called as loss(model, batch)",
}
_DESCRIPTION = """\
Write NAME.py, which says where your network, its teacher, its data and its training loss come from, and test_NAME.py,
which audits it; then run that test. On a terminal it asks what it was not told. Without any answer it writes an example
that is complete: run it, then replace its functions one by one."""


def add(commands: Commands) -> None:
    """Add the command."""
    init = commands.add_parser(
        "init",
        help="write a module and a test to begin with",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    init.add_argument("--name", default="my_net", help="what the files are called (default: %(default)s)")
    for part, what in _WHAT.items():
        metavar = "MODULE:FUNCTION" if part == "loss" else "MODULE:FACTORY"
        verb = "" if part == "loss" else "function that returns "
        init.add_argument(f"--{part}", metavar=metavar, help=f"{verb}{what}")
    init.add_argument("--checkpoint", metavar="FILE", help="a state that is loaded into the network of --model")
    init.add_argument("--batches", metavar="N", type=reading(whole(1)),
                      help="training batches an epoch: expect the KL term with the weight 1/N")  # fmt: skip
    init.add_argument("--pyproject", action="store_true", help="write a table in pyproject.toml in place of the test")
    init.add_argument("--no-run", action="store_true", help="write only")
    init.add_argument("--force", action="store_true", help="overwrite the files, and the table, of this name")
    init.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    init.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Write the files and run them; return the exit code."""
    told = any(getattr(given, name) is not None for name in (*FUNCTIONS, "checkpoint", "batches"))
    if not told and sys.stdin.isatty() and sys.stdout.isatty():
        _ask(given)
    starter = _starter(given)
    module = Path(f"{starter.name}.py")
    other = Path(_TOML if given.pyproject else f"test_{starter.name}.py")
    texts = {module: starter.module(Path.cwd(), table=given.pyproject)}
    texts[other] = _with_table(starter, force=given.force) if given.pyproject else starter.test()
    for path in texts:
        if path.exists() and not given.force and path.name != _TOML:
            raise InputError(f"{str(path)!r} exists", fix="choose another --name, or overwrite it with --force")
    _require_there(starter)
    for path, text in texts.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})", fix="run it in another folder") from error
    table = f"[tool.pytest-bnn.subjects.{starter.name}] in {_TOML}"
    print(f"wrote {module} and {table if given.pyproject else other}")
    what = f"{_TOML}::{starter.name}" if given.pyproject else str(other)
    code = PASSED if given.no_run else _run(what)
    print(_to_edit(starter, module, what))
    return code


def _require_there(starter: Starter) -> None:
    """Refuse functions that cannot be imported, or called, before a file names them."""
    if not starter.parts:
        return
    from pytest_bnn.data.sources import load

    for part, name in starter.parts.items():
        if not callable(load(name, f"--{part}")):
            raise InputError(f"--{part}: {name} cannot be called", fix=f"name a function that gives {_WHAT[part]}"
                             if part != "loss" else "name a function that is called as loss(model, batch)")  # fmt: skip


def _starter(given: argparse.Namespace) -> Starter:
    name = given.name
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        raise InputError(f"--name is {name!r}", fix="give a name that a Python module can have, such as my_net")
    elsewhere = [path for path in sys.path if path and Path(path).resolve() != Path.cwd()]
    if name in sys.builtin_module_names or PathFinder.find_spec(name, elsewhere) is not None:
        raise InputError(f"--name is {name!r}, and a module of that name is installed", fix="choose another name")
    parts = {part: value for part in FUNCTIONS if (value := getattr(given, part)) is not None}
    for part, value in parts.items():
        if not is_named(value) or "." in value.partition(":")[2]:
            raise InputError(f"--{part} is {value!r}", fix="write it like package.module:function")
        if value.partition(":")[0] == name:
            raise InputError(
                f"--{part} is in {value.partition(':')[0]!r}, which is what the new module would be called",
                fix="choose another --name",
            )
    if "model" not in parts and (parts or given.checkpoint):
        first = next(iter(parts), "checkpoint")
        raise InputError(f"--{first} without --model", fix="name your Bayesian network too: --model MODULE:FACTORY")
    if given.checkpoint and not Path(given.checkpoint).is_file():
        raise InputError(f"there is no file {given.checkpoint!r}", fix="give the path of a checkpoint")
    return Starter(name=name, parts=parts, checkpoint=given.checkpoint or "", batches=given.batches)


def _ask(given: argparse.Namespace) -> None:
    """Ask for the parts of a network, until the answers can be used; nothing more where there is no network."""
    print("Press Enter where you have none; without a network an example is written that runs as it is.")
    for part, what in _WHAT.items():
        form = "MODULE:FUNCTION" if part == "loss" else "MODULE:FACTORY"
        setattr(given, part, _answer(f"{what[0].upper()}{what[1:]} ({form}): ", lambda text: text if is_named(text)
                                     else None, "write it like package.module:function"))  # fmt: skip
        if given.model is None:
            return
    given.checkpoint = _answer("A checkpoint to load into it (a file): ", lambda text: text if Path(text).is_file()
                               else None, "there is no such file")  # fmt: skip
    number = _answer("Training batches an epoch (a number): ", lambda text: text if re.fullmatch("[1-9][0-9]*", text)
                     else None, "give a whole number from 1")  # fmt: skip
    given.batches = None if number is None else int(number)


def _answer(question: str, read: object, problem: str) -> str | None:
    assert callable(read)
    while True:
        try:
            text = input(question).strip()
        except EOFError:
            return None
        if not text:
            return None
        if read(text) is not None:
            return text
        print(f"  {problem}")


def _with_table(starter: Starter, *, force: bool) -> str:
    """Return pyproject.toml with the table of a network at its end."""
    path = Path(_TOML)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    header = f"[tool.pytest-bnn.subjects.{starter.name}"
    try:
        listed = tomllib.loads(text).get("tool", {}).get("pytest-bnn", {}).get("subjects", {})
    except (tomllib.TOMLDecodeError, AttributeError) as error:
        raise InputError(f"{_TOML} cannot be read ({error})", fix="mend it first") from error
    if starter.name in listed:
        if not force:
            raise InputError(f"{header}] in {_TOML} exists", fix="choose another --name, or overwrite it with --force")
        kept, inside = [], False
        for line in text.splitlines(keepends=True):
            if line.lstrip().startswith("["):
                inside = line.lstrip().startswith((f"{header}]", f"{header}."))
            kept += [] if inside else [line]
        text = "".join(kept)
    whole_text = f"{text.rstrip()}\n\n{starter.table()}" if text.strip() else starter.table()
    try:
        tomllib.loads(whole_text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the table does not fit into {_TOML} ({error})", fix=f"write it by hand: {starter.table()!r}"
                         ) from error  # fmt: skip
    return whole_text


def _run(what: str) -> int:
    command = [sys.executable, "-m", "pytest", what, "--bnn-report=audit.html"]
    print(f"running pytest {what} --bnn-report=audit.html", flush=True)
    code = subprocess.run(command, check=False).returncode  # noqa: S603  this Python, and files that were written here
    return code if code in (PASSED, FAILED) else BROKEN


def _to_edit(starter: Starter, module: Path, what: str) -> str:
    to_write = [part for part in FUNCTIONS if not starter.parts or part not in starter.parts]
    lines = [f"What to {'write' if starter.parts else 'edit'} in {module}:"] if to_write else []
    lines += [f"  {FUNCTIONS[part] + '()':<11} {_WHAT[part]}" for part in to_write]
    if starter.has_batches and not starter.parts:
        lines.append("  BATCHES     the training batches an epoch")
    missing = [FUNCTIONS[part] for part in FUNCTIONS if part not in starter.given]
    if missing:
        place = f"[tool.pytest-bnn.subjects.{starter.name}]" if "::" in what else f"the call in {what}"
        lines.append(f"What you write there ({', '.join(missing)}), name in {place} too.")
    lines.append(f"Then: pytest {what} --bnn-report=audit.html, and open audit.html.")
    return "\n".join(lines)
