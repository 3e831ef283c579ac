"""Records survive JSON and process boundaries whole, explain themselves, and reach the recorder in force."""

from __future__ import annotations

import decimal
import enum
import json
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import PurePosixPath
from typing import Any

import jsonschema
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_bnn.errors import InputError
from pytest_bnn.records import charts
from pytest_bnn.records.codec import from_plain, show, to_plain
from pytest_bnn.records.evidence import SEVERITY, Evidence, LayerFinding, Measurement, Threshold, Verdict, is_failure
from pytest_bnn.records.run import (
    SCHEMA_VERSION,
    AuditRun,
    ClassShare,
    LayerRow,
    Prediction,
    SubjectRecord,
    TrainingStep,
    json_schema,
)


def evidence(id: str = "bayesian_layers", verdict: Verdict = Verdict.PASS, **others: Any) -> Evidence:
    given_fields: dict[str, Any] = {
        "subject": "resnet18",
        "stage": "converted",
        "claim": "Every layer became Bayesian",
        "headline": "20 of 21 layers",
    }
    return Evidence(id=id, verdict=verdict, **{**given_fields, **others})


def subject(**others: Any) -> SubjectRecord:
    given_fields: dict[str, Any] = {"name": "s", "stage": "converted", "model": "ResNet", "teacher": None, "images": 4}
    return SubjectRecord(**{**given_fields, **others})


texts, numbers, counts = st.text(max_size=8), st.floats(), st.integers()
scalars = st.one_of(texts, counts, numbers, st.booleans(), st.none())
stages = st.sampled_from(["converted", "finetuned", "unrelated", "unknown"])


def few(items: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=2).map(tuple)


places = few(numbers)
curves = st.builds(
    charts.Chart,
    lines=few(st.builds(charts.ChartLine, x=places, y=places, low=places, high=places)),
    band=st.none() | st.builds(charts.ChartBand, x=places, low=places, high=places),
    counts=st.none() | st.builds(charts.ChartCounts, edges=places, counts=few(counts)),
)
scores = st.builds(charts.Score, value=numbers, low=st.none() | numbers, high=st.none() | numbers)
predictives = st.builds(
    charts.PredictionSummary,
    scores=st.none()
    | st.builds(
        charts.ScoreTable,
        predictors=few(texts),
        rows=few(st.builds(charts.ScoreRow, name=texts, scores=few(st.none() | scores), difference=st.none() | scores)),
    ),
    charts=few(curves),
    ridges=few(
        st.builds(charts.Ridges, edges=places, rows=few(st.builds(charts.Ridge, name=texts, counts=few(counts))))
    ),
    mistakes=few(st.builds(charts.Mistake, image=texts, teacher=st.none() | texts)),
)
evidences = st.builds(
    Evidence,
    id=texts,
    subject=texts,
    stage=stages,
    verdict=st.sampled_from(Verdict),
    claim=texts,
    headline=texts,
    measurements=few(st.builds(Measurement, name=texts, value=scalars, unit=texts, note=texts)),
    threshold=st.none()
    | st.builds(
        Threshold,
        quantity=texts,
        observed=scalars,
        relation=st.sampled_from(["==", "<=", ">=", "<", ">"]),
        allowed=scalars,
        unit=texts,
    ),
    layers=few(st.builds(LayerFinding, path=texts, kind=texts, ok=st.booleans(), finding=texts)),
    remedy=texts,
    notes=few(texts),
    seed=counts,
    samples=counts,
    seconds=numbers,
    charts=few(curves),
)
predictions = st.builds(
    Prediction,
    image=texts,
    label=st.none() | texts,
    passes=counts,
    entropy=numbers,
    mutual_information=numbers,
    classes=few(
        st.builds(ClassShare, name=texts, teacher=st.none() | numbers, mean=numbers, low=numbers, high=numbers)
    ),
)
subjects = st.builds(
    SubjectRecord,
    name=texts,
    stage=stages,
    model=texts,
    teacher=st.none() | texts,
    images=counts,
    sha256=texts,
    layers=few(
        st.builds(
            LayerRow,
            path=texts,
            kind=texts,
            shape=texts,
            weights=counts,
            bayesian=st.booleans(),
            sigma_over_mu=st.none() | numbers,
            kl=st.none() | numbers,
        )
    ),
    predictions=few(predictions),
    training=few(
        st.builds(
            TrainingStep,
            step=counts,
            loss=numbers,
            data_term=numbers,
            kl=numbers,
            gradient_norm=numbers,
            learning_rate=numbers,
            top1=texts,
            percent=numbers,
        )
    ),
    prediction_summary=st.none() | predictives,
)
runs = st.builds(
    AuditRun,
    checks=few(evidences),
    subjects=few(subjects),
    provenance=st.dictionaries(texts, texts, max_size=2),
    title=texts,
)


def strictly(document: object) -> None:
    """Reject what is outside JSON: only the six plain types, finite floats, text that UTF-8 can carry."""
    if isinstance(document, dict):
        assert all(type(key) is str for key in document)
        for value in document.values():
            strictly(value)
    elif isinstance(document, list):
        for value in document:
            strictly(value)
    else:
        assert type(document) in (str, int, float, bool, type(None)), type(document)
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()


@settings(deadline=None, max_examples=60)
@given(runs)
def test_a_run_comes_back_from_json_as_it_was(run: AuditRun) -> None:
    """Types included: 1 stays int, 1.0 float, True bool, a tuple a tuple; NaN and infinities too (repr shows all)."""
    text = run.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = AuditRun.from_json(text)
    assert repr(back) == repr(run)
    assert back.to_json() == text
    strictly(to_plain(run))


@settings(deadline=None, max_examples=40)
@given(runs)
def test_the_json_schema_accepts_every_run(run: AuditRun) -> None:
    """The schema is what readers outside Python rely on; the validator is not ours."""
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads(run.to_json()))


def test_a_provenance_may_look_like_the_encoding_of_nan() -> None:
    """Provenance is free text by free names; only numbers are ever encoded."""
    run = AuditRun(provenance={"float": "NaN"})
    assert AuditRun.from_json(run.to_json()) == run


def test_the_schema_is_a_sound_schema_and_knows_every_field() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    kinds = (AuditRun, Evidence, Measurement, Threshold, SubjectRecord, LayerRow, Prediction, TrainingStep)
    for kind in (*kinds, charts.PredictionSummary, charts.Chart, charts.ChartLine, charts.Ridges, charts.ScoreTable):
        properties = schema["$defs"][kind.__name__]["properties"]
        assert {field.name for field in fields(kind)} <= properties.keys()
    assert set(schema["$defs"]["Verdict"]["enum"]) == {verdict.value for verdict in Verdict}


BROKEN: list[tuple[list[str | int], Any]] = [
    (["verdict"], "great"),
    (["schema_version"], "2.0"),
    (["schema_version"], 1),
    (["checks"], {}),
    (["checks", 0, "verdict"], "PASS"),
    (["checks", 0, "stage"], "trained"),
    (["checks", 0, "seconds"], "1.5"),
    (["checks", 0, "seconds"], {"float": "nan"}),
    (["checks", 0, "seed"], 1.5),
    (["checks", 0, "layers"], [{"path": "a"}]),
    (["checks", 0, "measurements"], [{"name": "x", "value": [1]}]),
    (["checks", 0, "threshold"], {"quantity": "q", "observed": 1, "relation": "!=", "allowed": 2}),
    (["provenance"], {"torch": 2}),
    (["subjects", 0, "images"], None),
]


def with_value(document: Any, place: Sequence[str | int], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return copy


@pytest.mark.parametrize(("place", "value"), BROKEN, ids=lambda item: str(item)[:40])
def test_the_json_schema_rejects_broken_runs(place: list[str | int], value: Any) -> None:
    """A schema that accepts anything is no schema."""
    document = json.loads(AuditRun(checks=(evidence(),), subjects=(subject(),)).to_json())
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(document)
    assert not validator.is_valid(with_value(document, place, value))


@pytest.mark.parametrize("name", ["schema_version", "verdict", "checks", "subjects", "provenance"])
def test_the_json_schema_needs_every_part(name: str) -> None:
    document = json.loads(AuditRun().to_json())
    del document[name]
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(document)


@pytest.mark.parametrize(
    ("place", "value", "where"),
    [
        (["checks"], 3, "$.checks"),
        (["checks", 0, "claim"], 3, "$.checks[0].claim"),
        (["checks", 0, "verdict"], "great", "$.checks[0].verdict"),
        (["checks", 0, "seconds"], "1.5", "$.checks[0].seconds"),
        (["checks", 0, "measurements"], [{"name": "x"}], "$.checks[0].measurements[0]"),
        (["subjects", 0, "images"], None, "$.subjects[0].images"),
        (["title"], None, "$.title"),
    ],
)
def test_a_wrong_field_is_named_by_its_place(place: list[str | int], value: Any, where: str) -> None:
    """An audit.json that was edited by hand has hundreds of fields."""
    document = json.loads(AuditRun(checks=(evidence(),), subjects=(subject(),)).to_json())
    with pytest.raises(InputError) as caught:
        AuditRun.from_json(json.dumps(with_value(document, place, value)))
    assert f"`{where}`" in str(caught.value)
    assert str(caught.value).endswith("Give the audit.json of a run.")


def test_a_missing_field_is_named() -> None:
    document = json.loads(AuditRun(checks=(evidence(),)).to_json())
    del document["checks"][0]["claim"]
    with pytest.raises(InputError, match=r"`claim`.*\$\.checks\[0\]"):
        AuditRun.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "audit", "\x00", "[" * 100_000, '{"checks": [' + "1" * 5000 + "]}"])
def test_what_is_not_json_is_one_clear_error(text: str) -> None:
    """A truncated file, the wrong file, or one made to break the parser."""
    with pytest.raises(InputError, match=r"is not JSON .*Give the audit\.json of a run\."):
        AuditRun.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"', "{}", '{"checks": []}'])
def test_json_that_is_no_audit_is_one_clear_error(text: str) -> None:
    with pytest.raises(InputError, match="not an audit: it has no schema_version"):
        AuditRun.from_json(text)


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.0", "", None, 2])
def test_another_major_version_is_refused_with_both_versions(version: object) -> None:
    """Reading it with the wrong meanings would be worse than not reading it."""
    document = {**json.loads(AuditRun().to_json()), "schema_version": version}
    with pytest.raises(InputError) as caught:
        AuditRun.from_json(json.dumps(document))
    assert f"schema version {version}," in str(caught.value)
    assert SCHEMA_VERSION in str(caught.value)
    assert "pytest-bnn that wrote it" in str(caught.value)


def test_a_later_minor_version_is_read() -> None:
    """Minor versions add fields; what this version knows of them is still right."""
    run = AuditRun(checks=(evidence(),), title="later")
    document = {**json.loads(run.to_json()), "schema_version": "1.9", "new_part": [1]}
    document["checks"][0]["new_field"] = 2
    assert AuditRun.from_json(json.dumps(document)) == run


def test_the_document_says_its_verdict_and_version() -> None:
    """A shell script reads these two and nothing else."""
    run = AuditRun(checks=(evidence(verdict=Verdict.WARN), evidence(verdict=Verdict.FAIL)))
    document = json.loads(run.to_json())
    assert (document["schema_version"], document["verdict"]) == (SCHEMA_VERSION, "fail")
    assert run.to_json().endswith("}\n")


class Word(str, enum.Enum):  # noqa: UP042 (the older form of StrEnum is what users have)
    CAT = "cat"


class Number(enum.IntEnum):
    ONE = 1


class NamedFloat(float):
    pass


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (numpy.float32(0.5), 0.5),
        (numpy.float64(0.5), 0.5),
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.str_("a"), "a"),
        (numpy.array(2.5), 2.5),
        (torch.tensor(2.5), 2.5),
        (torch.tensor(2.5, dtype=torch.bfloat16, requires_grad=True), 2.5),
        (torch.tensor(7), 7),
        (torch.tensor(True), True),
        (torch.tensor(float("nan")), {"float": "NaN"}),
        (numpy.float32("inf"), {"float": "Infinity"}),
        (float("-inf"), {"float": "-Infinity"}),
        (Word.CAT, "cat"),
        (Verdict.PASS, "pass"),
        (Number.ONE, 1),
        (NamedFloat(1.5), 1.5),
        (2**70, 2**70),
        ("\ud800 cat \udfff", "\\ud800 cat \\udfff"),
        ("🐈", "🐈"),
        (((1, (2, [3])), "a"), [[1, [2, [3]]], "a"]),
        ({Word.CAT: (1,), 2: None}, {"cat": [1], "2": None}),
        (frozenset({1}), [1]),
        (PurePosixPath("a/b"), "a/b"),
        (decimal.Decimal("1.5"), "1.5"),
        (torch.float32, "torch.float32"),
        (None, None),
        (Measurement(name="x", value=1.0), {"name": "x", "value": 1.0, "unit": "", "note": ""}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_odd_values_become_plain_ones(value: object, plain: object) -> None:
    """A numpy scalar, a str-Enum or a lone surrogate kills a pytest-xdist run; the exact plain types are checked."""
    found = to_plain(value)
    assert found == plain
    assert type(found) is type(plain)
    strictly(found)


@settings(deadline=None, max_examples=150)
@given(
    st.recursive(
        scalars | st.text(alphabet=st.characters(categories=["Cs", "L"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=10,
    )
)
def test_anything_becomes_plain_and_stays_so(value: Any) -> None:
    """Plain in, the same plain out; nothing that json or execnet chokes on."""
    plain = to_plain(value)
    strictly(plain)
    assert to_plain(plain) == plain


def test_from_plain_is_the_inverse_for_single_records() -> None:
    """Workers send single records to the controller."""
    one = evidence(measurements=(Measurement(name="kl", value=float("inf")),), seconds=float("nan"))
    assert repr(from_plain(to_plain(one), Evidence)) == repr(one)


def test_records_are_frozen() -> None:
    """A report must not change what a check found."""
    with pytest.raises(FrozenInstanceError):
        evidence().headline = "all is well"  # type: ignore[misc]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(Verdict), max_size=6))
def test_a_run_is_as_good_as_its_worst_check(verdicts: list[Verdict]) -> None:
    """Error, fail, inconclusive, warn, pass, not applicable: in this order, written out here."""
    order = ["error", "fail", "inconclusive", "warn", "pass", "not_applicable"]
    run = AuditRun(checks=tuple(evidence(verdict=verdict) for verdict in verdicts))
    worst = min((order.index(verdict.value) for verdict in verdicts), default=5)
    assert run.verdict.value == order[worst]
    assert [verdict.value for verdict in SEVERITY] == order


def full_story(offenders: int = 7) -> Evidence:
    return evidence(
        verdict=Verdict.FAIL,
        threshold=Threshold(quantity="Bayesian layers", observed=0.25, relation=">=", allowed=1.0, unit="share"),
        layers=(
            LayerFinding(path="fine", kind="Conv2d", ok=True, finding="Bayesian"),
            LayerFinding(path="", kind="Linear", ok=False, finding="is deterministic 0"),
            *(
                LayerFinding(path=f"layer{i}.conv", kind="Conv2d", ok=False, finding=f"is deterministic {i}")
                for i in range(1, offenders)
            ),
        ),
        remedy="convert it",
        notes=("the head was replaced",),
    )


def test_an_explanation_tells_the_whole_story() -> None:
    """Who, what, observed against allowed, the worst offenders by path, what to do."""
    text = full_story().explain()
    lines = text.splitlines()
    assert lines[0] == "bayesian_layers fail for 'resnet18': 20 of 21 layers"
    assert "Every layer became Bayesian" in lines[1]
    assert "observed: Bayesian layers 0.25 share, allowed >= 1 share" in lines[2]
    assert "worst:" in lines[3]
    assert "(the model itself) (Linear): is deterministic 0" in lines[3]
    assert "layer4.conv (Conv2d): is deterministic 4" in text
    assert "layer5.conv" not in text
    assert "and 2 more" in text
    assert "fine" not in text
    assert "note:     the head was replaced" in text
    assert lines[-1] == "  fix:      convert it"


def test_an_explanation_shows_as_many_offenders_as_asked_for() -> None:
    assert "layer6.conv" in full_story().explain(offenders=7)
    assert " more" not in full_story().explain(offenders=7)
    assert "worst" not in replace(full_story(), layers=()).explain()


def test_an_explanation_of_a_bare_record_has_no_empty_parts() -> None:
    text = evidence(verdict=Verdict.NOT_APPLICABLE).explain()
    assert text.splitlines()[0].startswith("bayesian_layers not applicable for")
    for word in ("observed", "worst", "note:", "fix:", "None"):
        assert word not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (0.123456, "0.1235"), (True, "True"), (None, "None"), ("a", "a"), (float("nan"), "nan")],
)
def test_values_are_written_for_people(value: Any, text: str) -> None:
    assert show(value) == text


def test_measurements_and_checks_are_found_by_name() -> None:
    """The error lists the names there are: a typo is the usual reason."""
    one = evidence(measurements=(Measurement(name="layers", value=21), Measurement(name="share", value=1.0)))
    assert one["share"] == 1.0
    with pytest.raises(KeyError, match=r"no measurement 'shares'.*layers.*share"):
        one["shares"]
    run = AuditRun(checks=(one, evidence("kl"), evidence("kl", headline="second")))
    assert run["kl"].headline == "20 of 21 layers"
    with pytest.raises(KeyError, match=r"no check 'noise'.*bayesian_layers.*kl"):
        run["noise"]


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("policy", ["fail", "warn"])
def test_only_failures_raise_and_inconclusive_by_policy(verdict: Verdict, policy: Any) -> None:
    """Fail and error always; undecided only under the strict policy; the message is the explanation."""
    wanted = verdict.value in ("fail", "error") or (verdict.value == "inconclusive" and policy == "fail")
    one = evidence(verdict=verdict)
    run = AuditRun(checks=(evidence("fine"), one))
    assert is_failure(verdict, inconclusive=policy) is wanted
    if not wanted:
        assert one.raise_if_failed(inconclusive=policy) is one
        assert run.raise_for_failures(inconclusive=policy) is run
        return
    for raising in (one.raise_if_failed, run.raise_for_failures):
        with pytest.raises(AssertionError) as caught:
            raising(inconclusive=policy)
        assert str(caught.value) == one.explain()


def test_a_run_explains_every_failure() -> None:
    """One CI run shows all that is wrong."""
    run = AuditRun(checks=(evidence("a", Verdict.FAIL), evidence("b"), evidence("c", Verdict.ERROR)))
    with pytest.raises(AssertionError) as caught:
        run.raise_for_failures()
    assert str(caught.value) == f"{run['a'].explain()}\n\n{run['c'].explain()}"
