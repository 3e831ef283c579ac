"""Several audits side by side, as frozen records of plain values: a row each, the worst first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pytest_bnn.errors import InputError
from pytest_bnn.records.codec import from_plain, to_plain
from pytest_bnn.records.evidence import SEVERITY, Evidence, Verdict
from pytest_bnn.records.made_with import made_with
from pytest_bnn.records.run import AuditRun, SubjectRecord

COLLECTION_VERSION = "1.1"
TITLE = "Audits side by side"

#: What a row shows of the model's predictions, by the name in the table of scores, with its column.
_SCORES = {
    "accuracy": "accuracy",
    "Brier score": "Brier score",
    "negative log likelihood (nats)": "NLL (nats)",
    "best temperature": "temperature",
}
#: What it shows of claims: the observed value behind a verdict, where the verdict rests on that quantity.
_OBSERVED = (("teacher.agreement", "agreement", "certain share of the "), ("noise.spread", "spread", "spread of "))
#: Figures of the posterior.
SIGMA, KL = "median \N{GREEK SMALL LETTER SIGMA}/|\N{GREEK SMALL LETTER MU}|", "KL (nats)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionRow:
    """One subject of one audit.

    ``audit`` and ``page`` are the files of the audit, relative to the index; ``page`` is empty where there is none.
    ``sha256`` is that of the checkpoint's bytes, or of the model's state where no checkpoint was named.
    ``counts`` are the claims by verdict; ``problems`` the ids of those that ask something of the reader, worst first,
    and ``severities`` the verdict of each; ``headline`` is what the first of them found.
    ``figures`` are as long as the collection's, None where a figure was not measured.
    ``alpha`` is the chance that a sound model fails here.
    ``unjudged`` is how many claims lack what nobody gave, ``accepted`` how many parts claims leave out on purpose.
    ``remarks`` say what else keeps the audit from being all of it: what was cut, and a test session that went wrong.
    ``made_with`` are the first digits of the digests of its settings, data and versions, by what they are of.
    """

    name: str
    audit: str
    page: str
    sha256: str
    verdict: Verdict
    counts: dict[str, int]
    problems: tuple[str, ...]
    headline: str
    figures: tuple[float | None, ...]
    alpha: float
    severities: tuple[Verdict, ...] = ()
    unjudged: int = 0
    accepted: int = 0
    remarks: tuple[str, ...] = ()
    made_with: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Audits side by side, the worst first. ``figures`` names the columns of numbers that some row has."""

    rows: tuple[CollectionRow, ...] = ()
    figures: tuple[str, ...] = ()
    title: str = TITLE

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of its rows."""
        found = {row.verdict for row in self.rows}
        return next((verdict for verdict in SEVERITY if verdict in found), Verdict.NOT_APPLICABLE)

    @property
    def alpha(self) -> float:
        """The chance that any of the models, all of them sound, fails: at most the sum of the rows'."""
        return math.fsum(row.alpha for row in self.rows)

    def to_json(self) -> str:
        """Return the collection as JSON text, ending in a newline."""
        plain = to_plain(self)
        assert isinstance(plain, dict)
        head = {"collection_version": COLLECTION_VERSION, "verdict": self.verdict.value, "alpha": to_plain(self.alpha)}
        return json.dumps({**head, **plain}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Collection:
        """Read what `to_json` wrote.

        Raises:
            InputError: The text is no collection.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the index is not JSON ({error})", fix="give the index.json of many audits") from error
        if not isinstance(document, dict) or "collection_version" not in document:
            raise InputError("the JSON is no index of audits", fix="give the index.json of many audits")
        head = ("collection_version", "verdict", "alpha")
        found = from_plain({name: value for name, value in document.items() if name not in head}, cls)
        assert isinstance(found, cls)
        return found


@dataclass(frozen=True, slots=True)
class Measured:
    """A row before it is known which figures the others have: its own stand by name."""

    row: CollectionRow
    figures: dict[str, float]


def collect(audits: Iterable[tuple[str, str, AuditRun]], title: str = TITLE) -> Collection:
    """Put audits side by side.

    Args:
        audits: Of each the file of its JSON and of its page, relative to the index, and the audit.
        title: Of the index.
    """
    return gathered((row for audit in audits for row in measured(*audit)), title)


def measured(audit: str, page: str, run: AuditRun) -> tuple[Measured, ...]:
    """Return what an index has of one audit, which need not be kept for it: a row for each of its subjects."""
    keys = dict.fromkeys(_key(check) for check in run.checks)
    return tuple(Measured(_row(audit, page, run, key), _figures(run, key)) for key in keys)


def gathered(found: Iterable[Measured], title: str = TITLE) -> Collection:
    """Put rows side by side, the worst first."""
    every = list(found)
    known = (*_SCORES.values(), *(name for _, name, _ in _OBSERVED), SIGMA, KL)
    names = tuple(name for name in known if any(name in one.figures for one in every))
    rows = (replace(one.row, figures=tuple(one.figures.get(name) for name in names)) for one in every)
    return Collection(rows=tuple(sorted(rows, key=_badness)), figures=names, title=title)


def _key(record: Evidence | SubjectRecord) -> tuple[str, str]:
    return (record.key or (record.subject if isinstance(record, Evidence) else record.name), record.stage)


def _row(audit: str, page: str, run: AuditRun, key: tuple[str, str]) -> CollectionRow:
    checks = [check for check in run.checks if _key(check) == key and not check.expected]
    subject = _subject(run, key)
    claims = _worst(checks)
    ranked = [check for check in claims if check.verdict not in (Verdict.PASS, Verdict.NOT_APPLICABLE)]
    parts = {part.path for check in checks for part in check.accepted}
    parts |= {layer.path for layer in subject.layers if layer.accepted} if subject else set()
    files = () if subject is None else subject.files
    return CollectionRow(
        name=next((check.subject for check in run.checks if _key(check) == key), key[0]),
        audit=audit,
        page=page,
        sha256=files[0].sha256
        if len(files) == 1
        else run.provenance.get("checkpoint sha256", "") or ("" if subject is None else subject.sha256),
        verdict=AuditRun(checks=tuple(checks)).verdict,
        counts={verdict.value: n for verdict in SEVERITY if (n := sum(c.verdict is verdict for c in claims))},
        problems=tuple(check.id for check in ranked),
        headline=ranked[0].headline if ranked else "",
        figures=(),
        alpha=math.fsum(check.certainty.alpha for check in checks if check.certainty is not None),
        severities=tuple(check.verdict for check in ranked),
        unjudged=sum(check.unjudged for check in claims),
        accepted=len(parts),
        remarks=_remarks(run),
        made_with=made_with(run, "" if subject is None else subject.data_sha256),
    )


def _worst(checks: Iterable[Evidence]) -> list[Evidence]:
    """Return the worst evidence of each claim, the worst of all first."""
    found: dict[str, Evidence] = {}
    for check in sorted(checks, key=lambda check: SEVERITY.index(check.verdict)):
        found.setdefault(check.id, check)
    return list(found.values())


def _remarks(run: AuditRun) -> tuple[str, ...]:
    status = 0 if run.session is None else run.session.exit_status
    return (*(f"cut: {words}" for words in run.cut), *([f"pytest ended with exit status {status}"] if status else []))


def _subject(run: AuditRun, key: tuple[str, str]) -> SubjectRecord | None:
    return next((one for one in run.subjects if _key(one) == key), None)


def _figures(run: AuditRun, key: tuple[str, str]) -> dict[str, float]:
    found: dict[str, float] = {}
    subject = _subject(run, key)
    if subject is not None:
        summary = subject.prediction_summary
        table = None if summary is None else summary.scores
        if table is not None and "BNN" in table.predictors:
            place = table.predictors.index("BNN")
            scores = {row.name: row.scores[place] for row in table.rows}
            found |= {
                column: score.value for name, column in _SCORES.items() if (score := scores.get(name)) is not None
            }
        bayesian = [row for row in subject.layers if row.bayesian]
        if bayesian:
            sigmas = sorted(row.sigma_over_mu for row in bayesian if row.sigma_over_mu is not None)
            divergences = [row.kl for row in bayesian if row.kl is not None]
            # A NaN has no place in an order.
            broken = any(map(math.isnan, sigmas))
            found |= {SIGMA: math.nan if broken else sigmas[len(sigmas) // 2]} if sigmas else {}
            found |= {KL: sum(divergences)} if divergences else {}
    for check in run.checks:
        for id, name, quantity in _OBSERVED:
            if check.id == id and _key(check) == key and check.threshold is not None:
                value = check.threshold.observed if check.threshold.quantity.startswith(quantity) else None
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found[name] = float(value)
    return found


def _badness(row: CollectionRow) -> tuple[int, int, str]:
    return (SEVERITY.index(row.verdict), -len(row.problems), row.name)
