"""One list of checks: ours by their files, others' by a decorator or an entry point, and no check twice."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from pytest_bnn.audit.run import audit_model
from pytest_bnn.checks import registry
from pytest_bnn.checks.check import Check, Finding, check
from pytest_bnn.checks.declaration import declared_in
from pytest_bnn.errors import BrokenEnvironmentError, InputError
from pytest_bnn.records.evidence import Verdict

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _forgetting() -> Iterator[None]:
    with registry.kept():
        yield


def holds(id: str, **more: object) -> Check:
    @check(id, claim="It holds.", **more)  # type: ignore[arg-type]
    def rule(subject: object) -> Finding:
        return Finding(verdict=Verdict.PASS, headline="it does")

    return rule


def test_what_is_read_is_what_is_imported() -> None:
    """--help reads the source; an audit imports it. Both must say the same, to the last default."""
    for id in registry.built_in():
        assert registry.declaration(id) == registry.load(id).declaration
        (read,) = declared_in(registry.files()[id], id, registry.load(id).declaration.where)
        known = registry.load(id).declaration
        assert [(o.name, o.default, o.kind) for o in read.options] == [
            (o.name, o.default, o.kind) for o in known.options
        ]
        assert read == known


def test_the_id_is_the_place() -> None:
    """And helpers, which begin with an underscore, are none."""
    assert registry.files()["kl.loss"] == ROOT / "pytest_bnn" / "checks" / "kl" / "loss.py"
    assert not [id for id in registry.files() if "._" in id or id.startswith("_")]
    assert set(registry.built_in()) == set(registry.files())


def test_a_check_of_a_user_runs_with_ours() -> None:
    """Declared anywhere before the audit, it is one of all checks, behind ours."""
    holds("mycompany.rule")
    assert registry.ids()[-1] == "mycompany.rule"
    run = audit_model(nn.Linear(2, 2))
    assert run["mycompany.rule"].verdict is Verdict.PASS
    assert [one.id for one in audit_model(nn.Linear(2, 2), checks=["mycompany.rule", "kl.present"]).checks] == [
        "kl.present",
        "mycompany.rule",
    ]


def test_a_check_may_name_its_place() -> None:
    """Behind the one that it builds on, before the next topic."""
    holds("kl.prior_of_mine", after="kl.loss")
    ids = registry.ids()
    assert ids[ids.index("kl.loss") + 1] == "kl.prior_of_mine"
    assert ids[-1] == registry.built_in()[-1]


def test_the_same_id_twice_is_refused() -> None:
    """In two files; the one that is declared again, by a reload, replaces itself."""
    first = holds("mycompany.rule")
    holds("mycompany.rule")
    with pytest.raises(InputError, match=r"there are two checks 'mycompany.rule': one in .*, one in"):
        registry.register(first, Path("elsewhere.py"))


@pytest.mark.parametrize(
    ("id", "words"), [("kl.loss", "is a check of pytest-bnn"), ("rule", "has no topic"), ("", "no id")]
)
def test_ids_that_cannot_be_taken(id: str, words: str) -> None:
    """Ours are ours, and an id has a topic."""
    with pytest.raises(InputError, match=words):
        holds(id)


def test_a_second_copy_of_a_file_is_refused() -> None:
    """The folder `checks` at the root is a link: a module that is imported through it is another module."""
    spec = importlib.util.spec_from_file_location("checks.kl.loss", ROOT / "checks" / "kl" / "loss.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(
        InputError, match=r"imported as checks.kl.loss: a second copy of the check kl.loss. Import it as"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert registry.load("kl.loss").declaration.where == "pytest_bnn.checks.kl.loss"


@pytest.mark.parametrize(
    ("options", "words"), [("x: bytes = b''", "annotated with 'bytes'"), ("x: int", "has no default")]
)
def test_options_that_nobody_could_give(options: str, words: str) -> None:
    """Told where the check is declared, not when an audit meets it."""
    names: dict[str, object] = {"Finding": Finding}
    exec(f"def rule(subject, *, {options}) -> Finding: ...", names)
    function = names["rule"]
    function.__annotations__["x"] = options.split()[1]
    with pytest.raises(InputError, match=words):
        check("mycompany.rule", claim="c")(function)  # type: ignore[arg-type]


PACKAGE = '''
import pytest_bnn

LIMIT = 3


@pytest_bnn.check("installed.rule", claim="What the company rules holds.")
def rule(subject, *, limit: int = LIMIT):
    """Measure whether it holds."""
    return pytest_bnn.Finding(verdict=pytest_bnn.Verdict.PASS, headline=f"limit {limit}")
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with an entry point, as pip leaves one."""
    (tmp_path / "company_rules.py").write_text(PACKAGE, encoding="utf-8")
    info = tmp_path / "company_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: company-rules\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[pytest_bnn.checks]\ninstalled.rule = company_rules:rule\ninstalled.broken = company_missing:rule\n"
        "installed.other = company_rules:LIMIT\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (registry._installed, registry._of_entry_point):
        cached.cache_clear()
    yield tmp_path
    sys.modules.pop("company_rules", None)
    monkeypatch.undo()
    for cached in (registry._installed, registry._of_entry_point):
        cached.cache_clear()


def test_an_installed_check(installed: Path) -> None:
    """Its claim and options are known before it is imported; a broken one is told by name."""
    found = registry.declaration("installed.rule")
    assert found is not None
    assert found.claim == "What the company rules holds."
    assert [(option.name, option.default) for option in found.options] == [("limit", 3)]
    assert "company_rules" not in sys.modules
    assert registry.declaration("installed.broken") is None
    run = audit_model(nn.Linear(2, 2), checks="installed.rule", options={"installed.rule": {"limit": 5}})
    assert (run.checks[0].verdict, run.checks[0].headline) == (Verdict.PASS, "limit 5")
    with pytest.raises(
        BrokenEnvironmentError, match=r"'installed.broken' of the installed package company-rules cannot"
    ):
        registry.load("installed.broken")
    with pytest.raises(BrokenEnvironmentError, match=r"announces the check 'installed.other'"):
        registry.load("installed.other")


def test_files_of_modules_are_found_without_importing_them() -> None:
    """Packages too: importing one may take seconds, or print."""
    code = (
        "import sys\nfrom pytest_bnn.checks.declaration import source_of\n"
        "print(source_of('pytest_bnn.sampling.engine.plan'), 'pytest_bnn.sampling' in sys.modules)\n"
        "print(source_of('no_such.module'), source_of('sys'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r".*engine[/\\]plan\.py False", first)
    assert second == "None None"


def test_generated_files_are_fresh() -> None:
    """Stubs, tables and lists of names: written by python -m pytest_bnn.checks.stubs."""
    from pytest_bnn.checks.stubs import written

    stale = [str(path) for path, text in written().items() if path.read_text(encoding="utf-8") != text]
    assert stale == []
