"""Where a teacher's weights come from: embedded, torchvision's ImageNet, or a file. Loads without executing code."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_bnn.audit.environment import torchvision
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
        return _from_state(_read(EMBEDDED), name="digits", sha256=_sha256(EMBEDDED))
    if source == "imagenet":
        return _imagenet()
    path = Path(source)
    if not path.is_file():
        hint = "'digits', 'imagenet' or the path of a .safetensors, .pt or .pth file"
        raise WeightsError(f"there are no weights {str(source)!r}", fix=f"give {hint}")
    return _from_state(_read(path), name=path.name, sha256=_sha256(path))


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
    state = _read(cached)
    return _from_state(state, name="imagenet", sha256=_sha256(cached), class_names=tuple(weights.meta["categories"]))


def _read(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    again = "save it again with safetensors.torch.save_file(model.state_dict(), path)"
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path} is truncated or is not a safetensors file ({error})", fix=again) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load warns of odd pickles before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything: IndexError, struct.error, ...
        # torch's own words advise to load it with weights_only=False: the one thing not to do.
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise WeightsError(
                f"{path} holds more than tensors, and loading it would execute code ({code[1]})", fix=again
            ) from error
        detail = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else _first_line(error)
        raise WeightsError(f"{path} is truncated or is not a torch checkpoint ({detail})", fix=again) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{path} holds no state_dict: a dict of names and tensors", fix=again)
    return state


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
        raise WeightsError(f"the weights {name!r} hold NaN or infinity in {_some(bad)}", fix="give sound weights")
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
        parts = [f"lack {_some(missing)}"] if missing else []
        parts += [f"hold the unexpected {_some(unexpected)}"] if unexpected else []
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
        raise WeightsError(f"the weights {name!r} do not fit a ResNet18: {_some(wrong)}", fix=fix)


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
