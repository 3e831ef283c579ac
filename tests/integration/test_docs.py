"""The documentation is run as it is read: Python, console and configuration blocks, and its tables against the code.

A line ``% file: NAME`` before a block writes the block into a file, ``% exit: N`` expects another exit code than 0.
myst drops such lines from the page.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pytest_bnn
from pytest_bnn import cli
from pytest_bnn.checks.choices import from_project, require_usable
from pytest_bnn.commands import command as exits
from pytest_bnn.options import OPTIONS
from pytest_bnn.records.recorder import Recorder, recording
from tests.faults.injectors import FAULTS
from tests.integration import warm

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md"))

_BLOCK = re.compile(r"((?:^%[^\n]*\n)*)^```([^\n]*)\n(.*?)^```$", re.M | re.S)
#: Rendered by Sphinx or only shown; everything else is run or parsed.
SHOWN = {"", "{toctree}", "{eval-rst}"}
RUN = {"python", "console"}
PARSED = {"yaml", "toml", "ini", "json"}
INSTALL = "pip install .\n"


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    file: str | None
    exit_code: int
    line: int


def page(name: str) -> str:
    """The text of a page, by its path or by the last part of it."""
    (found,) = [path for path in PAGES if name in (path, path.rpartition("/")[2])]
    return (DOCS / f"{found}.md").read_text(encoding="utf-8")


def blocks(name: str) -> list[Block]:
    text = page(name)
    found = []
    for match in _BLOCK.finditer(text):
        orders = dict(re.findall(r"^% (\w+): (.+)$", match[1], re.M))
        assert orders.keys() <= {"file", "exit"}, orders
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(match[2], match[3], orders.get("file"), int(orders.get("exit", 0)), line))
    return found


def row(name: str, id: str) -> str:
    """The table row of a page that begins with this cell."""
    (found,) = re.findall(rf"^\| {re.escape(id)} \|.*$", page(name), re.M)
    assert isinstance(found, str)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder to stand in, outside of this test's recorder; modules from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with recording(Recorder()):
        yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


LONG = pytest.mark.nightly("a minute of generated networks; the property tests of every push draw the same")

SESSIONS = pytest.mark.nightly(
    "a session for each block; every push has the same in tests/unit/test_options.py and tests/integration"
)
PASSES = pytest.mark.nightly("hundreds of passes of a ResNet18; every push runs examples/resnet18_notebook.py")
# submitit's executor in this process leaves its log files open.
OPEN_FILES = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
MARKS = {
    "many-checkpoints": OPEN_FILES,
    "strategies": LONG,
    "test-a-converter": LONG,
    "configuration": SESSIONS,
    "zero-code": SESSIONS,
    "baseline": SESSIONS,
    "ci": SESSIONS,
    "photograph": PASSES,
}


@pytest.mark.parametrize("name", [pytest.param(page, marks=MARKS.get(page.rpartition("/")[2], ())) for page in PAGES])
def test_page_runs(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One namespace and one folder a page; what a console block shows must be in the output, in this order."""
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks(name):
        place = f"{name}.md, line {block.line}"
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, str(DOCS / f"{name}.md"), "exec"), namespace)
        elif block.language == "console":
            command, *shown = block.text.splitlines()
            code, output = _run(command, capsys)
            assert code == block.exit_code, f"{place}: exit code {code}\n{output}"
            said = " ".join(output.split())
            start = 0
            for text in filter(None, (" ".join(line.split()) for line in shown)):
                start = said.find(text, start)
                assert start >= 0, f"{place}: {text!r} is not in\n{output}"
                start += len(text)


def _run(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    assert command.startswith("$ "), command
    program, *arguments = shlex.split(command[2:])
    if program == "pytest-bnn":
        capsys.readouterr()
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out + captured.err
    assert program == "pytest", command
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    # As `pytest` does, which leaves the path of modules alone; `python -m pytest` adds the folder.
    done = warm.python(
        "-c", "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main())", *arguments, env=environment
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_checked(name: str) -> None:
    """A block in another language, or a test file that no command runs, would be text that nobody checks."""
    found = blocks(name)
    assert len(found) == len(re.findall(r"^```", page(name), re.M)) / 2
    for block in found:
        if block.language == "bash":
            assert block.text == INSTALL, f"{name}.md, line {block.line}: make it a console block"
        else:
            assert block.language in SHOWN | RUN | PARSED, f"{name}.md, line {block.line}"
    for index, block in enumerate(found):
        if block.file is not None and block.file.startswith("test_"):
            later = [other.text for other in found[index:] if other.text.startswith("$ pytest ")]
            assert any(block.file in text or ".py" not in text for text in later), block.file


def test_configuration_blocks_are_valid(tmp_path: Path) -> None:
    """Settings that a reader copies must be settings that exist."""
    keys = {f"bnn_{option.key}" for option in OPTIONS} | {"bnn_baseline", "bnn_subjects"}
    given: set[str] = set()
    for name in PAGES:
        for block in blocks(name):
            if block.language == "json":
                json.loads(block.text)
            elif block.language == "toml":
                table = tomllib.loads(block.text)
                given |= table.get("tool", {}).get("pytest", {}).get("ini_options", {}).keys()
                (tmp_path / "pyproject.toml").write_text(block.text, encoding="utf-8")
                require_usable(from_project(tmp_path), finally_=True)
            elif block.language == "ini":
                parser = configparser.ConfigParser()
                parser.read_string(block.text)
                given |= set(parser["pytest"])
    assert given
    assert given <= keys


def test_yaml_blocks_are_valid() -> None:
    """The snippets for CI are parsed, and the commands in them are the documented ones."""
    yaml = pytest.importorskip("yaml", reason="runs where the docs extra is installed (myst-parser brings PyYAML)")
    documents = [yaml.safe_load(block.text) for name in PAGES for block in blocks(name) if block.language == "yaml"]
    github, gitlab = documents
    steps = [step.get("run", "") for step in github["jobs"]["audit"]["steps"]]
    commands = [line for line in (*steps, *gitlab["audit"]["script"]) if line.startswith("pytest ")]
    assert len(commands) == 2
    shown = [block.text for block in blocks("how-to/ci") if block.text.startswith("$ pytest ")]
    for command in commands:  # the page runs one with all of their options
        assert set(command.split()) <= set(shown[0].split()), command
    written = {word.partition("=")[2] for word in shown[0].split() if "=bnn/" in word}
    assert gitlab["audit"]["artifacts"]["reports"]["junit"] in written
    assert gitlab["audit"]["artifacts"]["paths"][0] in written


def test_every_check_has_a_page() -> None:
    """With everything that a reader has to know, an example that fails, and a link from the overview."""
    from pytest_bnn.checks import registry

    texts = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "checks").glob("*.md")}
    assert texts.keys() == set(registry.built_in())
    assert re.findall(r"^\| \[`(.+?)`\]\(\.\./checks/\1\.md\)", page("checks"), re.M) == list(registry.built_in())
    for check in map(registry.load, registry.built_in()):
        assert texts[check.id].startswith(f"# {check.id}\n")
        assert re.search(r"^## What to do when it fails$", texts[check.id], re.M), check.id
        assert "```python\n" in texts[check.id], check.id
        terms = re.findall(r"^(\w[\w ]*)\n: ", texts[check.id], re.M)
        premises = ["Not applicable when"] if "Not applicable when" in terms else []
        wanted = ["Claim", "Statistic", "Fails when", *premises, "Cannot see", "Options", "Kind", "Source"]
        assert terms == wanted, check.id
        claim = re.search(r"^Claim\n: (.*?)\n\n", texts[check.id], re.M | re.S)
        assert claim is not None
        assert " ".join(claim[1].split()) == check.declaration.claim


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_setting_is_documented(option: object) -> None:
    """All four names of a setting with its default, and its place on the command line."""
    from pytest_bnn.options import Option

    assert isinstance(option, Option)
    configuration = row("configuration", f"`--{option.name}`")
    for word in (f"--bnn-{option.name}", f"bnn_{option.key}", option.environment, str(option.default) or "none"):
        assert f"`{word}`" in configuration or f"| {word} |" in configuration
    (audit,) = re.findall(rf"^\| `--{option.name}[ `].*$", page("command-line"), re.M)
    assert str(option.default) in audit.split("|")[-2]
    assert f"--bnn-{option.name}" in page("command-line")


def test_every_option_of_the_audit_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """What ``--help`` lists is in command-line.md, and nothing else is."""
    with pytest.raises(SystemExit):
        cli.main(["audit", "--help"])
    helped = set(re.findall(r"^  (?:-\w [\w.]+, |-\w, )?(--[\w-]+)", capsys.readouterr().out, re.M))
    table = page("command-line").partition("### Exit codes")[0]
    assert set(re.findall(r"^\| [^|]*?`(--[\w-]+)", table, re.M)) == helped - {"--help"}


def test_exit_codes_are_documented() -> None:
    """Scripts rely on them."""
    for code in (exits.PASSED, exits.FAILED, exits.BROKEN, exits.NOTHING_APPLIES, exits.USAGE):
        assert row("command-line", str(code))


def test_every_fixture_is_documented() -> None:
    """Those without a leading underscore are public."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pytest_bnn" / "fixtures").glob("*.py"))
    fixtures = re.findall(r"@pytest\.fixture.*\ndef ([a-z]\w*)\(", source)
    assert "bnn_audit" in fixtures
    for fixture in fixtures:
        assert row("fixtures", f"`{fixture}`")


def test_every_public_name_is_in_the_api() -> None:
    """And each once, or Sphinx would document it twice."""
    documented = re.findall(r"^\.\. auto\w+:: pytest_bnn\.(\w+)$", page("api"), re.M)
    assert sorted(documented) == sorted(pytest_bnn.__all__)


def test_every_strategy_and_property_is_documented() -> None:
    """On its own page: what they are is told there, and autodoc shows it."""
    from pytest_bnn import properties, strategies

    for name, module in (("strategies", strategies), ("properties", properties)):
        text = page("strategies") + page("test-a-converter")
        missing = [public for public in module.__all__ if not re.search(rf"\b{public}\b", text)]
        assert not missing, f"{name}.md does not mention {missing}"


def test_every_verdict_is_documented() -> None:
    """With the schema's version, which promises their meaning."""
    from pytest_bnn.records.evidence import SEVERITY
    from pytest_bnn.records.run import SCHEMA_VERSION

    assert re.findall(r"^\| `(\w+)` \|[^|]*\| (?:yes|no)", page("json"), re.M) == list(SEVERITY)
    assert f'`"{SCHEMA_VERSION}"`' in row("json", "`schema_version`")


def test_model_card_is_documented() -> None:
    """Every figure of the card, as it is written there."""
    card = pytest_bnn.model_card()
    training, corruption = card["training"], card["corruption"]
    assert isinstance(training, dict)
    assert isinstance(corruption, dict)
    figures = [card[name] for name in card if name.startswith(("held_out_", "hard_"))]
    figures += [card["sha256"], *training.values()]
    figures += [value for value in corruption.values() if isinstance(value, int | float)]
    for figure in figures:
        words = str(figure).replace("optimizer", "").split(", ")
        assert all(
            re.search(rf"(?<![\w.]){re.escape(w)}(?!\w)", page("teachers")) or w == "one-cycle" for w in words
        ), figure


CATALOGUE = [f"A{number}" for number in range(1, 36)] + [f"B{number}" for number in range(1, 72)]


def test_catalogue_is_whole() -> None:
    """Every row, in order, and none that the list above does not know."""
    assert re.findall(r"^\| ([AB]\d+) \|", page("faults"), re.M) == CATALOGUE


def test_catalogue_says_what_the_injected_faults_show() -> None:
    """A check that a test proves to see a row is named there; a check that is named exists."""
    from pytest_bnn.audit.run import CHECK_IDS

    for fault in FAULTS:
        id = fault.id.partition("-")[0]
        if id in CATALOGUE:
            seen = row("faults", id)
            missing = [check for check in fault.named if f"`{check}`" not in seen]
            assert not missing, f"{fault.id}: name {missing} in the row {id} of faults.md"
    topics = "|".join(sorted({id.partition(".")[0] for id in CHECK_IDS}))
    named = set(re.findall(rf"`((?:{topics})\.\w+)`", page("faults")))
    assert named == set(CHECK_IDS)


def test_catalogue_claims_no_check_without_a_test() -> None:
    """A row that names a check is injected somewhere in tests/faults, or admits that it is not."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "faults").glob("test_*.py")]
    tested = {id for source in sources for id in re.findall(r"\b([AB]\d+)\b", source)}
    tested |= {fault.id.partition("-")[0] for fault in FAULTS}
    for id in CATALOGUE:
        seen = row("faults", id).split("|")[-2]
        if "none yet" not in seen and "not injected" not in seen:
            assert id in tested, f"row {id} of faults.md has no test in tests/faults"


def test_pages_build_without_warnings(tmp_path: Path) -> None:
    """Strictly: a broken link, a name that autodoc cannot find or a bad docstring is an error."""
    reason = "runs where the docs extra is installed, as in .ci/run"
    for module in ("sphinx", "myst_parser", "furo", "latex2mathml"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(reason)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "html"),
    ]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees")], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "html" / "reference" / "api.html").read_text(encoding="utf-8")
    for name in pytest_bnn.__all__:
        assert f'id="pytest_bnn.{name}"' in api
    assert "ForwardRef" not in api
    pages = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "html").rglob("*.html")}
    written = "".join(pages.values())
    assert "% file:" not in written
    assert "$\\" not in written  # a formula that was left as it is
    assert "<math" in written
    assert "<dt>Claim" in written  # the terms of a check's page
    for path, text in pages.items():
        outside = re.findall(r'<(?:script|link|img|iframe|source)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', text)
        assert not outside, f"{path.name} loads {outside}"
    search = (tmp_path / "html" / "searchindex.js").read_text(encoding="utf-8")
    for word in ("moped", "how-to/from-bayesian-torch"):
        assert word in search, f"the search does not find {word!r}"
