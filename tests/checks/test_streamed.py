"""Claims about labels on more examples than memory holds: the same findings, from shards."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pytest_bnn.checks import (
    measure_calibration_classes,
    measure_calibration_temperature,
    measure_scores_against_teacher,
    measure_slices_scores,
    measure_slices_temperature,
    measure_uncertainty_errors,
)
from pytest_bnn.data.large import LargeData
from pytest_bnn.data.ray_data import RayRows
from pytest_bnn.errors import InputError
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import Subject
from tests.checks.predicting import Says, following, scores

CLAIMS = (measure_calibration_temperature, measure_calibration_classes, measure_scores_against_teacher)


class Blurs(nn.Module):
    """Its input as scores, with noise that all examples of a pass share, as drawn weights are."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores + 0.2 * torch.randn(scores.shape[1])


def data(count: int, seed: int = 0, classes: int = 5) -> tuple[Tensor, Tensor]:
    logits = scores(count, classes, seed=seed)
    return logits, following(logits, seed + 1)


def subject_on(held_out: Any, model: nn.Module | None = None, shard: int | None = None, **given: Any) -> Subject:
    options = {name: given.pop(name) for name in ("limit", "unreadable", "workers", "few", "seed") if name in given}
    evaluation = LargeData.of(held_out, shard_size=shard, **options)
    return Subject(model or Says(noise=0.2), teacher=Says(), images=scores(40, seed=9), evaluation=evaluation, **given)


def figures(evidence: Evidence) -> dict[str, Any]:
    return {one.name: one.value for one in evidence.measurements if not one.name.startswith("examples")}


@pytest.mark.parametrize("factor", [1.0, 4.0], ids=["calibrated", "four times too sure"])
def test_shards_say_what_all_examples_in_memory_say(factor: float) -> None:
    """One shard is all there is to look at, so that both are judged on the same labels."""
    held_out = data(1500)
    model = Says(lambda x: factor * x, noise=0.2)
    one = subject_on(held_out, model, 1500)
    whole = Subject(model, teacher=Says(), images=scores(40, seed=9), evaluation=held_out)
    for claim in CLAIMS:
        told, exact = claim(one), claim(whole)
        assert told.verdict is exact.verdict, told.explain()
        assert told.headline.split(":")[0] == exact.headline.split(":")[0]
        assert told.samples == exact.samples
        mine, its = figures(told), figures(exact)
        assert mine.keys() == its.keys()
        for name, value in its.items():
            assert mine[name] == pytest.approx(value, rel=0.05, abs=2e-3), name
        assert told["examples"] == 1500


@pytest.mark.parametrize("size", [1, 7, 79, 80])
def test_the_size_of_the_shards_changes_nothing_but_the_last_digits(size: int) -> None:
    held_out = data(80)
    band = (0.99, 1.01)  # undecided, so that all examples are looked at
    told = measure_calibration_temperature(subject_on(held_out, Blurs(), size), band=band)
    whole = measure_calibration_temperature(subject_on(held_out, Blurs(), 80), band=band)
    assert told.headline == whole.headline
    for name, value in figures(whole).items():
        assert figures(told)[name] == pytest.approx(value, rel=1e-5), name
    assert told["examples"] == 80


def test_no_more_shards_are_read_than_it_takes() -> None:
    evidence = measure_calibration_temperature(subject_on(data(20_000), shard=500))
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert evidence["examples"] <= 1000  # type: ignore[operator]
    assert any(
        "of 20000 examples, in random order" in note and "no more were needed" in note for note in evidence.notes
    )


@pytest.mark.nightly("64 passes of 20,000 examples; every push has a network that is four times too sure")
def test_a_narrow_band_takes_them_all_and_a_wrong_temperature_of_a_tenth_is_found() -> None:
    """20,000 labels tell a temperature of 1.1 from one within 4 %, which 512 do not."""
    held_out = data(20_000)
    hot = Says(lambda x: 1.1 * x, noise=0.0)
    evidence = measure_calibration_temperature(subject_on(held_out, hot), band=(0.97, 1.03))
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "too sure of itself" in evidence.headline
    assert evidence.samples == 64
    few = Subject(hot, teacher=Says(), images=scores(40, seed=9), evaluation=tuple(one[:512] for one in held_out))
    assert measure_calibration_temperature(few, band=(0.97, 1.03)).verdict is not Verdict.FAIL
    right = measure_calibration_temperature(subject_on(held_out, Says(noise=0.0)), band=(0.9, 1.1))
    assert right.verdict is Verdict.PASS, right.explain()


def test_a_class_predicted_too_rarely_and_a_worse_score_are_found() -> None:
    held_out = data(20_000)
    shifted = torch.tensor([0.0, 0.0, -4.0, 0.0, 0.0])
    subject = subject_on(held_out, Says(lambda x: x + shifted, noise=0.1))
    evidence = measure_calibration_classes(subject)
    assert evidence.verdict is Verdict.FAIL, evidence.explain()
    assert "class 2 too rarely" in evidence.headline
    assert measure_scores_against_teacher(subject).verdict is Verdict.FAIL
    as_good = measure_scores_against_teacher(subject_on(held_out, Says(noise=0.01)))
    assert as_good.verdict is Verdict.PASS, as_good.explain()


def test_claims_about_groups_are_judged_on_shards() -> None:
    held_out = data(8000)
    part = torch.arange(8000) % 4 == 0
    wrong = held_out[1].clone()
    wrong[part] = torch.randint(0, 5, (int(part.sum()),), generator=torch.Generator().manual_seed(3))

    def group(number: int) -> str:
        return "fourth" if number % 4 == 0 else "others"

    for claim in (measure_slices_temperature, measure_slices_scores):
        kept = claim(subject_on(held_out, Says(noise=0.01), slices=group))
        assert kept.verdict is Verdict.PASS, kept.explain()
    broken = measure_slices_temperature(subject_on((held_out[0], wrong), Says(noise=0.01), slices=group))
    assert broken.verdict is Verdict.WARN, "the teacher says the same"
    assert "fourth" in broken.headline
    assert "others" not in broken.headline


def test_what_slices_raise_stops_the_claims_about_groups_alone() -> None:
    def group(number: int) -> str:
        raise LookupError(number)

    subject = subject_on(data(300), slices=group)
    assert measure_calibration_temperature(subject).verdict is Verdict.PASS
    with pytest.raises(InputError, match="--slices raised LookupError"):
        measure_slices_temperature(subject)


def test_an_example_counts_once_whichever_shards_it_is_in() -> None:
    images, labels = data(300)
    again = (torch.cat([images, images, images[:50]]), torch.cat([labels, labels, labels[:50]]))
    band = (0.99, 1.01)
    once = measure_calibration_temperature(subject_on((images, labels), Blurs(), 64), band=band)
    twice = measure_calibration_temperature(subject_on(again, Blurs(), 64), band=band)
    assert twice["labels"] == once["labels"] == 300
    assert twice["examples left out"] == 350
    assert twice["temperature"] == pytest.approx(once["temperature"], rel=1e-4)


class Files(Dataset[tuple[Tensor, Tensor]]):
    """Images, some of which cannot be read."""

    def __init__(self, held_out: tuple[Tensor, Tensor], bad: tuple[int, ...] = (), nan: tuple[int, ...] = ()) -> None:
        self.held_out, self.bad, self.nan = held_out, bad, nan
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.held_out[0])

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        self.asked.append(place)
        if place in self.bad:
            raise OSError(f"cannot identify image file {place}.jpg")
        image = self.held_out[0][place]
        return (image * torch.nan if place in self.nan else image), self.held_out[1][place]


def test_examples_that_cannot_be_read_are_named_and_left_out_up_to_a_limit() -> None:
    files = Files(data(400), bad=(17, 300), nan=(5,))
    evidence = measure_calibration_temperature(subject_on(files, shard=50, unreadable=0.01), band=(0.99, 1.01))
    assert evidence["labels"] == 397
    assert evidence["examples"] == 400
    assert evidence["examples that cannot be read"] == 3
    note = next(note for note in evidence.notes if "cannot be read" in note)
    assert "number 17 (OSError: cannot identify image file 17.jpg)" in note
    assert "number 5 (it holds NaN or infinity)" in note
    with pytest.raises(InputError, match=r"3 of 400 examples cannot be read, more than 0\.001 of 400: number"):
        subject_on(files, shard=50)
    late = subject_on(files, shard=50, few=10)
    with pytest.raises(InputError, match="cannot be read, more than"):
        measure_calibration_temperature(late, band=(0.99, 1.01))


def test_of_a_sorted_data_set_a_random_subset_is_judged() -> None:
    images, labels = data(4000)
    order = labels.sort().indices
    files = Files((images[order], labels[order]))
    evidence = measure_calibration_classes(subject_on(files, limit=900, shard=300, few=20))
    assert evidence["examples"] <= 900  # type: ignore[operator]
    assert len(set(files.held_out[1][files.asked].tolist())) == 5
    assert max(files.asked) > 3500
    assert evidence.verdict is not Verdict.FAIL, evidence.explain()


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, held_out: tuple[Tensor, Tensor]) -> None:
        self.held_out = held_out

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(*self.held_out, strict=True))


@pytest.mark.parametrize("loader", [False, True])
def test_of_a_stream_the_first_ones_are_judged_and_said_to_be(loader: bool) -> None:
    stream: Any = Endless(data(900))
    if loader:
        stream = DataLoader(stream, batch_size=40)
    evidence = measure_calibration_temperature(subject_on(stream, limit=500, shard=64), band=(0.99, 1.01), max_passes=8)
    assert evidence["examples"] == 500
    assert any("the first ones of a stream" in note for note in evidence.notes)
    whole = measure_calibration_temperature(subject_on(stream, shard=300), band=(0.99, 1.01), max_passes=8)
    assert whole["examples"] == 900


class Sized(Endless):
    def __len__(self) -> int:
        return 10 * len(self.held_out[0])


def test_a_stream_that_says_a_length_is_read_as_a_stream() -> None:
    evidence = measure_calibration_temperature(subject_on(Sized(data(300)), shard=300), band=(0.99, 1.01), max_passes=8)
    assert evidence["examples"] == 300
    assert any("the first ones of a stream" in note for note in evidence.notes)


def test_the_first_ones_of_a_sorted_stream_accuse_nobody() -> None:
    images, labels = data(1200)
    order = labels.sort().indices
    stream = Endless((images[order], labels[order]))
    evidence = measure_calibration_classes(subject_on(stream, shard=400, few=20), max_passes=8)
    assert evidence.verdict is Verdict.PASS, evidence.explain()
    assert evidence["examples"] == 1200
    model = Says(lambda x: x + 6 * torch.eye(5)[2])
    wrong = measure_calibration_classes(subject_on(stream, model, shard=400, few=20), max_passes=8)
    assert wrong.verdict is Verdict.FAIL
    assert wrong["examples"] == 1200
    assert not any("no more were needed" in note for note in wrong.notes)


def test_the_first_ones_of_a_sorted_stream_accuse_nobody_where_a_limit_ends_it() -> None:
    """What comes behind the limit may be all of another class."""
    images, labels = data(4000)
    order = labels.sort().indices
    stream = Endless((images[order], labels[order]))
    evidence = measure_calibration_classes(subject_on(stream, limit=1500, shard=500, few=20), max_passes=8)
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert "may be sorted" in evidence.headline
    assert "--evaluation-images all" in evidence.remedy


class Closed(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream that raises for ever, as one of a file that was closed does."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.held = list(zip(*data(100), strict=True))
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        if not self.held:
            raise ValueError("I/O operation on closed file")
        return self.held.pop()


def test_a_stream_that_raises_for_ever_is_refused() -> None:
    with pytest.raises(InputError, match="examples cannot be read, more than"):
        measure_calibration_temperature(subject_on(Closed(), few=20, shard=64), band=(0.99, 1.01))


class Torn(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from Endless(data(100))
        raise OSError("the file ends here")


def test_a_stream_that_breaks_off_is_refused() -> None:
    with pytest.raises(InputError, match="the stream raised OSError: the file ends here at example 100"):
        measure_calibration_temperature(subject_on(Torn(), few=20, shard=64), band=(0.99, 1.01))


class Once(IterableDataset[tuple[Tensor, Tensor]]):
    """Is spent when it was read."""

    def __init__(self) -> None:
        self.items = iter(Endless(data(30)))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.items


def test_a_stream_that_can_be_read_once_is_refused() -> None:
    with pytest.raises(InputError, match=r"none when it was read again.*__iter__ begin anew"):
        measure_calibration_temperature(subject_on(Once(), few=40, shard=64))


class Again(Endless):
    """Begins anew where it ends, so many times; for ever where there is no number."""

    def __init__(self, times: int | None) -> None:
        super().__init__(data(60))
        self.times = times

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in itertools.count() if self.times is None else range(self.times):
            yield from super().__iter__()


@pytest.mark.parametrize("size", [20, 60, 64])
def test_a_stream_that_begins_again_for_ever_is_refused_where_it_would_be_waited_for(size: int) -> None:
    with pytest.raises(InputError, match=r"gives the same 60 examples again and again.*--evaluation-images N"):
        measure_calibration_temperature(subject_on(Again(None), few=20, shard=size), band=(0.99, 1.01), max_passes=8)


def test_a_stream_that_begins_again_and_ends_is_judged_and_each_example_once() -> None:
    evidence = measure_calibration_temperature(
        subject_on(Again(4), few=20, shard=20), band=(0.99, 1.01), max_passes=8
    )  # fmt: skip
    assert evidence.verdict is Verdict.WARN, evidence.explain()
    assert evidence["labels"] == 60
    limited = measure_calibration_temperature(
        subject_on(Again(None), few=20, shard=20, limit=600), band=(0.99, 1.01), max_passes=8
    )  # fmt: skip
    assert limited["labels"] == 60
    fine = measure_calibration_temperature(subject_on(Again(None), few=20, shard=20), band=(0.01, 100.0), max_passes=8)
    assert fine.verdict is Verdict.PASS, "nothing more is waited for"


class Failing(IterableDataset[tuple[Tensor, Tensor]]):
    """Gives some examples, and then raises whenever it is asked for the next one."""

    def __init__(self, good: int) -> None:
        self.good = good

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.items = iter(Endless(data(self.good))) if self.good else iter(())
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        found = next(self.items, None)
        if found is None:
            raise OSError("no route to host")
        return found


def test_a_stream_that_raises_for_ever_ends() -> None:
    with pytest.raises(InputError, match=r"no example that can be read: number 0 .OSError: no route to host"):
        subject_on(Failing(0), few=20, shard=64)
    with pytest.raises(InputError, match=r"examples cannot be read, more than 0.001"):
        measure_calibration_temperature(subject_on(Failing(100), few=20, shard=64), band=(0.99, 1.01))


class Blocks:
    """Stands for a data set of Ray Data."""

    def randomize_block_order(self, seed: int) -> Blocks:
        return self

    def iter_batches(self, batch_size: int, **_: Any) -> Iterator[dict[str, Any]]:
        images, labels = data(90)
        for some in torch.arange(90).split(batch_size):
            assert ORDERED.execution_options.preserve_order
            yield {"image": images[some].numpy(), "label": labels[some].numpy()}


ORDERED = SimpleNamespace(execution_options=SimpleNamespace(preserve_order=False))


def test_ray_data_is_told_to_keep_an_order_only_while_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops in the middle of it leaves nothing behind, also where two read at once."""
    context = SimpleNamespace(get_current=lambda: ORDERED)
    monkeypatch.setitem(sys.modules, "ray.data", SimpleNamespace(DataContext=context))
    one, other = (RayRows(Blocks(), "evaluation").parts(40, 0) for _ in range(2))
    for part in (one, other, one):
        read = next(part)
        assert read.samples is not None
        assert read.samples.rows == 40
        assert not ORDERED.execution_options.preserve_order
    assert [read.samples.places.tolist() for read in one if read.samples] == [[*range(80, 90)]]


class Counted(Dataset[tuple[Tensor, Tensor]]):
    """Counts what is read."""

    def __init__(self, held_out: tuple[Tensor, Tensor]) -> None:
        self.held_out, self.read = held_out, 0

    def __len__(self) -> int:
        return len(self.held_out[0])

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        self.read += 1
        return self.held_out[0][place], self.held_out[1][place]


def test_claims_about_groups_hold_when_all_groups_were_seen() -> None:
    """Of 2,000 examples eight are of a group of which the first shard has none, and they do not decide it."""
    held_out = data(2000)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0)).tolist()
    rare = frozenset(order[900:908])
    rows = torch.tensor(sorted(rare))
    held_out[1][rows] = (held_out[0][rows].argmax(1) + 1) % 5
    for measure in (measure_slices_temperature, measure_slices_scores):
        first = measure(
            subject_on(held_out, shard=800, slices=lambda place: "many"), budget=Budget(alpha=1e-3, beta=1e-3)
        )
        assert (first.verdict, first["examples"]) == (Verdict.PASS, 800)
        groups = lambda place: "rare" if place in rare else "many"  # noqa: E731
        told = measure(subject_on(held_out, shard=800, slices=groups), budget=Budget(alpha=1e-3, beta=1e-3))
        assert told.verdict is not Verdict.PASS
        assert "2 groups" in told.headline


def test_of_groups_that_are_too_many_no_more_is_read() -> None:
    """Further examples bring further groups."""
    held_out = Counted(data(900))
    judged = subject_on(held_out, few=20, shard=250, slices=str)
    told = measure_slices_temperature(judged)
    assert told.verdict is Verdict.NOT_APPLICABLE
    assert "one of a few groups" in told.headline
    assert held_out.read == 20 + 250


def test_of_a_teacher_of_other_classes_a_single_shard_is_read() -> None:
    """More examples do not change it."""
    held_out = Counted(data(600))
    large = LargeData.of(held_out, few=20, shard_size=64)
    teacher = Says(lambda x: torch.cat([x, x[:, :2] - 9], 1))
    judged = Subject(Says(noise=0.2), teacher=teacher, images=scores(40, seed=9), evaluation=large)
    told = measure_scores_against_teacher(judged)
    assert told.verdict is Verdict.NOT_APPLICABLE
    assert "other classes" in told.headline
    assert held_out.read == 20 + 64


def test_a_loader_and_arrays_in_a_file_are_read_by_number(tmp_path: Any) -> None:
    import numpy

    images, labels = data(300)
    loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
    path = tmp_path / "images.npy"
    numpy.save(path, images.numpy())
    mapped = (numpy.load(path, mmap_mode="r"), labels.numpy())
    expected = measure_calibration_temperature(subject_on((images, labels), shard=64), band=(0.99, 1.01))
    for held_out in (loader, mapped):
        told = measure_calibration_temperature(subject_on(held_out, shard=64), band=(0.99, 1.01))
        assert figures(told) == figures(expected)


def test_labels_that_nobody_knows_and_no_labels_are_not_judged() -> None:
    images, labels = data(600)
    unknown = measure_calibration_temperature(subject_on((images, labels[torch.randperm(600)]), shard=64))
    assert unknown.verdict is Verdict.NOT_APPLICABLE
    assert "more often than by chance" in unknown.headline
    none = measure_calibration_temperature(subject_on(images, shard=64))
    assert none.verdict is Verdict.NOT_APPLICABLE


def test_nothing_is_disturbed() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5))
    model.train()
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    measure_calibration_temperature(subject_on(data(200), model, 50))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_two_classes_by_one_number_and_by_its_probability() -> None:
    logits = scores(900, 1, 3.0).double()
    labels = (torch.rand(900, generator=torch.Generator().manual_seed(1)) < logits[:, 0].sigmoid()).long()
    for factor, verdict in ((1.0, Verdict.PASS), (5.0, Verdict.FAIL)):
        for change in (lambda x, f=factor: f * x, lambda x, f=factor: torch.sigmoid(f * x)):
            large = LargeData.of((logits, labels), shard_size=200)
            judged = Subject(Says(change), images=logits[:50], evaluation=large, task="binary")
            evidence = measure_calibration_temperature(judged)
            assert evidence.verdict is verdict, evidence.explain()


def test_one_place_of_each_example_of_dense_outputs() -> None:
    maps = 2 * torch.randn(900, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = following(maps.movedim(1, -1).reshape(-1, 3)).reshape(900, 2, 2)
    for factor, verdict in ((1.0, Verdict.PASS), (5.0, Verdict.FAIL)):
        large = LargeData.of((maps, labels), shard_size=300)
        judged = Subject(Says(partial(torch.mul, factor)), images=maps[:50], evaluation=large, task="dense")
        evidence = measure_calibration_temperature(judged)
        assert evidence.verdict is verdict, evidence.explain()


def test_a_probability_that_was_rounded_to_0_and_one_that_is_0() -> None:
    images, labels = data(600)
    row = int(images.amin(1).argmin())
    labels[row] = images[row].argmin()

    def rounded(x: Tensor) -> Tensor:
        shares = (60 * x).softmax(1)
        return shares.half().to(x.dtype) / shares.half().to(x.dtype).sum(1, keepdim=True)

    evidence = measure_calibration_temperature(subject_on((images, labels), Says(rounded), 100))
    assert evidence.verdict is Verdict.NOT_APPLICABLE
    assert "a probability of exactly 0" in evidence.headline
    masked = Says(lambda x: x.masked_fill(x < -4.0, -torch.inf))
    said = measure_calibration_temperature(subject_on((images, labels), masked, 100), band=(0.99, 1.01))
    assert said.verdict is Verdict.FAIL
    assert "the model gives a probability of 0" in said.headline


def test_several_inputs_by_name_are_read_by_shards() -> None:
    class Two(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first + second

    images, labels = data(500)
    held_out = {"first": images / 2, "second": images / 2, "labels": labels}
    few = {name: value[:40] for name, value in held_out.items()}
    large = LargeData.of(held_out, shard_size=64)
    judged = Subject(Two(), images=LargeData.of(few).few, evaluation=large)
    evidence = measure_calibration_temperature(judged, band=(0.99, 1.01))
    assert evidence["labels"] == evidence["examples"] == 500


def test_a_folder_of_images_with_a_file_that_is_none(tmp_path: Any) -> None:
    torchvision = pytest.importorskip("torchvision")
    from PIL import Image

    for name in ("dark", "light"):
        (tmp_path / name).mkdir()
        for number in range(30):
            level = (40 if name == "dark" else 200) + number
            Image.new("L", (8, 8), level).save(tmp_path / name / f"{number}.png")
    (tmp_path / "dark" / "3.png").write_bytes(b"this is no picture")
    change = torchvision.transforms.Compose([torchvision.transforms.Grayscale(), torchvision.transforms.ToTensor()])
    folder = torchvision.datasets.ImageFolder(str(tmp_path), transform=change)

    class Levels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            level = x.mean((1, 2, 3)) - 0.5
            return torch.stack([-4 * level, 4 * level], 1)

    large = LargeData.of(folder, shard_size=16, unreadable=0.05)
    judged = Subject(Levels(), images=large.few, evaluation=large)
    evidence = measure_calibration_temperature(judged, band=(0.99, 1.01))
    assert evidence["labels"] == 59
    assert evidence["examples that cannot be read"] == 1
    assert any("UnidentifiedImageError" in note for note in evidence.notes)
    with pytest.raises(InputError, match="cannot be read, more than"):
        LargeData.of(folder, shard_size=16, unreadable=0)


def test_what_memory_holds_is_said_where_it_is_all_that_is_judged() -> None:
    evidence = measure_uncertainty_errors(subject_on(data(2000), few=300))
    assert "Judged on 300 of 2000 examples, those that memory holds." in evidence.notes


@pytest.mark.nightly("a hundred data sets, each with a dozen looks")
def test_looking_again_and_again_accuses_no_sound_model_more_often_than_it_may() -> None:
    """At a rate of 5 %, with a band of one temperature, no more than 5 of 100 sound models fail, but for chance."""
    budget, wrong, apart = Budget(alpha=0.05, beta=0.05), 0, 0
    for seed in range(100):
        held_out = data(1500, seed=10 + 2 * seed)
        found = measure_calibration_temperature(
            subject_on(held_out, Says(), 50), band=(1 - 1e-9, 1 + 1e-9), budget=budget, max_passes=8
        )
        wrong += found.verdict is Verdict.FAIL
        hot = subject_on(held_out, Says(lambda x: 1.5 * x), 50)
        apart += measure_calibration_temperature(hot, band=(0.999, 1.001), budget=budget).verdict is Verdict.FAIL
    assert wrong <= 11
    assert apart == 100
