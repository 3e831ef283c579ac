"""Where a teacher's weights come from: embedded, torchvision's ImageNet, or a file. Loads without executing code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_bnn.audit.environment import torchvision
from pytest_bnn.data.checkpoints import read_state, some
from pytest_bnn.data.checkpoints import sha256 as digest
from pytest_bnn.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

EMBEDDED = Path(__file__).parent / "teachers" / "digits-resnet18.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Teacher:
    """A deterministic ResNet18 in eval mode, float32, with what the audit must know about it.

    ``images`` says which bundled images suit it: the digits, or crops of real photographs.
    """

    model: nn.Module
    name: str
    class_names: tuple[str, ...]
    images: Literal["digits", "photographs"]
    sha256: str


def load_teacher(source: str | Path = "digits") -> Teacher:
    """Load a ResNet18 teacher.

    Args:
        source: ``"digits"`` (embedded, ten classes, 3x32x32), ``"imagenet"`` (torchvision's
            ``ResNet18_Weights.IMAGENET1K_V1`` through its cache), or the path of a ``.safetensors`` file or a
            ``.pt``/``.pth`` state_dict.

    Raises:
        WeightsError: The file is missing, unreadable, holds code, or does not fit a ResNet18.
        BrokenEnvironmentError: torchvision does not match torch.
    """
    if source == "digits":
        return _from_state(read_state(EMBEDDED), name="digits", sha256=digest(EMBEDDED))
    if source == "imagenet":
        return _imagenet()
    path = Path(source)
    if not path.is_file():
        hint = "'digits', 'imagenet' or the path of a .safetensors, .pt or .pth file"
        raise WeightsError(f"there are no weights {str(source)!r}", fix=f"give {hint}")
    return _from_state(read_state(path), name=path.name, sha256=digest(path))


def model_card() -> dict[str, object]:
    """Return the embedded teacher's model card: accuracy, split, seed, sha256."""
    card: dict[str, object] = json.loads(EMBEDDED.with_suffix(".json").read_text(encoding="utf-8"))
    return card


def _imagenet() -> Teacher:
    import torch

    weights = torchvision().models.ResNet18_Weights.IMAGENET1K_V1
    name = weights.url.rsplit("/", 1)[1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not cached.is_file():
        try:
            # Not load_state_dict_from_url: it would also unpickle, with weights_only=False.
            cached.parent.mkdir(parents=True, exist_ok=True)
            prefix = cached.stem.rsplit("-", 1)[1]
            torch.hub.download_url_to_file(weights.url, str(cached), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"torchvision's ImageNet weights are not in its cache and cannot be downloaded ({error})",
                fix=f"put the file {name} into {cached.parent} (TORCH_HOME moves it), or use the embedded "
                "teacher: --weights digits (in pytest: --bnn-weights digits)",
            ) from error
    state = read_state(cached)
    return _from_state(state, name="imagenet", sha256=digest(cached), class_names=tuple(weights.meta["categories"]))


def _from_state(
    state: dict[str, Tensor], *, name: str, sha256: str, class_names: tuple[str, ...] | None = None
) -> Teacher:
    import torch

    from pytest_bnn.example.images import DIGIT_NAMES

    head = state.get("fc.weight")
    classes = head.shape[0] if head is not None and head.ndim == 2 else 1000
    with torch.device("meta"):
        model = torchvision().models.resnet18(num_classes=classes)
    expected = model.state_dict()
    _require_fit(state, expected, name)
    floats = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    bad = sorted(key for key, value in floats.items() if not bool(torch.isfinite(value).all()))
    if bad:
        raise WeightsError(f"the weights {name!r} hold NaN or infinity in {some(bad)}", fix="give sound weights")
    model.load_state_dict(floats, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if class_names is None:
        class_names = DIGIT_NAMES if name == "digits" else tuple(f"class {i}" for i in range(classes))
    return Teacher(
        model=model.eval(),
        name=name,
        class_names=class_names,
        images="digits" if classes == len(DIGIT_NAMES) else "photographs",
        sha256=sha256,
    )


def _require_fit(state: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    fix = "give a state_dict of torchvision's resnet18, or audit your own network with --teacher MODULE:FACTORY"
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        parts = [f"lack {some(missing)}"] if missing else []
        parts += [f"hold the unexpected {some(unexpected)}"] if unexpected else []
        raise WeightsError(f"the weights {name!r} do not fit a ResNet18: they {' and '.join(parts)}", fix=fix)
    wrong = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if state[key].shape != expected[key].shape
    ]
    wrong += [
        f"{key} is {state[key].dtype} on {state[key].device.type}"
        for key in expected
        if state[key].is_floating_point() != expected[key].is_floating_point()
        or state[key].is_complex()
        or state[key].is_meta
    ]
    if wrong:
        raise WeightsError(f"the weights {name!r} do not fit a ResNet18: {some(wrong)}", fix=fix)
