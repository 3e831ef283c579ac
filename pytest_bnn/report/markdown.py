"""Markdown for a CI step summary: what a reviewer must know, in the dialect of GitHub."""

from __future__ import annotations

import re
from typing import Final

from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import wording
from pytest_bnn.report.outline import Cell, Outline, outline

_DETAILED = 20
_OFFENDERS_SHOWN = 5
_SPECIAL: Final = re.compile(r"([\\`*_\[\]{}#!|~$])")
# A comment parts what GitHub would otherwise turn into a link, a mention or a reference.
_LINKING: Final = re.compile(r"(?i)(:)(?=//)|(www|mailto|xmpp)(?=[.:])|(@)(?=\S)|(\\#)(?=\w)|(\bgh-)(?=\d)")


def render(run: AuditRun) -> str:
    """Return the run as Markdown, ending in a newline."""
    shape = outline(run)
    blocks = [
        f"## {wording.SYMBOLS[run.verdict]} {wording.sentence(shape.counts)}",
        f"**{escape(run.title) or 'Audit'}** · {wording.plural(len(shape.rows), 'check')}, "
        f"{wording.plural(len(shape.groups), 'subject')}",
    ]
    if shape.counts:
        blocks.append(
            " · ".join(
                f"{wording.SYMBOLS[verdict]} {count:,} {wording.word(verdict)}"
                for verdict, count in wording.in_severity_order(shape.counts)
            )
        )
    if shape.rows:
        blocks.append(_matrix(shape))
    samplers = dict.fromkeys((check.subject, check.sampler) for check in run.checks if check.sampler)
    blocks += [f"Passes of {escape(subject)}: {escape(sampler)}" for subject, sampler in samplers]
    trainers = dict.fromkeys(
        (subject.name, s.trainer) for subject in run.subjects for s in subject.training if s.trainer
    )
    blocks += [f"Fine-tuning of {escape(subject)}: {escape(trainer)}" for subject, trainer in trainers]
    blocks += [_detail(card.evidence) for card in shape.loud[:_DETAILED]]
    if len(shape.loud) > _DETAILED:
        blocks.append(f"And {len(shape.loud) - _DETAILED:,} more in the HTML report.")
    if run.provenance:
        rows = [f"| {escape(key)} | {code(value)} |" for key, value in sorted(run.provenance.items())]
        table = "\n".join(["| | |", "|---|---|", *rows])
        blocks.append(f"<details><summary>Provenance</summary>\n\n{table}\n\n</details>")
    blocks.append("<!-- pytest-bnn -->")  # a later summary may replace this one
    return wording.clean("\n\n".join(blocks) + "\n")


def escape(text: str) -> str:
    """Make untrusted text mean itself: one line, no markup, no HTML, no links, fit for a table's cell."""
    line = " ".join(text.split())
    line = _SPECIAL.sub(r"\\\1", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINKING.sub(lambda match: f"{match[0]}<!-- -->", line)


def code(text: str) -> str:
    """Write untrusted text as code. Backticks would show the escapes that a table needs, the element does not."""
    return f"<code>{escape(text)}</code>" if text.strip() else ""


def _matrix(shape: Outline) -> str:
    heads = [f"{escape(group.name) or 'unnamed'}<br><sub>{escape(group.stage)}</sub>" for group in shape.groups]
    lines = [f"| Claim | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in shape.rows:
        cells = " | ".join(_cell(cell) for cell in row.cells)
        lines.append(f"| {escape(row.claim)}<br>{code(row.id)} | {cells} |")
    return "\n".join(lines)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "not run"
    verdict = cell.card.evidence.verdict
    word = wording.word(verdict)
    strong = f"**{word}**" if verdict in (Verdict.FAIL, Verdict.ERROR) else word
    return f"{wording.SYMBOLS[verdict]} {strong}" + (f" (worst of {cell.runs:,})" if cell.runs > 1 else "")


def _detail(check: Evidence) -> str:
    symbol, word = wording.SYMBOLS[check.verdict], wording.word(check.verdict)
    lines = [
        f"### {symbol} {word}: {code(check.id)} · {escape(check.subject)}",
        "",
        f"**{escape(check.headline)}**",
        "",
    ]
    if check.threshold is not None:
        lines.append(
            f"- {escape(check.threshold.quantity)}: observed "
            f"**{escape(wording.scalar(check.threshold.observed, check.threshold.unit))}**, "
            f"allowed {escape(wording.allowed(check.threshold))}"
        )
    if check.certainty is not None:
        lines.append(f"- certainty: {escape(check.certainty.explain())}")
    bad = [layer for layer in check.layers if not layer.ok]
    lines += [
        f"- {code(layer.path) or '*the model itself*'} ({escape(layer.kind)}): {escape(layer.finding)}"
        for layer in bad[:_OFFENDERS_SHOWN]
    ]
    if len(bad) > _OFFENDERS_SHOWN:
        lines.append(f"- and {wording.plural(len(bad) - _OFFENDERS_SHOWN, 'more layer')}")
    lines += [f"- note: {escape(note)}" for note in check.notes]
    if check.remedy:
        lines.append(f"- **What to do:** {escape(check.remedy)}")
    return "\n".join(lines).rstrip()
