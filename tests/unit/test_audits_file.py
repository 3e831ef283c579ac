"""One reader of an audit's file: whoever asks for it, the same mistake is worded the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_bnn import cli
from pytest_bnn.commands import command as exits
from pytest_bnn.errors import InputError
from pytest_bnn.records import audits, baseline
from pytest_bnn.records.run import AuditRun

WRONG: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "cannot be read (No such file or directory). Give the JSON of an audit."),
    "bytes": (b"\xff\xfe", "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)."),
    "cut off": (b'{"schema_version": "1.4", "ver', "the audit is not JSON ("),
    "another": (b"{}", "the JSON is not an audit: it has no schema_version. Give the audit.json of a run."),
    "newer": (b'{"schema_version": "9.0"}', "the audit has schema version 9.0, this pytest-bnn reads"),
    "a list": (b"[]", "the JSON is not an audit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_commands_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Each names the file, says why, and what to give."""
    monkeypatch.chdir(tmp_path)
    content, words = WRONG[case]
    if content is not None:
        Path("a.json").write_bytes(content)
    Path("good.json").write_text(AuditRun().to_json(), encoding="utf-8")
    said = []
    for command in (("render", "a.json"), ("merge", "a.json"), ("compare", "a.json", "good.json")):
        assert cli.main(command) == exits.USAGE
        said.append(capsys.readouterr().err)
    assert re.match(rf"pytest-bnn: 'a\.json'(:| ){'' if 'cannot' in words else ' '}{re.escape(words)}", said[0]), said
    assert len(set(said)) == 1, said
    with pytest.raises(InputError) as caught:
        baseline.read("a.json", "--baseline", "--update")
    if content is None:
        assert "--baseline: there is no baseline 'a.json'. Make it" in str(caught.value)
    else:
        with pytest.raises(InputError) as plain:
            audits.read("a.json")
        assert caught.value.problem == f"--baseline {plain.value.problem}"


def test_a_folder_and_what_is_there(tmp_path: Path) -> None:
    """A folder is no file; an audit is read whole."""
    with pytest.raises(InputError, match=r"'here' cannot be read \(Is a directory\)"):
        audits.read(tmp_path, shown="here")
    (tmp_path / "a.json").write_text(AuditRun(title="Mine").to_json(), encoding="utf-8")
    assert audits.read(tmp_path / "a.json") == AuditRun(title="Mine")
