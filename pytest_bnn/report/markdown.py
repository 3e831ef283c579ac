"""Markdown for a CI step summary: what a reviewer must know, in the dialect of GitHub."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import prose, standing, wording
from pytest_bnn.report.identity import identities, of_the_audit
from pytest_bnn.report.outline import Cell, Group, Outline, Trouble, outline
from pytest_bnn.report.quality import Quality, quality
from pytest_bnn.report.standing import Standing
from pytest_bnn.report.top import Accepted, Top, top

_DETAILED = 20
_OFFENDERS_SHOWN = 5
_SPECIAL: Final = re.compile(r"([\\`*_\[\]{}#!|~$])")
# A comment parts what GitHub would otherwise turn into a link, a mention or a reference.
_LINKING: Final = re.compile(r"(?i)(:)(?=//)|(www|mailto|xmpp)(?=[.:])|(@)(?=\S)|(\\#)(?=\w)|(\bgh-)(?=\d)")


def render(run: AuditRun) -> str:
    """Return the run as Markdown, ending in a newline."""
    shape = outline(run)
    said, known = top(run, shape), prose.names_of(run)
    blocks = [
        f"## {standing.SYMBOLS[said.tone]} {escape(said.sentence)}",
        f"**{escape(run.title) or 'Audit'}** · {wording.plural(len(shape.rows), 'check')}, "
        f"{wording.plural(len(shape.groups), 'subject')}",
    ]
    if shape.counts or shape.expected:
        counts = [
            f"{standing.SYMBOLS[of]} {count:,} {standing.word(of)}"
            for of, count in wording.in_severity_order(shape.counts)
        ]
        if shape.expected:
            counts.append(f"{len(shape.expected):,} failed as expected, not counted")
        blocks.append(" · ".join(counts))
    blocks += _beside(run, shape, said, known)
    if shape.rows:
        blocks += _by_subject(shape, known) if shape.by_subject else [_matrix(shape, known)]
    samplers = dict.fromkeys((check.subject, check.sampler) for check in run.checks if check.sampler)
    blocks += [f"Passes of {escape(subject)}: {escape(sampler)}" for subject, sampler in samplers]
    trainers = dict.fromkeys(
        (subject.name, s.trainer) for subject in run.subjects for s in subject.training if s.trainer
    )
    blocks += [f"Fine-tuning of {escape(subject)}: {escape(trainer)}" for subject, trainer in trainers]
    troubles = shape.troubles
    blocks += [_detail(trouble, known) for trouble in troubles[:_DETAILED]]
    if len(troubles) > _DETAILED:
        blocks.append(f"And {len(troubles) - _DETAILED:,} more in the HTML report.")
    if run.provenance:
        rows = [f"| {escape(key)} | {code(value)} |" for key, value in sorted(run.provenance.items())]
        table = "\n".join(["| | |", "|---|---|", *rows])
        blocks.append(f"<details><summary>Provenance</summary>\n\n{table}\n\n</details>")
    blocks.append("<!-- pytest-bnn -->")  # a later summary may replace this one
    return wording.clean("\n\n".join(blocks) + "\n")


def _beside(run: AuditRun, shape: Outline, said: Top, known: Collection[str]) -> list[str]:
    """Return what a reader must know beside the verdict."""
    blocks = [f"Cut: {_prose(words, known)}" for words in run.cut]
    if said.session:
        blocks.append(_prose(said.session.sentence, known))
    if said.unjudged:
        lines = [f"- {_prose(found.words, known)}" for found in said.unjudged]
        blocks.append("\n".join(["**Not judged**", "", *lines]))
    if said.accepted:
        blocks.append("\n".join(["**Accepted**", "", *(_accepted(part, shape) for part in said.accepted)]))
    if said.changed:
        rows = [
            f"| {code(change.name)} | {escape(change.value)} | {escape(change.default)} | {escape(change.source)}"
            f"{' in ' + ', '.join(map(code, change.tests)) if change.tests else ''} |"
            for change in said.changed
        ]
        heads = ["| Changed from the defaults | Value | Default | Where from |", "|---|---|---|---|"]
        blocks.append("\n".join([*heads, *rows]))
    scored = quality(shape)
    if scored.scored:
        blocks.append(_quality(scored, several=len(shape.groups) > 1))
    if lines := _identity(run, shape):
        blocks.append("\n".join(lines))
    return blocks


def _accepted(part: Accepted, shape: Outline) -> str:
    of = f" of {_name(part.group)}" if len(shape.groups) > 1 else ""
    share = f", {wording.percent(part.share)} of the model" if part.share is not None else ""
    weights = f" ({wording.plural(part.weights, 'weight')}{escape(share)})" if part.weights else ""
    return f"- {code(part.path) or '*the model itself*'}{of}: {escape(part.reason) or 'no reason given'}{weights}"


def _quality(scored: Quality, *, several: bool) -> str:
    lines = [f"| Quality | {' | '.join(scored.columns)} |", "|---" * (len(scored.columns) + 1) + "|"]
    for block in scored.scored:
        for line in block.lines:
            who = escape(line.name) + (f" ({_name(block.group)})" if several else "")
            cells = " | ".join(escape(value) + (f" ({escape(below)})" if below else "") for value, below in line.cells)
            lines.append(f"| {who} | {cells} |")
    return "\n".join(lines)


def _identity(run: AuditRun, shape: Outline) -> list[str]:
    lines = []
    for known in identities(shape):
        of = f"{_name(known.group)}: " if len(shape.groups) > 1 else ""
        lines += [f"- {of}File {code(file.path)}, SHA-256 {code(file.sha256)}" for file in known.files]
        if known.state:
            lines.append(f"- {of}Weights, SHA-256 of the state {code(known.state)}")
        if known.data:
            lines.append(f"- {of}Data, {wording.plural(known.examples, 'example')}, SHA-256 {code(known.data)}")
    return lines + [f"- {name}: {escape(value)}" for name, value in of_the_audit(run)]


def _name(group: Group) -> str:
    return (escape(group.name) or "unnamed") + (f" ({escape(group.key)})" if group.key else "")


def _prose(text: str, known: Collection[str]) -> str:
    """Write a text of the run as a sentence, with names in code type."""
    return "".join(code(piece.text) if piece.code else _keeping_ends(piece.text) for piece in prose.pieces(text, known))


def _keeping_ends(text: str) -> str:
    """Escape a part of a sentence, with a space at its ends where there was one."""
    before, after = " " * text[:1].isspace(), " " * (text[-1:].isspace() and bool(text.strip()))
    return before + escape(text) + after


def escape(text: str) -> str:
    """Make untrusted text mean itself: one line, no markup, no HTML, no links, fit for a table's cell."""
    line = " ".join(text.split())
    line = _SPECIAL.sub(r"\\\1", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINKING.sub(lambda match: f"{match[0]}<!-- -->", line)


def code(text: str) -> str:
    """Write untrusted text as code. Backticks would show the escapes that a table needs, the element does not."""
    return f"<code>{escape(text)}</code>" if text.strip() else ""


def _matrix(shape: Outline, known: Collection[str]) -> str:
    heads = [f"{_name(group)}<br><sub>{escape(wording.stage(group.stage))}</sub>" for group in shape.groups]
    lines = [f"| Claim | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in shape.rows:
        cells = " | ".join(_cell(cell) for cell in row.cells)
        lines.append(f"| {_prose(row.claim, known)}<br>{code(row.id)} | {cells} |")
    return "\n".join(lines)


def _by_subject(shape: Outline, known: Collection[str]) -> list[str]:
    """Return a table with a line for each subject, and what the claims say."""
    lines = ["| Subject | Verdict | Holds | What else there is |", "|---|---|---|---|"]
    for at, group in enumerate(shape.groups):
        found: dict[str, list[str]] = {}
        for row in shape.rows:
            cell = row.cells[at]
            if cell is None or cell.card.standing is not Standing.PASS or cell.card.evidence.accepted:
                extra = f" ({escape(cell.extra)})" if cell and cell.extra else ""
                found.setdefault(_standing(cell), []).append(f"{code(row.id)}{extra}")
        rest = "<br>".join(f"{said}: {', '.join(ids)}" for said, ids in found.items())
        who = f"{_name(group)}<br><sub>{escape(wording.stage(group.stage))}</sub>"
        holds = f"{group.counts.get(Standing.PASS, 0):,} of {sum(group.counts.values()):,}"
        lines.append(f"| {who} | {_worded(group.worst)} | {holds} | {rest} |")
    claims = [f"- {code(row.id)}: {_prose(row.claim, known)}" for row in shape.rows]
    text = "\n".join(claims)
    return ["\n".join(lines), f"<details><summary>What the claims say</summary>\n\n{text}\n\n</details>"]


def _cell(cell: Cell | None) -> str:
    return _standing(cell) + (f" ({escape(cell.extra)})" if cell and cell.extra else "")


def _standing(cell: Cell | None) -> str:
    return "not run" if cell is None else _worded(cell.card.standing)


def _worded(of: Standing) -> str:
    word = standing.word(of)
    return f"{standing.SYMBOLS[of]} " + (f"**{word}**" if of in (Standing.FAIL, Standing.ERROR) else word)


def _detail(trouble: Trouble, known: Collection[str]) -> str:
    check, of = trouble.card.evidence, trouble.card.standing
    lines = [
        f"### {standing.SYMBOLS[of]} {standing.word(of)}: {code(check.id)} · {_name(trouble.group)}",
        "",
        f"**{_prose(check.headline, known)}**",
        "",
    ]
    if trouble.effects:
        lines.append(f"- From this follow {', '.join(code(card.evidence.id) for card in trouble.effects)}")
    if check.threshold is not None:
        lines.append(
            f"- {escape(check.threshold.quantity)}: observed "
            f"**{escape(wording.scalar(check.threshold.observed, check.threshold.unit))}**, "
            f"allowed {escape(wording.allowed(check.threshold))}"
        )
    if check.certainty is not None:
        lines.append(f"- certainty: {escape(check.certainty.explain())}")
    lines += [
        f"- accepted: {code(part.path) or '*the model itself*'}: {escape(part.reason) or 'no reason given'}"
        for part in check.accepted
    ]
    bad = [layer for layer in check.layers if not layer.ok]
    lines += [
        f"- {code(layer.path) or '*the model itself*'} ({escape(layer.kind)}): {escape(layer.finding)}"
        for layer in bad[:_OFFENDERS_SHOWN]
    ]
    if len(bad) > _OFFENDERS_SHOWN:
        lines.append(f"- and {wording.plural(len(bad) - _OFFENDERS_SHOWN, 'more layer')}")
    lines += [f"- note: {escape(note)}" for note in check.notes]
    if check.remedy:
        lines.append(f"- **What to do:** {_prose(check.remedy, known)}")
    return "\n".join(lines).rstrip()
