"""The two files of an audit, and finding out early that they cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_bnn.errors import InputError
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import render_html
from pytest_bnn.report.files import require_writable, write_report

RUN = AuditRun(
    checks=(
        Evidence(
            id="kl.present", subject="größe \ud800", stage="unknown", verdict=Verdict.PASS, claim="c", headline="h"
        ),
    ),
    provenance={"seed": "0"},
)


def test_json_lies_beside_the_page(tmp_path: Path) -> None:
    """The page is what its JSON says; both survive odd text, as UTF-8."""
    page, data = write_report(RUN, str(tmp_path / "deep" / "er" / "my.audit.html"))
    assert (page.name, data.name) == ("my.audit.html", "my.audit.json")
    assert page.parent == data.parent == tmp_path / "deep" / "er"
    again = AuditRun.from_json(data.read_text(encoding="utf-8"))
    assert page.read_text(encoding="utf-8") == render_html(again)
    assert again.checks[0].subject == "größe \\ud800"


def test_a_report_replaces_the_one_before(tmp_path: Path) -> None:
    """A second audit with the same output must not leave a mixture of two."""
    path = tmp_path / "audit.html"
    write_report(RUN, path)
    long = path.read_bytes()
    write_report(AuditRun(), path)
    assert path.read_text(encoding="utf-8") == render_html(AuditRun())
    write_report(RUN, path)
    assert path.read_bytes() == long


@pytest.mark.parametrize("name", ["audit.htm", "audit", "audit.json", "folder.html", "audit.html.gz"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    """Two files are made of one name, so the name must have the suffix that is exchanged."""
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match=r"ends in \.html"):
        require_writable(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.html"]


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    """Known before the audit takes its minute."""
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"audit\.html' cannot be written \(.*\)\. Choose another path"):
        require_writable(tmp_path / "out" / "audit.html")
    assert (tmp_path / "out").is_file()


def test_a_folder_in_the_way_of_the_json(tmp_path: Path) -> None:
    """The JSON counts as much as the page."""
    (tmp_path / "audit.json").mkdir()
    with pytest.raises(InputError, match=r"audit\.json' cannot be written"):
        require_writable(tmp_path / "audit.html")
    assert not (tmp_path / "audit.html").exists()


def test_trying_leaves_nothing_and_destroys_nothing(tmp_path: Path) -> None:
    """An audit that fails later must not have emptied the report of yesterday."""
    require_writable(tmp_path / "new.html")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.html").write_text("yesterday's", encoding="utf-8")
    require_writable(tmp_path / "old.html")
    assert (tmp_path / "old.html").read_text(encoding="utf-8") == "yesterday's"
