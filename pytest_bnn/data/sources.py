"""The user's own model, data and loss: named on a command line as ``MODULE:NAME``, or handed over in Python."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pytest_bnn.data.factory import Factory
from pytest_bnn.data.loss import Loss
from pytest_bnn.data.samples import MAX_EXAMPLES, Samples, samples_of
from pytest_bnn.errors import InputError
from pytest_bnn.network.tree import kind

#: Characters of another's error in a message.
_LONGEST = 600


def load(name: str, option: str) -> Any:
    """Import ``MODULE:NAME`` and return the object; the module is executed, with the current folder importable.

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
        # Its own names first, then what it imports.
        own = {n: getattr(value, "__module__", None) == module_name for n, value in vars(module).items()}
        names = sorted((n for n in own if not n.startswith("_")), key=lambda n: not own[n])
        near = difflib.get_close_matches(attribute, names, n=3) or names[:5]
        raise InputError(
            f"{option}: the module {module_name!r} has no {attribute!r}", fix=f"it has {', '.join(near) or 'no names'}"
        ) from None
    return found


def load_model(name: str, option: str) -> nn.Module:
    """Call ``MODULE:FACTORY`` without arguments and return its network.

    Raises:
        InputError: As in `load`; the factory raises, or returns no module.
    """
    return load_model_and_factory(name, option)[0]


def load_model_and_factory(name: str, option: str) -> tuple[nn.Module, Factory | None]:
    """Return `load_model` and the factory that made it, which knows how long that took; None for a network by its name.

    Raises:
        InputError: As in `load_model`.
    """
    found = load(name, option)
    if isinstance(found, nn.Module):
        return found, None
    _require_factory(found, name, option)
    factory = Factory(found)
    model = _call(factory, name, option)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{option}: {name} returned {kind(model)}, not a torch.nn.Module", fix="return the network itself"
        )
    return model, factory


def load_data(name: str, option: str, limit: int = MAX_EXAMPLES, *, seed: int = 0, dim: int = 0) -> Samples:
    """Call ``MODULE:FACTORY`` without arguments and return its examples, at most ``limit``.

    Raises:
        InputError: As in `load` and `samples_of`.
    """
    return samples_of(load_named(name, option), f"{option}: {name}", limit, seed=seed, dim=dim)


def load_named(name: str, option: str) -> Any:
    """Call ``MODULE:FACTORY`` without arguments and give what it returns, or the data of that name.

    Raises:
        InputError: As in `load`.
    """
    found = load(name, option)
    if not callable(found) or _is_data(found):
        return found
    _require_factory(found, name, option)
    made = _call(found, name, option)
    if made is None:
        raise InputError(f"{option}: {name} gave None", fix="let it return images, or (images, labels)")
    return made


def load_loss(name: str, option: str) -> Loss:
    """Return the function ``MODULE:FUNCTION``.

    Raises:
        InputError: As in `load`, or it cannot be called.
    """
    loss = load(name, option)
    if not callable(loss):
        raise InputError(f"{option}: {name} is {kind(loss)}", fix="name a function loss(model, batch)")
    return cast(Loss, loss)


def load_function(name: str, option: str) -> Callable[[int], object]:
    """Return the function ``MODULE:FUNCTION`` of an example's number.

    Raises:
        InputError: As in `load`, or it cannot be called.
    """
    function = load(name, option)
    if not callable(function):
        raise InputError(f"{option}: {name} is {kind(function)}", fix="name a function of an example's number")
    return cast(Callable[[int], object], function)


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor | numpy.ndarray | Mapping | tuple | list | Dataset | DataLoader)


def _require_factory(factory: Any, name: str, option: str) -> None:
    if not callable(factory):
        raise InputError(f"{option}: {name} is {kind(factory)}", fix="name a function without arguments")
    if missing := _unfilled(factory):
        raise InputError(
            f"{option}: {name} needs the argument{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            fix=f"name a function without arguments, such as def make(): return {name.rpartition(':')[2]}(...)",
        )


def _call(factory: Any, name: str, option: str) -> Any:
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
    """Return an error's first line; of one that ends in a colon, such as load_state_dict's, what it announces too."""
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
    """Return the arguments without which a factory cannot be called; none where its signature is not known."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in optional]
