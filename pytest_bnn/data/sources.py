"""The user's own model, data and loss: named on a command line as ``MODULE:NAME``, or handed over in Python."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from pytest_bnn.errors import InputError
from pytest_bnn.network.isolation import preserved_random_state
from pytest_bnn.training.finetune import Loss

#: How many images of a larger data set an audit takes.
MAX_IMAGES = 512

#: Characters of another's error in a message.
_LONGEST = 600


def load(name: str, option: str) -> Any:
    """Import ``MODULE:NAME`` and give the object; the module is executed, with the current folder importable.

    Raises:
        InputError: The text has another form, the module or the name is missing, or importing it raises.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute) or "/" in module_name or module_name.endswith(".py"):
        hint = module_name.removesuffix(".py").replace("/", ".").strip(".") or "my_models"
        raise InputError(
            f"{option} is {name!r}, not MODULE:NAME",
            fix=f"write it like {hint}:{attribute or 'make_model'}, a module on the Python path or in this folder",
        )
    folder = os.getcwd()  # noqa: PTH109  sys.path holds texts
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise InputError(
                f"{option}: there is no module {error.name!r} in this folder or on the Python path",
                fix="run from the folder that holds it, or install it",
            ) from error
        raise _raised(f"{option}: importing {module_name!r}", error) from error
    except (Exception, SystemExit) as error:
        raise _raised(f"{option}: importing {module_name!r}", error) from error
    try:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        names = [n for n in vars(module) if not n.startswith("_")]
        near = difflib.get_close_matches(attribute, names, n=3) or names[:5]
        raise InputError(
            f"{option}: the module {module_name!r} has no {attribute!r}", fix=f"it has {', '.join(near) or 'no names'}"
        ) from None
    return found


def load_model(name: str, option: str) -> nn.Module:
    """Call ``MODULE:FACTORY`` without arguments and give the network that it returns.

    Raises:
        InputError: As in `load`; the factory raises, or returns no module.
    """
    factory = load(name, option)
    if isinstance(factory, nn.Module):
        return factory
    model = _call(factory, name, option)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{option}: {name} returned {_kind(model)}, not a torch.nn.Module", fix="return the network itself"
        )
    return model


def load_data(name: str, option: str, limit: int = MAX_IMAGES) -> tuple[Tensor, Tensor | None]:
    """Call ``MODULE:FACTORY`` without arguments and give images and labels, at most ``limit``.

    Raises:
        InputError: As in `load` and `batch_of`.
    """
    factory = load(name, option)
    data = _call(factory, name, option) if callable(factory) and not _is_data(factory) else factory
    return batch_of(data, f"{option}: {name}", limit)


def load_loss(name: str, option: str) -> Loss:
    """Give the function ``MODULE:FUNCTION``.

    Raises:
        InputError: As in `load`, or it cannot be called.
    """
    loss = load(name, option)
    if not callable(loss):
        raise InputError(f"{option}: {name} is {_kind(loss)}", fix="name a function loss(model, batch)")
    return cast(Loss, loss)


def batch_of(data: Any, source: str = "data", limit: int = MAX_IMAGES) -> tuple[Tensor, Tensor | None]:
    """Give images ``[N, ...]`` and labels ``[N, ...]`` or None from what users hold.

    Args:
        data: A tensor of images, ``(images, labels)``, a Dataset of ``(image, label)`` or images, or a DataLoader
            of such batches.
        source: How messages call it.
        limit: The most images to take, from the start.

    Raises:
        InputError: It is none of these, or is empty; NaN is found by `Subject`.
    """
    if isinstance(data, Tensor):
        return _first(data, limit), None
    if isinstance(data, tuple | list) and data and isinstance(data[0], Tensor) and len(data) <= 2:
        try:
            labels = None if len(data) == 1 or data[1] is None else _labels(data[1])
        except TypeError as error:
            raise InputError(f"{source}: {error}", fix="give one label for each image, as a tensor") from error
        return _first(data[0], limit), None if labels is None else _first(labels, limit)
    with preserved_random_state():
        try:
            batches = list(_batches(data, limit))
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
            raise InputError(
                f"{source} gave {_kind(data)} from which no batch can be made ({error})",
                fix="give (images, labels) as tensors, a Dataset of (image tensor, label), or a DataLoader",
            ) from error
    if not batches:
        raise InputError(f"{source} is empty", fix="give at least one image")
    given = f"{source} gave {_kind(data)} with"
    images = _joined(
        [images for images, _ in batches],
        f"{given} images of different sizes",
        fix="add a transform that makes them equal",
    )
    if any(labels is None for _, labels in batches):
        return images[:limit], None
    labels = _joined(
        [cast(Tensor, labels) for _, labels in batches],
        f"{given} labels of different shapes",
        fix="give every image a label of one shape, or none",
    )
    return images[:limit], labels[:limit]


def _joined(parts: list[Tensor], otherwise: str, *, fix: str) -> Tensor:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise InputError(f"{otherwise}: {' and '.join(map(str, sorted(shapes)[:3]))}", fix=fix)
    return torch.cat(parts)


def _first(tensor: Tensor, limit: int) -> Tensor:
    return tensor[:limit] if tensor.ndim else tensor  # one of no dimension is refused by `Subject`


def _labels(labels: Any) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        of = next(iter(labels), None) if isinstance(labels, tuple | list) else None
        raise TypeError(
            f"{_kind(labels)}{f' of {type(of).__name__}' if of is not None else ''} given as labels is no tensor"
        ) from error


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor | tuple | list | torch.utils.data.Dataset | torch.utils.data.DataLoader)


def _batches(data: Any, limit: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    if isinstance(data, torch.utils.data.DataLoader):
        taken = 0
        for batch in data:
            images, labels = _pair(batch)
            yield images, labels
            taken += len(images)
            if taken >= limit:
                return
        return
    if not isinstance(data, torch.utils.data.Dataset):
        raise TypeError("it is no tensor, Dataset or DataLoader")
    length = len(data) if hasattr(data, "__len__") else None
    items = (data[i] for i in range(min(limit, length))) if length is not None else islice(iter(cast(Any, data)), limit)
    for item in items:
        image, label = _pair(item)
        yield image[None], None if label is None else label.reshape(1) if label.numel() == 1 else label[None]


def _pair(item: Any) -> tuple[Tensor, Tensor | None]:
    image, label = (item[0], item[1]) if isinstance(item, tuple | list) and len(item) >= 2 else (item, None)
    if isinstance(image, tuple | list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, Tensor):
        raise TypeError(f"an image is {_kind(image)}; add a transform that makes tensors")
    return image, None if label is None else _labels(label)


def _call(factory: Any, name: str, option: str) -> Any:
    if not callable(factory):
        raise InputError(f"{option}: {name} is {_kind(factory)}", fix="name a function without arguments")
    if missing := _unfilled(factory):
        raise InputError(
            f"{option}: {name} needs the argument{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            fix=f"name a function without arguments, such as def make(): return {name.rpartition(':')[2]}(...)",
        )
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise _raised(f"{option}: {name}()", error) from error


def _raised(what: str, error: BaseException) -> InputError:
    message = f"{what} raised {type(error).__name__}: {_gist(str(error))}"
    if isinstance(error, SystemExit):
        fix = "put what runs as a script under if __name__ == '__main__'"
    elif isinstance(error, RuntimeError | AssertionError) and _NO_ACCELERATOR.search(str(error)):
        fix = "there is no such accelerator here: build the network on the CPU and load weights with map_location='cpu'"
    else:
        fix = "make it work in Python first; -v shows the traceback"
    return InputError(message, fix=fix)


def _gist(text: str) -> str:
    """Give an error's first line; of one that ends in a colon, such as load_state_dict's, what it announces too."""
    lines = [line.strip().rstrip(".") for line in text.strip().splitlines() if line.strip()] or [""]
    if not lines[0].endswith(":"):
        return lines[0]
    told = f"{lines[0]} {'; '.join(lines[1:])}"
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST].rpartition(' ')[0]} ..."


#: What torch says where there is no accelerator of the kind that was asked for.
_NO_ACCELERATOR = re.compile(
    r"no NVIDIA driver|not compiled with \w+ enabled|No \w+ GPUs are available|on a \w+ device but|"
    r"CUDA driver|CUDA error|not linked with support for \w+ devices|MPS backend|No HIP GPUs|XPU device"
)


def _unfilled(factory: Any) -> list[str]:
    """Give the arguments without which a factory cannot be called; none where its signature is not known."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in optional]


def _kind(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[:1] in "AEIOUaeiou" else f"a {name}"
