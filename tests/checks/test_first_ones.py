"""Claims about data on the first examples of a stream that goes on: they may be sorted, so that these accuse nobody."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from pytest_bnn import audit_model, check
from pytest_bnn.checks import (
    measure_calibration_classes,
    measure_calibration_temperature,
    measure_regression_coverage,
    measure_regression_scores,
    measure_scores_against_teacher,
    measure_slices_scores,
    measure_slices_temperature,
    measure_uncertainty_errors,
    measure_uncertainty_ood,
    measure_uncertainty_shift,
    registry,
)
from pytest_bnn.checks.finding import Finding
from pytest_bnn.data.large import LargeData
from pytest_bnn.data.samples import Samples, samples_of
from pytest_bnn.options import Level, Settings, Source, using
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.subject import Subject
from tests.checks.predicting import Says, following, scores
from tests.checks.regression.network import converted, examples
from tests.checks.regression.network import teacher as of_numbers
from tests.checks.uncertainty.test_errors import turned_around
from tests.checks.uncertainty.test_shift import blind, noisy

LIMIT = 900
WORDS = "goes on behind them and may be sorted"


class Stream(IterableDataset[Any]):
    """Examples that come one after the other."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(*self.columns, strict=True))


def first_of(*columns: Tensor, limit: int = LIMIT) -> Samples:
    """The first examples of a stream that goes on."""
    found = samples_of(Stream(*columns), limit=limit)
    assert found.cut
    return found


def data(count: int = LIMIT + 1) -> tuple[Tensor, Tensor]:
    logits = scores(count)
    return logits, following(logits)


def overconfident(logits: Tensor) -> Tensor:
    return 6 * logits


def biased(logits: Tensor) -> Tensor:
    return logits + 6 * torch.eye(5)[2]


def both_ways(measure: Callable[..., Evidence], wrong: nn.Module, right: nn.Module, **given: Any) -> None:
    """Look at a wrong and a right model on the first ones of a stream, and on the same as all there are."""
    images, labels = data()
    here, whole = first_of(images, labels), samples_of((images[:LIMIT], labels[:LIMIT]), limit=LIMIT)
    accused = measure(wrong, images=whole, **given)
    assert accused.verdict is Verdict.FAIL, accused.explain()
    spared = measure(wrong, images=here, **given)
    assert spared.verdict is Verdict.WARN, spared.explain()
    assert WORDS in spared.headline
    assert accused.headline in spared.notes, "what was found is there"
    assert "a Dataset with a length" in spared.remedy
    fine, told = measure(right, images=whole, **given), measure(right, images=here, **given)
    assert (fine.verdict, told.verdict) == (Verdict.PASS, Verdict.PASS), told.explain()
    assert fine.measurements == told.measurements
    (note,) = set(told.notes) - set(fine.notes)
    assert note == f"Judged on the first examples of a stream (--data), which {WORDS}."


def groups(number: int) -> str:
    return "even" if number % 2 else "odd"


@pytest.mark.parametrize(
    ("measure", "wrong", "given"),
    [
        (measure_calibration_temperature, overconfident, {}),
        (measure_calibration_classes, biased, {}),
        (measure_scores_against_teacher, biased, {"teacher": Says()}),
        (measure_slices_temperature, overconfident, {"slices": groups}),
        (measure_slices_scores, biased, {"slices": groups, "teacher": Says()}),
        (measure_uncertainty_errors, turned_around, {}),
        (measure_uncertainty_ood, blind, {"ood": scores(300, size=0.3, seed=5)}),
    ],
)  # fmt: skip
def test_a_claim_about_classes_accuses_nobody_on_the_first_ones(
    measure: Callable[..., Evidence], wrong: Callable[[Tensor], Tensor], given: dict[str, Any]
) -> None:
    both_ways(measure, Says(wrong), Says(noise=0.05), **given)


def test_nor_does_one_about_shifts() -> None:
    images, labels = data()
    given: dict[str, Any] = {"shifts": noisy(images[:LIMIT]), "task": "classification", "examples": 300}
    spared = measure_uncertainty_shift(Says(blind), images=first_of(images, labels), **given)
    assert (spared.verdict, WORDS in spared.headline) == (Verdict.WARN, True), spared.explain()
    told = measure_uncertainty_shift(Says(noise=0.05), images=first_of(images, labels), **given)
    assert told.verdict is Verdict.PASS
    assert any(WORDS in note for note in told.notes)


@pytest.mark.nightly("bounds of means take seconds; uncertainty.errors goes the same way")
@pytest.mark.parametrize("measure", [measure_regression_scores, measure_regression_coverage])
def test_nor_does_one_about_numbers(measure: Callable[..., Evidence]) -> None:
    columns = examples(401)
    wrong: dict[str, Any] = {"shift": 1.5} if measure is measure_regression_scores else {"wider": 8.0}
    given = {"images": first_of(*columns, limit=400), "teacher": of_numbers(), "max_passes": 16}
    spared = measure(converted(**wrong), **given)
    assert (spared.verdict, WORDS in spared.headline) == (Verdict.WARN, True), spared.explain()
    told = measure(converted(), **given)
    assert told.verdict is Verdict.PASS, told.explain()
    assert any(WORDS in note for note in told.notes)


IMAGES, LABELS = data(1200)
SORTED = TensorDataset(IMAGES[LABELS.sort().indices], LABELS.sort().values)


@pytest.mark.parametrize(
    ("held_out", "verdict"),
    [
        pytest.param(Stream(*SORTED.tensors), Verdict.WARN, id="sorted stream"),
        pytest.param(DataLoader(Stream(*SORTED.tensors), batch_size=1), Verdict.WARN, id="loader of one"),
        pytest.param(DataLoader(Stream(*SORTED.tensors), batch_size=32), Verdict.WARN, id="loader of a stream"),
        pytest.param(DataLoader(SORTED, batch_size=32, sampler=range(1200)), Verdict.WARN, id="order of one's own"),
        pytest.param(SORTED, Verdict.FAIL, id="sorted data set: a random subset"),
        pytest.param(DataLoader(SORTED, batch_size=32), Verdict.FAIL, id="loader in order: a random subset"),
        pytest.param(DataLoader(SORTED, batch_size=32, shuffle=True), Verdict.FAIL, id="shuffled"),
        pytest.param(
            DataLoader(SORTED, batch_size=32, sampler=RandomSampler(SORTED, replacement=True, num_samples=5000)),
            Verdict.FAIL,
            id="drawn with replacement",
        ),
        pytest.param(
            DataLoader(SORTED, batch_size=32, sampler=WeightedRandomSampler([1.0] * 1200, 1200)),
            Verdict.FAIL,
            id="drawn by weights",
        ),
        pytest.param(Stream(IMAGES[:700], LABELS[:700]), Verdict.FAIL, id="exactly the limit"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by_shards", [False, True])
def test_who_draws_at_random_or_reads_to_the_end_is_judged(held_out: Any, verdict: Verdict, by_shards: bool) -> None:
    """By what memory holds, and by shards."""
    many: dict[str, Any] = {"max_evaluation": 700, "shard_size": 200} if by_shards else {"max_images": 700}
    run = audit_model(
        Says(overconfident), data=scores(20, seed=9), evaluation=held_out,
        task="classification", checks=["calibration.temperature"],
        options={"calibration.temperature": {"max_passes": 8}}, **many,
    )  # fmt: skip
    evidence = run.checks[0]
    assert evidence.verdict is verdict, evidence.explain()
    assert (WORDS in evidence.headline) == (verdict is Verdict.WARN)
    assert "(--evaluation)" in evidence.headline or verdict is Verdict.FAIL


def test_what_is_read_to_its_end_below_the_limit_is_judged() -> None:
    large = LargeData.of(Stream(IMAGES, LABELS), 5000, shard_size=300, few=20)
    evidence = measure_calibration_classes(Says(biased), images=scores(20, seed=9), evaluation=large, max_passes=8)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert evidence["examples"] == 1200


def test_a_limit_at_the_end_of_a_shard_and_of_the_stream_is_no_cut() -> None:
    for limit, cut in ((120, False), (90, True), (119, True), (121, False)):
        large = LargeData.of(Stream(IMAGES[:120], LABELS[:120]), limit, shard_size=30, few=20)
        assert [part.cut for part in large.parts()][-1] is cut, limit


def test_of_shards_the_few_in_memory_accuse_nobody_either() -> None:
    large = LargeData.of(Stream(*data(1400)), shard_size=300, few=1200)
    evidence = measure_uncertainty_errors(Says(turned_around), images=scores(20, seed=9), evaluation=large)
    assert (evidence.verdict, WORDS in evidence.headline) == (Verdict.WARN, True), evidence.explain()
    assert "--images" not in evidence.remedy, "it is not the number of these that would help"


def test_which_of_the_sets_is_a_stream_decides() -> None:
    """The claim about what is outside of the task is about --data and --ood, whatever --evaluation gives."""
    images, labels = data()
    given: dict[str, Any] = {"images": (images, labels), "evaluation": first_of(images, labels)}
    other = scores(401, size=0.3, seed=5)
    found = measure_uncertainty_ood(Says(blind), ood=other, **given)
    assert found.verdict is Verdict.FAIL, found.explain()
    spared = measure_uncertainty_ood(Says(blind), ood=first_of(other, torch.zeros(401), limit=400), **given)
    assert (spared.verdict, "(--ood)" in spared.headline) == (Verdict.WARN, True), spared.explain()
    told = measure_calibration_temperature(Says(overconfident), **given)
    assert (told.verdict, "(--evaluation)" in told.headline) == (Verdict.WARN, True), told.explain()
    own = measure_calibration_temperature(Says(overconfident), images=first_of(images, labels), evaluation=data())
    assert own.verdict is Verdict.FAIL, own.explain()


class Breaks(nn.Module):
    """Raises once it is told to."""

    broken = False

    def forward(self, logits: Tensor) -> Tensor:
        if self.broken:
            raise RuntimeError("out of order")
        return logits


def test_a_forward_that_raises_is_no_matter_of_the_data() -> None:
    model = Breaks()
    subject = Subject(model, images=first_of(*data()))
    subject.require_images()
    model.broken = True
    found = measure_calibration_temperature(subject)
    assert found.verdict is Verdict.FAIL, found.explain()
    assert "out of order" in found.headline


def test_who_asks_for_a_failure_gets_an_undecided_claim() -> None:
    images, labels = data()
    with using(Settings(inconclusive="fail"), sources={"inconclusive": Source(Level.COMMAND_LINE, "a test")}):
        found = measure_calibration_temperature(Says(overconfident), images=first_of(images, labels))
    assert found.verdict is Verdict.INCONCLUSIVE, found.explain()


def test_claims_that_are_not_about_data_are_not_spared() -> None:
    """The mean is another function on whichever examples."""
    stream = first_of(*data())
    found = audit_model(Says(), teacher=Says(biased), data=stream, checks=["teacher.agreement"]).checks[0]
    assert found.verdict is Verdict.FAIL, found.explain()
    assert not any(WORDS in note for note in found.notes)


def test_nor_accuses_a_check_of_ones_own() -> None:
    with registry.kept():

        @check("mine.rule", claim="Everything is fine.", needs=("images",), of_data=True)
        def rule(subject: Subject) -> Finding:
            return Finding(verdict=Verdict.FAIL, headline="nothing is")

        assert rule.measure(Says(), images=data()[0]).verdict is Verdict.FAIL
        assert rule.measure(Says(), images=first_of(*data())).verdict is Verdict.WARN


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (lambda labels: labels.float(), r"float32 \[901\], and class indices are whole numbers.*labels\.long\(\)\)"),
        (lambda labels: labels.double()[:, None], r"float64 \[901, 1\].*labels\.long\(\)\.flatten\(\)\)"),
        (lambda labels: labels + 0.5, r"float32 \[901\] with fractions.*--task regression"),
        (lambda labels: torch.rand(901, 4), r"float32 \[901, 4\] with fractions, which are neither class indices nor"),
        (lambda labels: torch.randint(2, (901, 3)), r"int64 \[901, 3\], from 0 to 1, which do not tell"),
        (lambda labels: torch.nn.functional.one_hot(labels, 6).float(), r"float32 \[901, 6\], which are no class ind"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("large", [False, True])
def test_labels_that_are_no_classes_are_told_what_they_are(
    labels: Callable[[Tensor], Tensor], words: str, large: bool
) -> None:
    images, classes = data()
    given: Any = images, labels(classes)
    held_out = LargeData.of(given, shard_size=901, few=901) if large else given
    found = measure_calibration_temperature(Says(), images=scores(20, seed=9), evaluation=held_out)
    assert found.verdict is Verdict.NOT_APPLICABLE, found.explain()
    assert "give labels" not in found.headline
    assert re.search(words, found.headline), found.headline
