"""Where networks are judged: on the device that the settings name, or where they are already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pytest_bnn.errors import InputError, in_words
from pytest_bnn.network import devices
from pytest_bnn.options import in_force, sources_in_force


def chosen() -> torch.device | None:
    """Return the device that the settings in force name; None where they name none.

    Raises:
        InputError: It is not there.
    """
    name = in_force().device
    if not name:
        return None
    source = sources_in_force().get("device")
    return devices.find(name, source.name if source else "the setting device")


def take(*networks: nn.Module | None) -> None:
    """Move networks that nobody else holds to the device that the settings name; without one they stay.

    Raises:
        InputError: It is not there, or one of them cannot be moved.
    """
    device = chosen()
    if device is None:
        return
    away = [network for network in networks if network is not None and not devices.is_on(network, device)]
    try:
        devices.move(away, device)
    except Exception as error:
        raise _stuck("moving the networks", away, device, error) from error


def judged(model: nn.Module, teacher: nn.Module | None) -> tuple[nn.Module, nn.Module | None]:
    """Return networks on the device that the settings name: themselves where they are there, else copies.

    A user's own network is never moved.

    Raises:
        InputError: The device is not there, or one of them cannot be copied.
    """
    device = chosen()
    if device is None:
        return model, teacher
    away = [one for one in (model, teacher) if one is not None and not devices.is_on(one, device)]
    try:
        copies = devices.copies(away, device)
    except Exception as error:
        raise _stuck("copying the model", away, device, error) from error
    of = {id(one): copied for one, copied in zip(away, copies, strict=True)}
    return of.get(id(model), model), None if teacher is None else of.get(id(teacher), teacher)


def _stuck(doing: str, networks: Sequence[nn.Module], device: torch.device, error: Exception) -> InputError:
    for network in networks:
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_meta:
                return InputError(
                    f"{name} of {type(network).__name__} is on the meta device, without numbers",
                    fix="load its weights before the audit",
                )
    return InputError(
        f"{doing} to {device} raised {in_words(error).rstrip('.')}",
        fix=f"let the network be made there, or move it with model.to('{device}') before it is judged",
    )


def advice(error: BaseException, device: torch.device) -> str:
    """Say what to do about tensors of two devices that met in a user's code; empty where an error is of another kind.

    Args:
        error: What was raised.
        device: Where the model and its inputs are.
    """
    if devices.trouble(error) != "mixed":
        return ""
    return (
        f"the model and its batch are on {device}, and what the code holds itself is not: make such tensors there "
        "(torch.zeros(..., device=x.device)), keep a network's as buffers, and use the model that is passed in, not "
        "one that was made outside"
    )
