"""What the report shows beside the verdicts: pictures that are pictures, uncertainties that others compute alike."""

from __future__ import annotations

import base64
import copy
import io
import math

import numpy
import pytest
import scipy.special
import scipy.stats
import torch
from PIL import Image
from torch import Tensor, nn

from pytest_bnn.audit.description import CLASSES, IMAGES, _chosen, describe, sha256
from pytest_bnn.audit.pictures import THUMBNAIL
from pytest_bnn.conversion import convert
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.records.run import SubjectRecord, TrainingStep
from pytest_bnn.subject import Subject

PASSES = 12
NAMES = tuple(f"class of {name}" for name in "abcdefgh")


def network(channels: int = 3, classes: int = 8) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, classes),
        ).eval()


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def drawn(subject: Subject, passes: int) -> Tensor:
    """The first passes, which a check would have drawn."""
    return torch.cat([*subject.bank.blocks(0, passes)])


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Twenty images, twelve passes drawn, a wide posterior."""
    teacher = network()
    subject = Subject(
        convert(teacher, moped_delta=1.0),
        teacher=teacher,
        images=pictures(20, 3, 9, 11),
        labels=torch.arange(20) % 8,
        name="wide",
        class_names=NAMES,
    )
    drawn(subject, PASSES)
    return subject


@pytest.fixture(scope="module")
def record(subject: Subject) -> SubjectRecord:
    return describe(subject)


@pytest.fixture(scope="module")
def shares(subject: Subject) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]:
    """Softmax by scipy of the very passes, [passes, images, classes]."""
    return numpy.asarray(scipy.special.softmax(drawn(subject, PASSES).double().numpy(), axis=-1))


def test_entropy_and_mutual_information_by_scipy(
    record: SubjectRecord, shares: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]
) -> None:
    """Predictive entropy is that of the mean; mutual information is what the mean has beyond the passes' own."""
    total = scipy.stats.entropy(shares.mean(0), axis=-1)
    own = scipy.stats.entropy(shares, axis=-1).mean(0)
    divergence = scipy.stats.entropy(shares, shares.mean(0, keepdims=True), axis=-1).mean(0)
    for shown in record.predictions:
        assert shown.entropy == pytest.approx(total[shown.index], rel=1e-5)
        assert shown.mutual_information == pytest.approx(total[shown.index] - own[shown.index], abs=1e-5)
        assert shown.mutual_information == pytest.approx(divergence[shown.index], abs=1e-5)
        assert shown.mutual_information > 1e-4, "a posterior this narrow would show nothing"
        assert shown.passes == PASSES


def test_shares_and_quantiles_by_numpy(
    record: SubjectRecord, subject: Subject, shares: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]
) -> None:
    """Mean, 5 % and 95 % over passes, and the teacher's own probability, of each class that is shown."""
    assert subject.teacher is not None
    with torch.no_grad():
        teacher = scipy.special.softmax(subject.teacher(subject.images).double().numpy(), axis=-1)
    low, high = numpy.quantile(shares, [0.05, 0.95], axis=0)
    for shown in record.predictions:
        assert len(shown.classes) == CLASSES
        for share in shown.classes:
            at = shown.index, NAMES.index(share.name)
            assert share.mean == pytest.approx(shares.mean(0)[at], rel=1e-5)
            assert share.low == pytest.approx(low[at], rel=1e-5)
            assert share.high == pytest.approx(high[at], rel=1e-5)
            assert share.teacher == pytest.approx(teacher[at], rel=1e-5)


def test_the_most_uncertain_images_are_shown(
    shares: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]], subject: Subject
) -> None:
    """Without teacher and labels, those are the ones worth a look; each with its place in the data."""
    order = numpy.argsort(-scipy.stats.entropy(shares.mean(0), axis=-1))[:IMAGES]
    alone = Subject(subject.model, images=subject.images, name="wide", class_names=NAMES)
    drawn(alone, PASSES)
    shown = describe(alone).predictions
    assert [one.index for one in shown] == order.tolist()
    assert {one.why for one in shown} == {"the least certain"}


def test_disagreements_come_first_then_sure_errors_then_what_is_uncertain(
    record: SubjectRecord,
    subject: Subject,
    shares: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]],
) -> None:
    """By numpy: which images disagree, which are wrong, and how sure the mean prediction is of each."""
    assert subject.teacher is not None
    mean = shares.mean(0)
    with torch.no_grad():
        taught = subject.teacher(subject.images).argmax(1).numpy()
    labels, said = numpy.arange(20) % 8, mean.argmax(1)
    surest = numpy.argsort(-mean.max(1), kind="stable")
    apart = [at for at in surest if said[at] != taught[at]]
    wrong = [at for at in surest if said[at] != labels[at]]
    assert len(apart) >= 4
    expected = apart[:4]
    expected += [at for at in wrong if at not in expected][:2]
    unsure = numpy.argsort(-scipy.stats.entropy(mean, axis=-1), kind="stable")
    expected += [at for at in unsure if at not in expected][:2]
    assert [shown.index for shown in record.predictions] == expected
    assert [shown.why for shown in record.predictions] == (
        ["BNN and teacher disagree"] * 4 + ["wrong and sure of it"] * 2 + ["the least certain"] * 2
    )
    assert [shown.label for shown in record.predictions] == [NAMES[index % 8] for index in expected]


def test_where_few_disagree_others_are_shown() -> None:
    """Room is not left empty, and a label that is no class makes no error."""
    mean = torch.full((12, 3), 0.1, dtype=torch.float64)
    mean[:, 0] = 0.8
    teacher = mean.clone()
    teacher[5] = teacher[5].flip(0)
    chosen = _chosen(mean, teacher, [0] * 3 + [255] * 8 + [1], torch.arange(12.0))
    assert list(chosen.items())[:2] == [(5, "BNN and teacher disagree"), (11, "wrong and sure of it")]
    assert [*chosen.values()][2:] == ["the least certain"] * 6
    assert [*chosen][2:] == [10, 9, 8, 7, 6, 4]


def test_the_teacher_s_class_is_always_shown() -> None:
    """Where the BNN forgot what the teacher knew, both must be seen side by side."""
    teacher = network()
    model = convert(teacher, moped_delta=0.01)
    head = bayesian_layers(model)[-1].tensors
    with torch.no_grad():
        for tensor in head:
            tensor.mu.neg_().mul_(20)
    subject = Subject(model, teacher=teacher, images=pictures(20, 3, 9, 11), class_names=NAMES)
    drawn(subject, 4)
    with torch.no_grad():
        leaders = teacher(subject.images).argmax(1)
    missed = 0
    for shown in describe(subject).predictions:
        leader = NAMES[int(leaders[shown.index])]
        assert leader in [share.name for share in shown.classes]
        missed += leader == shown.classes[-1].name
    assert missed, "the teacher's class led everywhere, so nothing was shown"


def test_classes_without_names_have_their_number() -> None:
    """Fewer names than classes must not break a report."""
    subject = Subject(convert(network()), images=pictures(4, 3, 9, 9), labels=torch.tensor([0, 1, 99, 3]))
    subject.class_names = ("only one",)
    drawn(subject, 2)
    names = {share.name for shown in describe(subject).predictions for share in shown.classes}
    assert names <= {"only one", *(f"class {index}" for index in range(1, 8))}
    labels = {shown.index: shown.label for shown in describe(subject).predictions}
    assert labels == {0: "only one", 1: "class 1", 2: "class 99", 3: "class 3"}
    assert all(share.teacher is None for shown in describe(subject).predictions for share in shown.classes)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (torch.tensor([0, 1, 7, 3]), "class 7"),
        (torch.tensor([[0], [1], [7], [3]]), "class 7"),
        (torch.tensor([0.0, 1.0, 7.0, 3.0]), "class 7"),
        (torch.tensor([0.25, 1.0, 7.0, 3.0]), None),
        (torch.tensor([math.nan, 1.0, 7.0, 3.0]), None),
        (torch.tensor([math.inf, 1.0, 7.0, 3.0]), None),
        (torch.eye(8)[:4], None),
    ],
    ids=["indices", "a column of indices", "whole floats", "a regression's", "NaN", "infinite", "soft"],
)
def test_labels_are_shown_where_they_are_class_indices(labels: Tensor, shown: str | None) -> None:
    """Others are the loss's alone: a report neither breaks at them nor makes classes of them."""
    subject = Subject(convert(network()), images=pictures(4, 3, 9, 9), labels=labels)
    drawn(subject, 2)
    assert {found.index: found.label for found in describe(subject).predictions}[2] == shown


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(9, 11), (200, 100)])
def test_thumbnails_are_png(channels: int, size: tuple[int, int]) -> None:
    """Pillow decodes them again; they fit the page, keep their proportions and use the full range."""
    subject = Subject(convert(network(channels)), images=pictures(2, channels, *size))
    drawn(subject, 2)
    for shown in describe(subject).predictions:
        start, _, code = shown.image.partition(",")
        assert start == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(code, validate=True)))
        picture.load()
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        height, width = (min(side * THUMBNAIL // max(size), side) for side in size)
        assert picture.size == (width, height)
        pixels = numpy.asarray(picture)
        if size == (9, 11):
            image = pictures(2, channels, *size)[shown.index].double()
            expected = ((image - image.min()) / (image.max() - image.min()) * 255).round()
            assert numpy.array_equal(pixels, expected.expand(3, -1, -1).permute(1, 2, 0).numpy().astype("uint8"))


def test_a_blank_image_is_a_picture() -> None:
    """All pixels alike have no range to stretch."""
    subject = Subject(convert(network()), images=torch.full((1, 3, 9, 9), 0.5))
    drawn(subject, 2)
    assert describe(subject).predictions[0].image.startswith("data:image/png")


@pytest.mark.parametrize("shape", [(5,), (2, 6, 6), (4, 6, 6), (1, 6), (3, 1, 6), (3, 2, 4, 4)])
def test_what_is_no_picture_has_none(shape: tuple[int, ...]) -> None:
    """Vectors, spectra and volumes are shown by their numbers alone."""
    size = int(numpy.prod(shape))
    subject = Subject(convert(nn.Sequential(nn.Flatten(), nn.Linear(size, 3))), images=pictures(2, *shape))
    drawn(subject, 2)
    shown = describe(subject).predictions
    assert [row.image for row in shown] == ["", ""]


def test_token_ids_are_no_picture() -> None:
    """A model of texts has predictions too."""
    model = convert(nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(24, 3)))
    subject = Subject(model, images=torch.randint(50, (3, 6), generator=torch.Generator().manual_seed(0)))
    drawn(subject, 2)
    record = describe(subject)
    assert [row.image for row in record.predictions] == ["", "", ""]
    assert [row.path for row in record.layers] == ["2"]


@pytest.mark.parametrize("case", ["no images", "no passes", "NaN", "one class", "a map of classes"])
def test_nothing_is_shown_where_there_is_nothing(case: str) -> None:
    """No passes, no predictive distribution: the page goes without rather than inventing one."""
    model = convert(network(classes=1 if case == "one class" else 8))
    if case == "a map of classes":
        model = convert(nn.Sequential(nn.Conv2d(3, 4, 3)))
    if case == "NaN":
        with torch.no_grad():
            bayesian_layers(model)[-1].tensors[0].mu.fill_(float("nan"))
    subject = Subject(model, images=None if case == "no images" else pictures(2, 3, 9, 9))
    if case not in ("no images", "no passes"):
        drawn(subject, 3)
    record = describe(subject)
    assert record.predictions == ()
    assert record.images == (0 if case == "no images" else 2)
    assert record.layers


def test_layer_rows() -> None:
    """Median sigma / abs(mu) is MOPED's delta; deterministic layers stand among the Bayesian ones in order."""
    model = convert(network(), moped_delta=0.25)
    model[0] = network()[0]  # type: ignore[index,operator]
    first, second = describe(Subject(model)).layers
    assert (first.path, first.kind, first.shape, first.weights, first.bayesian) == (
        "0",
        "Conv2d",
        "4x3x3x3",
        112,
        False,
    )
    assert (first.sigma_over_mu, first.kl) == (None, None)
    assert (second.path, second.shape, second.weights, second.bayesian) == ("5", "8x16", 136, True)
    assert "Linear" in second.kind
    assert "Reparameterization" in second.kind
    assert second.sigma_over_mu == pytest.approx(0.25, rel=1e-5)
    expected = 0.0
    for tensor in bayesian_layers(model)[0].tensors:
        posterior = torch.distributions.Normal(tensor.mu.detach().double(), tensor.sigma.detach().double())
        prior = torch.distributions.Normal(tensor.prior_mu.double(), tensor.prior_sigma.double())
        expected += float(torch.distributions.kl_divergence(posterior, prior).sum())
    assert second.kl == pytest.approx(expected, rel=1e-5)


def test_the_rest_of_the_record(subject: Subject) -> None:
    """Names, stage and trajectory pass through."""
    step = TrainingStep(
        step=1, loss=1.0, data_term=0.5, kl=5.0, gradient_norm=2.0, learning_rate=1e-4, top1="a", percent=9.0
    )
    record = describe(subject, [step])
    assert (record.name, record.stage, record.model, record.teacher) == (
        "wide",
        "converted",
        "Sequential",
        "Sequential",
    )
    assert record.training == (step,)
    assert record.sha256 == sha256(subject.model)


def test_sha256_is_of_the_state_and_of_nothing_else() -> None:
    """The fingerprint says which weights were judged: a copy has it too, any weight or buffer changes it."""
    model = convert(network())
    before = sha256(model)
    assert len(before) == 64
    assert sha256(copy.deepcopy(model)) == before
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert sha256(model) == before
    for name in model.state_dict():
        if "eps" in name:
            continue
        changed = copy.deepcopy(model)
        value = changed.state_dict()[name]
        value.reshape(-1)[0] += 1
        assert sha256(changed) != before, name
    assert sha256(model.double()) != before
    assert sha256(nn.Sequential(nn.Linear(2, 3))) != sha256(nn.Sequential(nn.Linear(3, 2)))


def test_sha256_outlasts_a_forward_pass() -> None:
    """The noise that a pass leaves in the layers' buffers is no part of the model."""
    model = convert(network())
    before = sha256(model)
    model(pictures(2, 3, 9, 9))
    assert sha256(model) == before


def test_bfloat16() -> None:
    """numpy has no bfloat16; the record has the numbers all the same."""
    teacher = network().to(torch.bfloat16)
    model = convert(teacher)
    subject = Subject(model, teacher=teacher, images=pictures(3, 3, 9, 9))
    drawn(subject, 3)
    record = describe(subject)
    assert len(record.sha256) == 64
    assert len(record.predictions) == 3
    for shown in record.predictions:
        assert shown.image.startswith("data:image/png")
        assert 0 <= shown.mutual_information <= shown.entropy <= numpy.log(8) + 1e-6
        assert sum(share.mean for share in shown.classes) <= 1 + 1e-2
