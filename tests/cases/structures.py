"""Inputs and outputs that are not one tensor, as people have them."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.cases.case import Input, case
from tests.cases.networks import bare, noise, seeded, with_kl


def _classes(count: int, classes: int = 3) -> Tensor:
    return torch.arange(count) % classes


class Twins(nn.Module):
    """How far two images are apart, by one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        a, b = (self.body(images).relu().mean((2, 3)) for images in (one, other))
        out: Tensor = self.head((a - b).abs())
        return out


class Triplets(Twins):
    def forward(self, anchor: Tensor, near: Tensor, far: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(anchor, far) - super().forward(anchor, near)


class ImageAndRecord(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.record, self.head = nn.Conv2d(1, 4, 3), nn.Embedding(5, 4), nn.Linear(8, 3)

    def forward(self, image: Tensor, record: Tensor) -> Tensor:
        seen = self.image(image).relu().mean((2, 3))
        out: Tensor = self.head(torch.cat([seen, self.record(record)], 1))
        return out


@case("pairs of inputs", push=True)
def pairs_of_images_by_a_loader() -> Input:
    def data() -> Any:
        images = noise(2, 32, 1, 8, 8)
        pairs = [((images[0, row], images[1, row]), torch.tensor(row / 32)) for row in range(32)]
        return DataLoader(pairs, batch_size=8)  # type: ignore[arg-type]

    model = bare(seeded(Twins), type="Flipout").eval()
    # The library's Flipout convolutions have one sign for all positions: a warning that is right.
    return Input(model=model, data=data)


@case("pairs of inputs")
def three_images_of_a_triplet() -> Input:
    def data() -> Any:
        images = noise(3, 32, 1, 8, 8)
        return DataLoader([(tuple(images[:, row]), torch.tensor(1.0)) for row in range(32)], batch_size=8)  # type: ignore[arg-type]

    return Input(model=bare(seeded(Triplets)).eval(), teacher=seeded(Triplets).eval(), data=data)


@case("pairs of inputs")
def image_and_record() -> Input:
    def data() -> Any:
        return (noise(32, 1, 8, 8), torch.arange(32) % 5), _classes(32)

    loss = with_kl(lambda model, batch: functional.cross_entropy(model(*batch[0]), batch[1]))
    teacher = seeded(ImageAndRecord).eval()
    return Input(model=bare(teacher), teacher=teacher, data=data, loss=loss)


def _image_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def _items(image: str, label: str) -> list[dict[str, Tensor]]:
    images = noise(32, 1, 8, 8)
    return [{image: images[row], label: torch.tensor(row % 3)} for row in range(32)]


def _by_names(image: str, label: str) -> Input:
    loss = with_kl(lambda model, batch: functional.cross_entropy(model(batch[image]), batch[label]))
    model = bare(seeded(_image_network)).eval()
    return Input(model=model, data=lambda: DataLoader(_items(image, label), batch_size=8), loss=loss)  # type: ignore[arg-type]


@case("dictionaries of one input and its label", push=True)
def items_of_img_and_label() -> Input:
    return _by_names("img", "label")


@case("dictionaries of one input and its label")
def items_of_image_and_target() -> Input:
    return _by_names("image", "target")


@case("dictionaries of one input and its label")
def items_of_pixel_values_and_labels() -> Input:
    return _by_names("pixel_values", "labels")


class Sample(NamedTuple):
    image: Tensor
    label: Tensor


@case("dictionaries of one input and its label")
def items_that_are_named_tuples() -> Input:
    def data() -> Any:
        items = [Sample(image, torch.tensor(row % 3)) for row, image in enumerate(noise(32, 1, 8, 8))]
        return DataLoader(items, batch_size=8)  # type: ignore[arg-type]

    loss = with_kl(lambda model, batch: functional.cross_entropy(model(batch.image), batch.label))
    return Input(model=bare(seeded(_image_network)).eval(), data=data, loss=loss)


class Operator(nn.Module):
    """A function of two inputs, by two networks whose outputs are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = nn.Linear(3, 16), nn.Linear(2, 16)

    def forward(self, branch: Tensor, trunk: Tensor) -> Tensor:
        out: Tensor = (self.branch(branch) * self.trunk(trunk)).sum(1, keepdim=True)
        return out


class ThreeInputs(Operator):
    def forward(self, branch: Tensor, trunk: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(branch, trunk) * scale


@case("several inputs side by side", push=True)
def two_inputs_and_a_target() -> Input:
    loss = with_kl(lambda model, batch: functional.mse_loss(model(*batch[:2]), batch[2]))
    teacher = seeded(Operator).eval()
    data = lambda: (noise(64, 3), noise(64, 2, seed=1), noise(64, 1, seed=2))  # noqa: E731
    return Input(model=bare(teacher), teacher=teacher, data=data, loss=loss)


@case("several inputs side by side")
def two_inputs_and_no_target() -> Input:
    teacher = seeded(Operator).eval()
    return Input(model=bare(teacher), teacher=teacher, data=lambda: (noise(64, 3), noise(64, 2, seed=1)))


@case("several inputs side by side")
def three_inputs_and_a_target() -> Input:
    loss = with_kl(lambda model, batch: functional.mse_loss(model(*batch[:3]), batch[3]))
    teacher = seeded(ThreeInputs).eval()
    data = lambda: (noise(64, 3), noise(64, 2, seed=1), 1 + torch.rand(64, 1), noise(64, 1, seed=2))  # noqa: E731
    return Input(model=bare(teacher), teacher=teacher, data=data, loss=loss)


class Segmenter(nn.Module):
    """A class for each pixel, in a dictionary as torchvision's networks give it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 4, 2, 1)

    def forward(self, images: Tensor) -> Any:
        return {"out": self.up(self.down(images).relu())}


class SegmenterWithHelper(Segmenter):
    def __init__(self) -> None:
        super().__init__()
        self.helper = nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> Any:
        small = self.down(images).relu()
        return {"out": self.up(small), "aux": functional.interpolate(self.helper(small), scale_factor=2)}


class Depth(Segmenter):
    def forward(self, images: Tensor) -> Any:
        return self.up(self.down(images).relu())[:, 0]


def _pixels(kind: type[nn.Module], loss: Any, masks: Tensor) -> Input:
    teacher = seeded(kind).eval()
    return Input(model=bare(teacher), teacher=teacher, data=lambda: (noise(16, 3, 16, 16), masks), loss=loss)


@case("an output for each pixel", push=True)
def class_of_each_pixel_in_a_dictionary() -> Input:
    loss = with_kl(lambda model, batch: functional.cross_entropy(model(batch[0])["out"], batch[1]))
    return _pixels(Segmenter, loss, _classes(16 * 16 * 16, 4).reshape(16, 16, 16))


@case("an output for each pixel")
def class_of_each_pixel_with_a_second_head() -> Input:
    def term(model: Any, batch: Any) -> Tensor:
        found = model(batch[0])
        main, helper = (functional.cross_entropy(found[name], batch[1]) for name in ("out", "aux"))
        return main + 0.4 * helper

    return _pixels(SegmenterWithHelper, with_kl(term), _classes(16 * 16 * 16, 4).reshape(16, 16, 16))


@case("an output for each pixel")
def number_of_each_pixel() -> Input:
    loss = with_kl(lambda model, batch: functional.mse_loss(model(batch[0]), batch[1]))
    return _pixels(Depth, loss, noise(16, 16, 16, seed=4))


class Heteroscedastic(nn.Module):
    """A mean and the logarithm of a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.spread = nn.Linear(6, 32), nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).relu()
        return self.mean(hidden), self.spread(hidden)


class InNames(Heteroscedastic):
    def forward(self, x: Tensor) -> Any:
        mean, spread = super().forward(x)
        return {"prediction": mean, "log_variance": spread}


def _without_spread(kind: type[nn.Module]) -> Input:
    """The second head was made anew after the conversion, and is random."""
    teacher = seeded(kind).eval()
    model = bare(teacher, moped_delta=0.1)
    other = bare(seeded(lambda: nn.Sequential(nn.Linear(32, 1)), 9), moped_delta=0.1)
    model.add_module("spread", other[0])
    return Input(model=model, teacher=teacher, data=lambda: (noise(64, 6), noise(64, 1, seed=1)))


LOST = {"mean.equals_teacher": "fail", "teacher.agreement": "pass or fail or not_applicable"}


@case("a second output is lost", verdicts=LOST, says={"mean.equals_teacher": "spread"}, push=True)
def variance_head_made_anew() -> Input:
    return _without_spread(Heteroscedastic)


@case("a second output is lost", verdicts=LOST, says={"mean.equals_teacher": "spread"})
def variance_head_made_anew_in_a_dictionary() -> Input:
    return _without_spread(InNames)


@case("a second output is lost")
def nothing_lost_beside_a_variance() -> Input:
    teacher = seeded(Heteroscedastic).eval()
    data = lambda: (noise(64, 6), noise(64, 1, seed=1))  # noqa: E731
    return Input(model=bare(teacher), teacher=teacher, data=data)


class FeaturesFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        return features, self.head(features)


@case(
    "features before the prediction",
    verdicts={"mean.equals_teacher": "fail", "teacher.agreement": "fail or not_applicable"},
    says={"mean.equals_teacher": "head"},
    push=True,
)
def head_says_the_opposite() -> Input:
    teacher = seeded(FeaturesFirst).eval()
    model = bare(teacher, moped_delta=0.1)
    with torch.no_grad():
        model.get_parameter("head.mu_weight").neg_()
        model.get_parameter("head.mu_bias").neg_()
    return Input(model=model, teacher=teacher, data=lambda: (3 * noise(64, 6), _classes(64)))


@case("features before the prediction")
def head_as_the_teachers() -> Input:
    teacher = seeded(FeaturesFirst).eval()
    return Input(model=bare(teacher), teacher=teacher, data=lambda: (3 * noise(64, 6), _classes(64)))


@case("arrays of numpy", push=True)
def digits_straight_from_scikit_learn() -> Input:
    def data() -> Any:
        from sklearn.datasets import load_digits

        return load_digits(return_X_y=True)

    return Input(model=bare(seeded(lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))), data=data)


@case("arrays of numpy")
def inputs_alone_and_no_labels() -> Input:
    teacher = seeded(lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)))
    return Input(model=bare(teacher), teacher=teacher, data=lambda: noise(64, 6).double().numpy())


@case("arrays of numpy")
def arrays_in_a_dictionary() -> Input:
    def data() -> Mapping[str, Any]:
        return {"image": noise(64, 6).numpy(), "label": _classes(64).numpy()}

    return Input(model=bare(seeded(lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)))), data=data)


class Reading(nn.Module):
    """Tokens and a mask by keyword, as transformers take them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None) -> Tensor:
        assert input_ids is not None
        assert attention_mask is not None
        mixed = self.mix(self.embed(input_ids)).relu() * attention_mask[..., None]
        out: Tensor = self.head(mixed.sum(1) / attention_mask.sum(1, keepdim=True))
        return out


def _tokens() -> dict[str, Tensor]:
    ids = torch.arange(64 * 12).reshape(64, 12) * 7 % 50
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": _classes(64, 2)}


def _reading_loss() -> Any:
    def term(model: Any, batch: Any) -> Tensor:
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return functional.cross_entropy(scores, batch["labels"])

    return with_kl(term)


@case("inputs by keyword", push=True)
def tokens_and_mask_by_keyword() -> Input:
    return Input(model=bare(seeded(Reading)), data=_tokens, loss=_reading_loss())


@case("inputs by keyword")
def tokens_in_a_dictionary_of_its_own_class() -> Input:
    """Batches of encodings are no dict, and behave like one."""
    return Input(model=bare(seeded(Reading)), data=lambda: UserDict(_tokens()), loss=_reading_loss())


@case("inputs by keyword")
def tokens_by_a_loader_with_a_teacher() -> Input:
    def data() -> Any:
        tokens = _tokens()
        items = [{name: values[row] for name, values in tokens.items()} for row in range(64)]
        return DataLoader(items, batch_size=16)  # type: ignore[arg-type]

    return Input(model=bare(seeded(Reading)), teacher=seeded(Reading), data=data, loss=_reading_loss())


def _survival(model: Any, batch: Any) -> Tensor:
    """Cox's partial likelihood."""
    x, time, event = batch
    risk = model(x)[:, 0]
    at_risk = (time[None] >= time[:, None]).float()
    value: Tensor = -((risk - (at_risk * risk.exp()).sum(1).log()) * event).mean()
    return value


def _small() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 1))


@case("more than a label", push=True)
def time_and_event() -> Input:
    times = noise(64, seed=1).exp()
    events = (noise(64, seed=2) < 0.3).float()
    data = lambda: TensorDataset(noise(64, 20), times, events)  # noqa: E731
    return Input(model=bare(seeded(_small)), data=data, loss=with_kl(_survival, 1.0))


@case("more than a label")
def target_and_weight() -> Input:
    def term(model: Any, batch: Any) -> Tensor:
        x, target, weight = batch
        value: Tensor = (weight * (model(x)[:, 0] - target) ** 2).mean()
        return value

    data = lambda: TensorDataset(noise(64, 20), noise(64, seed=1), noise(64, seed=2).exp())  # noqa: E731
    return Input(model=bare(seeded(_small)), data=data, loss=with_kl(term))


class Numbered(Dataset[Any]):
    """Items with their number, as active learning needs them."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return noise(20, seed=index), torch.tensor(float(index % 2)), index


@case("more than a label")
def target_and_number_of_the_item() -> Input:
    loss = with_kl(lambda model, batch: functional.mse_loss(model(batch[0])[:, 0], batch[1]))
    return Input(model=bare(seeded(_small)), data=lambda: DataLoader(Numbered(), batch_size=16), loss=loss)
