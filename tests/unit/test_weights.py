"""A teacher loads from each source, and every file that cannot be one gives one clear error, without running code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchmetrics.classification
import torchvision
from safetensors.torch import save_file
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from pytest_bnn.errors import WeightsError
from pytest_bnn.example import weights
from pytest_bnn.example.corruption import LARGEST_BLUR, LARGEST_NOISE, LARGEST_SHIFT
from pytest_bnn.example.images import DIGIT_NAMES, HARD_SEED, digits
from pytest_bnn.example.weights import Teacher, load_teacher, model_card

CHECKPOINT = "resnet18-f37072fd.pth"
State = dict[str, Tensor]


class Bomb:
    """Unpickling it makes a folder: the harmless stand-in for code in a checkpoint."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.marker,)


def refusal(source: str | Path) -> str:
    """Return the message of the WeightsError, after making sure that it is one line and ends with its fix."""
    with pytest.raises(WeightsError) as caught:
        load_teacher(source)
    message = str(caught.value)
    assert caught.value.fix
    assert message.lower().endswith(f"{caught.value.fix.lower()}.")
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def digits_teacher() -> Teacher:
    return load_teacher("digits")


@pytest.fixture(scope="module")
def imagenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of torchvision's format and name, with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("imagenet") / CHECKPOINT
    torch.save(torchvision.models.resnet18(num_classes=1000).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def three_classes() -> State:
    torch.manual_seed(1)
    state: State = torchvision.models.resnet18(num_classes=3).state_dict()
    return state


@pytest.fixture
def hollow() -> State:
    """A complete state_dict that takes no room in a file: every tensor is one number, expanded."""
    with torch.device("meta"):
        shapes = torchvision.models.resnet18(num_classes=3).state_dict()
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in shapes.items()}


def saved(state: object, path: Path, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


def test_digits_teacher_reads_held_out_digits_as_its_card_says(digits_teacher: Teacher) -> None:
    """The card's accuracy is a promise to users; torchmetrics counts independently."""
    images, labels = digits("held_out")
    accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=10, average="micro")
    with torch.no_grad():
        share = float(accuracy(digits_teacher.model(images), labels))
    assert share >= 0.975
    assert share == pytest.approx(model_card()["held_out_accuracy"], abs=1e-6)
    assert model_card()["held_out_images"] == len(labels)


def test_digits_teacher_is_as_sure_of_hard_digits_as_its_card_says(digits_teacher: Teacher) -> None:
    """What claims about calibration are shown on: labels follow softmax(log p / t) with t near 1, by scipy's search."""
    images, labels = digits("hard")
    with torch.no_grad():
        logits = digits_teacher.model(images).double()
    confidence, classes = logits.softmax(1).max(1)
    card = model_card()
    assert float((classes == labels).double().mean()) == pytest.approx(card["hard_accuracy"], abs=1e-6)
    assert float(confidence.mean()) == pytest.approx(card["hard_confidence"], abs=1e-4)
    assert card["hard_images"] == len(labels)

    def loss(log_t: float) -> float:
        return float(nn.functional.cross_entropy(logits / math.exp(log_t), labels))

    assert 0.9 < math.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x) < 1.1
    corruption = card["corruption"]
    assert isinstance(corruption, dict)
    assert (corruption["seed"], corruption["largest_noise"]) == (HARD_SEED, LARGEST_NOISE)
    assert (corruption["largest_blur"], corruption["largest_shift_pixels"]) == (LARGEST_BLUR, LARGEST_SHIFT)


def test_digits_file_is_the_one_on_its_card(digits_teacher: Teacher) -> None:
    """A changed file with an unchanged card would make every provenance in a report a lie."""
    digest = hashlib.sha256(weights.EMBEDDED.read_bytes()).hexdigest()
    assert model_card()["sha256"] == digest == digits_teacher.sha256


def test_digits_teacher_is_ready_for_conversion(digits_teacher: Teacher) -> None:
    """Eval mode, float32, trainable, on the CPU: what the conversion and the audit start from."""
    model = digits_teacher.model
    assert not any(module.training for module in model.modules())
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        assert tensor.device.type == "cpu", name
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert digits_teacher.class_names == DIGIT_NAMES
    assert (digits_teacher.name, digits_teacher.images) == ("digits", "digits")


def test_digits_teacher_has_no_weight_that_moped_would_kill(digits_teacher: Teacher) -> None:
    """MOPED gives a weight of exactly 0 a sigma of 1e-20 and no gradient ever after (FAULTS A6)."""
    for name, module in digits_teacher.model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            for role, tensor in module.named_parameters(recurse=False):
                assert float(tensor.detach().abs().min()) > 0, f"{name}.{role}"


def test_each_call_gives_a_teacher_of_its_own(digits_teacher: Teacher) -> None:
    """Someone who trains a loaded teacher must not change the next one."""
    again = load_teacher("digits")
    for one, other in zip(digits_teacher.model.parameters(), again.model.parameters(), strict=True):
        assert one.data_ptr() != other.data_ptr()
        assert torch.equal(one, other)


def test_imagenet_equals_what_torchvision_itself_loads_from_the_cache(
    imagenet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is torchvision's own ``resnet18(weights=...)`` on the same cached file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(imagenet_file, folder)
    chosen = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    expected = torchvision.models.resnet18(weights=chosen).eval()
    teacher = load_teacher("imagenet")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(teacher.model(images), expected(images))
    assert teacher.class_names == tuple(chosen.meta["categories"])
    assert len(teacher.class_names) == 1000
    assert (teacher.name, teacher.images) == ("imagenet", "photographs")
    assert teacher.sha256 == hashlib.sha256(imagenet_file.read_bytes()).hexdigest()
    assert not teacher.model.training


def test_imagenet_is_downloaded_into_the_cache_with_its_hash(
    imagenet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash in torchvision's file name is checked on the way, and the second call needs no network."""
    asked = []

    def download(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        asked.append((url.rsplit("/", 1)[1], hash_prefix))
        shutil.copy(imagenet_file, dst)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    load_teacher("imagenet")
    load_teacher("imagenet")
    assert asked == [(CHECKPOINT, "f37072fd")]
    assert (tmp_path / "hub" / "checkpoints" / CHECKPOINT).is_file()


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("invalid hash value")])
def test_imagenet_without_network_and_cache_says_where_the_file_belongs(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a CI without network the reader needs the file's name, its folder, and the embedded way out."""

    def download(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    message = refusal("imagenet")
    assert CHECKPOINT in message
    assert str(tmp_path / "hub" / "checkpoints") in message
    assert "digits" in message
    assert str(error) in message


def test_a_downloaded_file_runs_no_code_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight hexadecimal digits in a file name are no reason to trust what a mirror sent."""
    marker = tmp_path / "ran"

    def download(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        saved({"conv1.weight": Bomb(marker)}, Path(dst))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    refusal("imagenet")
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_file_of_the_users_own_loads(suffix: str, three_classes: State, tmp_path: Path) -> None:
    """The three formats give the same network, with the classes that its head has."""
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(three_classes, path)
    else:
        torch.save(three_classes, path)
    teacher = load_teacher(str(path))
    loaded = teacher.model.state_dict()
    assert loaded.keys() == three_classes.keys()
    assert all(torch.equal(loaded[key], value) for key, value in three_classes.items())
    assert teacher.name == path.name
    assert teacher.class_names == ("class 0", "class 1", "class 2")
    assert teacher.images == "photographs"
    assert teacher.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not teacher.model.training
    with torch.no_grad():
        assert teacher.model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_half_precision_weights_become_float32(three_classes: State, tmp_path: Path) -> None:
    """Halves are a storage format here: under them sigma is 0 (FAULTS A8)."""
    halves = {key: value.half() if value.is_floating_point() else value for key, value in three_classes.items()}
    model = load_teacher(saved(halves, tmp_path / "half.pt")).model
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(model.state_dict()["fc.weight"], halves["fc.weight"].float())


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_code_in_a_checkpoint_does_not_run(form: str, tmp_path: Path) -> None:
    """A checkpoint from the internet must not own the CI machine that audits it."""
    armed, marker, path = tmp_path / "armed", tmp_path / "ran", tmp_path / "evil.pt"
    pickle.loads(pickle.dumps(Bomb(armed)))
    assert armed.exists(), "the bomb does not work, so this test could not fail"
    content = {"conv1.weight": Bomb(marker)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        saved(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refusal(path)
    assert not marker.exists()
    assert "evil.pt" in message


def test_code_in_a_checkpoint_is_named_without_advice_to_run_it(tmp_path: Path) -> None:
    """torch's own words tell the reader to retry with ``weights_only=False``: the one thing not to do."""
    message = refusal(saved({"conv1.weight": Bomb(tmp_path / "ran")}, tmp_path / "evil.pt"))
    assert "execute code" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_every_truncation_of_a_file_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    """A download breaks off at any byte; every prefix, the empty file included, is tried."""
    whole, cut = tmp_path / "whole", tmp_path / f"cut{'.safetensors' if kind == 'safetensors' else '.pt'}"
    state = {"fc.bias": torch.zeros(2)}
    if kind == "safetensors":
        save_file(state, whole)
    else:
        saved(state, whole, _use_new_zipfile_serialization=kind == "zip")
    data = whole.read_bytes()
    wrong = {}
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        try:
            message = refusal(cut)
        except Exception as error:
            wrong[length] = f"{type(error).__name__}: {error}"
        else:
            assert cut.name in message
    assert not wrong, f"{len(wrong)} of {len(data)} prefixes escape, such as {dict(list(wrong.items())[:4])}"


@pytest.mark.parametrize(
    "content",
    [
        b'{"accuracy": 0.99}',
        b"<!DOCTYPE html><html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        bytes(range(256)) * 4,
        b"PK",
    ],
    ids=["json", "html", "git-lfs pointer", "noise", "two bytes"],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_no_checkpoint_is_not_accused_of_code(content: bytes, suffix: str, tmp_path: Path) -> None:
    """A git-lfs pointer or an error page is no attack; a wrong accusation sends the reader the wrong way."""
    path = tmp_path / f"odd{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    assert "truncated" in message
    assert "execute code" not in message


def test_missing_and_unexpected_names_are_both_listed(hollow: State, tmp_path: Path) -> None:
    """The typical case is a checkpoint of another architecture, or one saved from a wrapper."""
    del hollow["layer1.0.conv1.weight"]
    hollow["layer9.extra"] = torch.zeros(1)
    message = refusal(saved(hollow, tmp_path / "other.pt"))
    assert "layer1.0.conv1.weight" in message
    assert "layer9.extra" in message
    assert "other.pt" in message


def test_a_wrapped_state_dict_shows_a_few_names_and_a_count(hollow: State, tmp_path: Path) -> None:
    """DataParallel's prefix makes all 122 names wrong; the message stays readable."""
    wrapped = {f"module.{key}": value for key, value in hollow.items()}
    message = refusal(saved(wrapped, tmp_path / "parallel.pt"))
    assert f"{len(hollow) - 4} more" in message
    assert "module." in message


def test_a_wrong_shape_is_named_with_both_shapes(hollow: State, tmp_path: Path) -> None:
    """A ResNet18 for small images has a 3x3 first convolution."""
    hollow["conv1.weight"] = torch.zeros(()).expand(64, 3, 3, 3)
    message = refusal(saved(hollow, tmp_path / "small.pt"))
    assert "conv1.weight is (64, 3, 3, 3) instead of (64, 3, 7, 7)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, hollow: State, tmp_path: Path) -> None:
    """A diverged training run saves without complaint."""
    hollow["layer3.1.bn2.running_var"] = torch.full((256,), value)
    message = refusal(saved(hollow, tmp_path / "diverged.pt"))
    assert "layer3.1.bn2.running_var" in message
    assert "NaN" in message


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_weights_of_a_kind_that_is_no_real_number_are_named(dtype: torch.dtype, hollow: State, tmp_path: Path) -> None:
    """Quantized exports hold integers; the teacher is promised in float32."""
    hollow["conv1.weight"] = torch.zeros((), dtype=dtype).expand(64, 3, 7, 7)
    assert "conv1.weight" in refusal(saved(hollow, tmp_path / "integers.pt"))


def test_weights_without_data_are_named(hollow: State, tmp_path: Path) -> None:
    """A state_dict of a model that was built on the meta device has shapes and nothing else."""
    hollow["conv1.weight"] = torch.empty(64, 3, 7, 7, device="meta")
    assert "conv1.weight" in refusal(saved(hollow, tmp_path / "meta.pt"))


@pytest.mark.parametrize(
    "content", [[1, 2], {"state_dict": {"fc.bias": torch.zeros(2)}}, torch.zeros(2), {0: torch.zeros(2)}]
)
def test_a_checkpoint_that_is_no_state_dict_is_told_what_one_is(content: object, tmp_path: Path) -> None:
    """Trainers wrap the state_dict in a dict of their own; keys can be anything."""
    assert "state_dict" in refusal(saved(content, tmp_path / "trainer.pt"))


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors", "folder", "folder.pt", "imagenet1k", ""])
def test_a_path_that_is_no_file_lists_what_can_be_given(name: str, tmp_path: Path) -> None:
    """A typo in 'imagenet' must not look like a missing file only."""
    for folder in ("folder", "folder.pt"):
        (tmp_path / folder).mkdir()
    source = str(tmp_path / name) if "folder" in name or "missing" in name else name
    message = refusal(source)
    assert repr(source) in message
    for hint in ("digits", "imagenet", ".safetensors", ".pth"):
        assert hint in message


def test_model_card_is_plain_json() -> None:
    """The report copies the card; a reader outside Python reads it too."""
    card = model_card()
    assert json.loads(json.dumps(card)) == card
    assert card["split"] == {"held_out": 0.2, "seed": 0, "stratified": True}
