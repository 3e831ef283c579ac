"""Which networks a session audits without a test: those that options, arguments or pyproject.toml name."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_bnn.audit import subjects
from pytest_bnn.audit.fields import ALLOW, ALLOW_HELP, KL_LOSS, PARTS
from pytest_bnn.audit.subjects import Described
from pytest_bnn.checks import choices
from pytest_bnn.errors import InputError

TABLES = "pyproject.toml"
_BESIDE = (*PARTS, *KL_LOSS)
_AUDIT_HELP = (
    "audit the Bayesian network that this function returns, one test a check; may be repeated. The options below "
    "describe it; a name in the place of a path selects it alone"
)
_SUBJECTS_HELP = (
    "audit networks of [tool.pytest-bnn.subjects.NAME] in pyproject.toml too: all, none or their names (default: the "
    "ini option bnn_subjects where pytest collects the root folder, and none of them without it)"
)


@dataclass(slots=True)
class Wanted:
    """A network to audit; ``checks`` are those that node ids select, None for all."""

    described: Described
    checks: set[str] | None

    def also(self, check: str | None) -> None:
        """Select one more check; None selects all."""
        if check is None:
            self.checks = None
        elif self.checks is not None:
            self.checks.add(check)


@dataclass(slots=True)
class Request:
    """What a session audits beside its tests: networks of options and arguments, and those of pyproject.toml."""

    named: dict[str, Wanted] = field(default_factory=dict)
    listed: dict[str, Wanted] = field(default_factory=dict)


_REQUEST = pytest.StashKey[Request]()


def of(config: pytest.Config) -> Request:
    """Return what a session audits beside its tests."""
    return config.stash[_REQUEST]


def add_options(group: pytest.OptionGroup, parser: pytest.Parser) -> None:
    """Add ``--bnn-audit``, what describes its network, and ``--bnn-subjects``."""
    group.addoption("--bnn-audit", metavar="MODULE:FACTORY", action="append", default=[], help=_AUDIT_HELP)
    for one in _BESIDE:
        argument = {**one.argument, "help": one.help.replace("--", "--bnn-")}
        group.addoption(f"--bnn-{one.name}", default=None, **argument)
    group.addoption(f"--bnn-{ALLOW}", metavar="PATTERN=REASON", action="append", default=[], help=ALLOW_HELP)
    group.addoption("--bnn-subjects", metavar="all|none|NAME,...", default=None, help=_SUBJECTS_HELP)
    parser.addini("bnn_subjects", "networks of pyproject.toml that are audited with the root folder: all, none or "
                  "NAME,...", default="")  # fmt: skip


def take(config: pytest.Config) -> None:
    """Find out what is to be audited, and leave the arguments to pytest that are its own.

    Raises:
        InputError: There is no such subject, or its table cannot be used.
    """
    request = config.stash[_REQUEST] = Request()
    others = []
    for argument in config.args:
        head, *names = argument.split("::")
        module = head.rpartition("/")[2]
        if _path(config, head) == config.rootpath / TABLES:
            _take_listed(request, config, names)
        elif subjects.is_named(module) and set(head.split("/")[:-1]) <= {".."} and not _path(config, head).exists():
            _take_named(request, config, module, _check_of(names, argument))
        else:
            others.append(argument)
    alone = len(others) < len(config.args) and not others
    config.args[:] = others
    for model in config.getoption("--bnn-audit"):
        _take_named(request, config, model, None)
    _require_use(request, config)
    asked = config.getoption("--bnn-subjects")
    if asked is None and not alone and _collects_root(config):
        asked = str(config.getini("bnn_subjects")) or None
        option = "bnn_subjects in the ini file"
    else:
        option = "--bnn-subjects"
    if asked is not None and asked.strip() != "none":
        known = subjects.from_project(config.rootpath)
        names = [name.strip() for name in asked.split(",") if name.strip()]
        if not known and option == "--bnn-subjects":
            _refuse_none(option)
        for one in known if names == ["all"] else subjects.chosen(known, names, option):
            request.listed.setdefault(one.name, Wanted(one, None)).also(None)
    for wanted in (*request.named.values(), *request.listed.values()):
        choices.require_usable(wanted.described.choices, finally_=False)


def left_out(config: pytest.Config) -> str:
    """Say how many networks of pyproject.toml a session does not audit; empty where it audits all."""
    listed = choices.project_table(config.rootpath).get("subjects", {})
    audited = {name.partition(subjects.AT)[0] for name in of(config).listed}
    count = len(set(listed) - audited)
    if not count:
        return ""
    word = "subject" if count == 1 else "subjects"
    return f"bnn: {count} {word} of {TABLES} not audited here; --bnn-subjects all, or pytest {TABLES}, does"


def _path(config: pytest.Config, argument: str) -> Path:
    return Path(os.path.normpath(config.invocation_params.dir / argument))


def _check_of(names: list[str], argument: str) -> str | None:
    if len(names) > 1:
        raise InputError(f"{argument!r} has {len(names)} names behind its network", fix="name one check, such as "
                         f"{argument.partition('::')[0]}::kl.loss")  # fmt: skip
    return names[0] if names else None


def _take_listed(request: Request, config: pytest.Config, names: list[str]) -> None:
    known = subjects.from_project(config.rootpath)
    check = _check_of(names[1:], f"{TABLES}::{'::'.join(names)}")
    if not known:
        _refuse_none("")
    for one in subjects.chosen(known, names[:1], TABLES) if names else known:
        new = Wanted(one, None if check is None else set())
        request.listed.setdefault(one.name, new).also(check)


def _refuse_none(option: str) -> NoReturn:
    asked = f"{option}: " if option else ""
    raise InputError(f"{asked}{TABLES} has no subjects", fix="write [tool.pytest-bnn.subjects.my_net] with a model")


def _take_named(request: Request, config: pytest.Config, model: str, check: str | None) -> None:
    if model not in request.named:
        given: dict[str, Any] = {one.key: config.getoption(f"--bnn-{one.name}") for one in _BESIDE}
        given[ALLOW] = config.getoption(f"--bnn-{ALLOW}")
        described = subjects.from_options(model, given, "--bnn-")
        request.named[model] = Wanted(described, None if check is None else set())
    request.named[model].also(check)


def _require_use(request: Request, config: pytest.Config) -> None:
    """Refuse what would be ignored without a word."""
    for name in () if request.named else (*(one.name for one in _BESIDE), ALLOW):
        if config.getoption(f"--bnn-{name}") not in (None, []):
            raise InputError(
                f"--bnn-{name} without --bnn-audit",
                fix="name your network with --bnn-audit MODULE:FACTORY; one of pyproject.toml has it in its table",
            )


def _collects_root(config: pytest.Config) -> bool:
    """Return whether pytest collects the root folder: no path was given, or one that it lies in."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return True
    return any(_path(config, argument) in (config.rootpath, *config.rootpath.parents) for argument in config.args)
