"""The two files of an audit, and finding out early that they cannot be written."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from pytest_bnn.errors import InputError, WriteError
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import render_html, render_markdown
from pytest_bnn.report.files import require_ours, require_writable, write_report, write_texts

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
    """An audit that fails later must not have emptied the report of yesterday, nor left folders."""
    require_writable(tmp_path / "not" / "there" / "new.html")
    assert list(tmp_path.iterdir()) == []
    write_report(RUN, tmp_path / "old.html")
    before = contents(tmp_path)
    require_writable(tmp_path / "old.html")
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with what is in it: what a failed attempt must leave as it was."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


THEIRS = {
    "an npm package": ("package.json", '{"name": "app", "version": "1.0.0"}\n'),
    "a list": ("audit.json", "[1, 2]"),
    "a document with a schema of its own": ("audit.json", '{"schema_version": "1.0", "services": []}'),
    "no JSON": ("audit.json", "TODO"),
    "a page": ("index.html", "<!DOCTYPE html><title>mine</title>"),
    "a page about this package": ("index.html", "<!DOCTYPE html><p>made with pytest-bnn</p>"),
    "bytes": ("page.html", "\x00\xff"),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_what_others_made_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    """``-o package.html`` must not cost the package.json beside it."""
    name, text = THEIRS[kind]
    (tmp_path / name).write_text(text, encoding="utf-8")
    before = contents(tmp_path)
    page = (tmp_path / name).with_suffix(".html")
    with pytest.raises(InputError, match=rf"{name}' is there already and is no (audit|report) of pytest-bnn, so it is"):
        require_writable(page)
    with pytest.raises(InputError, match="Choose another path, or move that file away"):
        write_report(RUN, page)
    assert contents(tmp_path) == before


#: An unfinished one too: earlier versions wrote in place.
OURS = {
    "a page of an earlier version": ("audit.html", '<style>x{}</style><p class="eyebrow">pytest-bnn</p>'),
    "an empty page": ("audit.html", ""),
    "a blank file": ("audit.json", "\n"),
    "an audit of another version, laid out by another tool": (
        "audit.json",
        json.dumps({"checks": [], "schema_version": "9.0", "subjects": [], "verdict": "pass"}, sort_keys=True),
    ),
    "half an audit": ("audit.json", RUN.to_json()[:100]),
}


@pytest.mark.parametrize("kind", OURS)
def test_what_is_ours_is_overwritten(tmp_path: Path, kind: str) -> None:
    """A user who runs an audit again must not have to remove anything first."""
    name, text = OURS[kind]
    (tmp_path / name).write_text(text, encoding="utf-8")
    page, data = write_report(RUN, tmp_path / "audit.html")
    assert AuditRun.from_json(data.read_text(encoding="utf-8")).checks[0].id == "kl.present"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_summaries_are_known_too(tmp_path: Path) -> None:
    """``render -o README.md`` must not cost the README; a summary, and one of an earlier version, may be replaced."""
    summary = tmp_path / "summary.md"
    summary.write_text(render_markdown(RUN), encoding="utf-8")
    require_ours(summary)
    summary.write_text("## ✓ The one claim holds\n\n**Audit** · 1 check, 1 subject\n\nand more", encoding="utf-8")
    require_ours(summary)
    summary.write_text("# My project\n\n## ✓ Done\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"summary\.md' is there already and is no report"):
        require_ours(summary)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """A report that is published by a link is replaced where it lies, with its permissions."""
    (tmp_path / "public").mkdir()
    write_report(AuditRun(), tmp_path / "public" / "latest.html")
    target = tmp_path / "public" / "latest.html"
    target.chmod(0o640)
    link = tmp_path / "audit.html"
    link.symlink_to(Path("public") / "latest.html")
    page, data = write_report(RUN, link)
    assert page.is_symlink()
    assert target.read_text(encoding="utf-8") == render_html(RUN)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert data == tmp_path / "audit.json"
    assert sorted(contents(tmp_path)) == ["audit.html", "audit.json", "public/latest.html", "public/latest.json"]


@pytest.mark.parametrize("target", ["audit.html", "other.html"], ids=["to itself", "in circles"])
def test_links_that_lead_nowhere(tmp_path: Path, target: str) -> None:
    """Known before the audit, not after it."""
    (tmp_path / "audit.html").symlink_to(target)
    (tmp_path / "other.html").symlink_to("audit.html")
    with pytest.raises(InputError, match=r"audit\.html' cannot be written"):
        require_writable(tmp_path / "audit.html")


def test_new_files_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    """Made by way of a temporary file, they must not be readable by their owner alone."""
    (tmp_path / "plain").touch()
    page, data = write_report(RUN, tmp_path / "audit.html")
    expected = (tmp_path / "plain").stat().st_mode
    assert (page.stat().st_mode, data.stat().st_mode) == (expected, expected)


def no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """A disk on which nothing more than a few bytes fits."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited()


def full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """The page leads to a device that is always full; the JSON, which would fit, must not be newer than the page."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    (tmp_path / "audit.html").unlink()
    (tmp_path / "audit.html").symlink_to("/dev/full")
    return nullcontext()


def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """A folder that became read-only while the audit ran: root could still write, so the call says it."""

    def refused(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refused)
    return nullcontext()


def no_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """A network drive that says only at the end that it has no room."""

    def refused(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", refused)
    return nullcontext()


@pytest.mark.parametrize("trouble", [no_space, full_device, read_only, no_sync])
def test_what_was_there_survives_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., AbstractContextManager[None]]
) -> None:
    """The old report stays whole, both files of it, and nothing is left beside it."""
    write_report(AuditRun(), tmp_path / "audit.html")
    with trouble(tmp_path, monkeypatch):
        listed, before = sorted(tmp_path.iterdir()), (tmp_path / "audit.json").read_bytes()
        with pytest.raises(WriteError, match=r"could not be written \(.+\); what was there is unchanged\. Make room"):
            write_texts({tmp_path / "audit.json": RUN.to_json(), tmp_path / "audit.html": render_html(RUN)})
        assert sorted(tmp_path.iterdir()) == listed
        assert (tmp_path / "audit.json").read_bytes() == before
    if not (tmp_path / "audit.html").is_symlink():
        assert (tmp_path / "audit.html").read_text(encoding="utf-8") == render_html(AuditRun())


def test_an_interrupt_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the second file is written: neither is replaced, and no folder is left."""

    def interrupted(_: int) -> None:
        if len(list(tmp_path.rglob("*.tmp"))) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(RUN, tmp_path / "new" / "folder" / "audit.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which not even root makes files")
def test_a_folder_that_takes_no_files() -> None:
    """Known before the audit takes its time, also where folders are still to be made."""
    for path in ("/proc/audit.html", "/proc/new/folder/audit.html"):
        with pytest.raises(InputError, match=r"audit\.html' cannot be written \(.+\)\. Choose another path"):
            require_writable(path)


@pytest.mark.parametrize("name", ["x" * 300 + ".html", "x" * 250 + ".html", "nul\0.html"])
def test_long_names(tmp_path: Path, name: str) -> None:
    """A name that fits by a hair is written, though the temporary file's is longer by then; others are refused."""
    if len(name) < 256 and "\0" not in name:
        page, _ = write_report(RUN, tmp_path / name)
        assert page.read_text(encoding="utf-8") == render_html(RUN)
        return
    with pytest.raises(InputError, match="cannot be written"):
        require_writable(tmp_path / name)
