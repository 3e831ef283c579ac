"""Names and numbers that nobody expects are shown, and break neither terminal, Markdown, HTML nor JSON."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_bnn import cli
from pytest_bnn.audit.run import audit_model
from pytest_bnn.commands import terminal
from pytest_bnn.conversion import convert
from pytest_bnn.records.codec import one_line
from pytest_bnn.records.evidence import Evidence, LayerFinding, Verdict
from pytest_bnn.records.run import AuditRun, LayerRow, SubjectRecord
from pytest_bnn.report import render_html, render_markdown

NAMES = {
    "ANSI colours": "a\x1b[31mred\x1b[0m",
    "a C1 sequence": "a\x9b31mred",
    "a forged verdict": "a\nverdict: pass",
    "carriage return and bell": "a\rb\x07",
    "another line separator": "a\u2028verdict: pass\x85b",
    "right to left": "a\u202eb",
    "a lone surrogate": "a\udc80b",
    "what ASCII lacks": "größe→☃",
    "a long name": "block." * 60 + "end",
    "markup": "[red]a[/red] <b>`b`</b>",
}


def run_of(name: str) -> AuditRun:
    """A failure whose every text has the name in it."""
    check = Evidence(
        id="kl.present",
        subject=name,
        stage="converted",
        verdict=Verdict.FAIL,
        claim="c",
        headline=f"The KL of {name} is wrong",
        layers=(LayerFinding(path=name, kind="Linear", ok=False, finding=f"bad {name}"),),
        notes=(name,),
        sampler=name,
    )
    row = LayerRow(path=name, kind="Linear", shape="2x3", weights=6, bayesian=False)
    return AuditRun(
        checks=(check,),
        subjects=(SubjectRecord(name=name, stage="converted", model=name, teacher=None, images=0, layers=(row,)),),
    )


def ascii_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """A terminal that shows ASCII alone, as with PYTHONIOENCODING=ascii or LANG=C."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True))
    return lambda: raw.getvalue().decode("ascii")


@pytest.mark.parametrize("kind", NAMES)
def test_in_a_terminal(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No control sequence reaches it, and no name makes a line that looks like another."""
    name = NAMES[kind]
    terminal.show(run_of(name), verbose=True)
    said = capsys.readouterr().out
    assert not set(said) & set("\x1b\x9b\r\x07\u202e\u2028\x85\x08")
    assert "verdict: pass" not in [line.strip() for line in said.splitlines()]
    assert one_line(name)[:20] in said.replace("\n", "")
    assert "\nverdict: fail. " in said


@pytest.mark.parametrize("kind", NAMES)
def test_in_files(kind: str) -> None:
    """Whole in JSON, one row of a table in Markdown, text in HTML."""
    name = NAMES[kind]
    run = run_of(name)
    again = AuditRun.from_json(run.to_json())
    assert again.subjects[0].layers[0].path == name.encode("utf-8", "backslashreplace").decode()
    json.loads(run.to_json())
    for text in (render_html(run), render_markdown(run)):
        text.encode("utf-8")
        assert not set(text) & set("\x1b\x9b\x07\u202e")
    rows = [line for line in render_markdown(run).splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert "<b>" not in render_markdown(run)


def test_a_terminal_that_cannot_show_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit ends with its verdict, and the name is there with escapes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ascii_net.py").write_text(
        "import torch, pytest_bnn\n"
        "def net():\n"
        "    net = torch.nn.Sequential()\n"
        "    net.add_module('größe→☃', torch.nn.Linear(3, 2))\n"
        "    return net\n",
        encoding="utf-8",
    )
    ascii_out = ascii_terminal(monkeypatch)
    assert cli.main(["audit", "--model", "ascii_net:net", "--checks", "layers.replaced", "-o", "ö.html"]) == 1
    said = ascii_out()
    assert r"gr\xf6\xdfe\u2192\u2603" in said
    assert "verdict: fail" in said
    assert r"report: \xf6.html" in said
    assert (tmp_path / "ö.html").is_file()


def huge() -> nn.Module:
    """Each weight's KL is a number, about 5e307; their sum is none."""
    net = convert(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).double()
    with torch.no_grad():
        for layer in net.children():
            layer.mu_weight.fill_(1e154)  # type: ignore[operator]
    return net


def test_a_kl_beyond_the_largest_number() -> None:
    """Said as it is: no NaN, no 0 of sigma, but weights too far from their prior; no check breaks on it."""
    images = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = audit_model(huge(), data=images)
    assert Verdict.ERROR not in {check.verdict for check in run.checks}
    found = run["kl.present"]
    assert found.verdict is Verdict.FAIL
    assert "mu is up to 1e+154 of its prior's sigmas away from its prior" in found.headline
    assert "or make the prior wider" in found.remedy
    assert "Every mu, rho and sigma is finite" in run["noise.source"].remedy
    again = AuditRun.from_json(run.to_json())
    assert again.subjects[0].layers[0].kl == math.inf
    assert "∞" in render_html(again)


@pytest.mark.parametrize("values", [(1e308, 1e308, 1.0), (math.inf, 1e308), (math.nan, 1.0), (5e-324, 1e308)])
def test_sums_of_huge_numbers_on_the_page(values: tuple[float, ...]) -> None:
    """Layers whose KLs are numbers and whose sum is none."""
    rows = tuple(
        LayerRow(path=str(i), kind="k", shape="1", weights=1, bayesian=True, kl=value, sigma_over_mu=value)
        for i, value in enumerate(values)
    )
    run = run_of("net")
    run = replace(run, subjects=(replace(run.subjects[0], layers=rows),))
    assert render_html(AuditRun.from_json(run.to_json())) == render_html(run)
