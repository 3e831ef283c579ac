"""The networks that a command line names, each audited by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_bnn.checks import choices
from pytest_bnn.checks.choices import choosing
from pytest_bnn.commands import keeping
from pytest_bnn.errors import InputError

if TYPE_CHECKING:
    from pytest_bnn.audit.named import Parts
    from pytest_bnn.audit.plan import Explicit
    from pytest_bnn.audit.subjects import Described
    from pytest_bnn.commands.watching import Say
    from pytest_bnn.data.large import Workers
    from pytest_bnn.records.run import AuditRun


def audited(
    described: Sequence[Described],
    checks: Sequence[str] | None,
    options: Explicit,
    say: Say,
    report: Path,
    executor: Workers | None = None,
) -> tuple[AuditRun, tuple[str, ...]]:
    """Audit networks one after the other, each with its own error rates.

    Args:
        described: What is audited.
        checks: As in `audit_model`.
        options: As in `audit_model`.
        say: Told what is being done.
        report: The file of the report, beside which shards of large data are kept until all is done.
        executor: As in `audit_model`.

    Returns:
        What was found, and in words which networks could not be audited, and why.

    Raises:
        InputError: None of them could be audited.
    """
    from pytest_bnn.audit.named import Named
    from pytest_bnn.records.run import AuditRun

    runs: list[AuditRun] = []
    left_out: list[str] = []
    parts: Parts | None = None
    with keeping.beside(report, runs) as keep:
        for one in described:
            say(f"loading {one.name}")
            named = Named(**one.parts)
            try:
                choices.require_usable(one.choices, finally_=True)
                with choosing(choices.chosen().and_also(one.choices)):
                    if parts is not None and replace(parts.named, model=named.model) == named:
                        parts = parts.with_model(named.model, one.called)
                    else:
                        parts = named.load(one.called)
                    judged = keep(parts.with_state(one.checkpoint) if one.checkpoint else parts)
                    found = judged.audit(name=one.name, checks=checks, options=options, progress=say, executor=executor)
            except InputError as error:
                if len(described) == 1:
                    raise
                left_out.append(f"{one.name} was not audited: {error}")
            else:
                runs.append(found)
    if not runs:
        raise InputError("none of the networks could be audited", fix="; ".join(left_out))
    merged = AuditRun.merged(runs, provenance={k: v for run in reversed(runs) for k, v in run.provenance.items()})
    return replace(merged, cut=(*merged.cut, *left_out)), tuple(left_out)
