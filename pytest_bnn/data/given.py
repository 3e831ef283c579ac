"""What was given as examples and labels, made usable or refused; and the batch that the training loss gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.data.batch import Batch, Inputs, described, device_of, per_example, row_dim, rows_of, taken
from pytest_bnn.data.fitting import fitted
from pytest_bnn.data.joining import as_tensors
from pytest_bnn.data.placement import advice
from pytest_bnn.data.probing import Probed
from pytest_bnn.data.samples import Samples, require_dense
from pytest_bnn.errors import InputError
from pytest_bnn.network.calling import ForwardError, NoRowsError
from pytest_bnn.network.tree import is_inner, kind, leaves, mapped, tensors

#: How to give what a check needs.
HOW_TO_GIVE = {
    "teacher": "no teacher was given: --teacher MODULE:FACTORY, or teacher= in Python",
    "images": "no images were given: --data MODULE:FACTORY, or images= in Python",
    "loss": "no training loss was given: --loss MODULE:FUNCTION, or loss= in Python",
    "slices": "no groups of examples were given: --slices MODULE:FUNCTION, or slices= in Python",
}


def given_samples(images: Any, labels: Any) -> tuple[Samples | None, Any]:
    """Take examples and the labels that were given beside them.

    Raises:
        TypeError: They are no tensors, nor trees of tensors or numpy arrays.
        InputError: There are no examples, another number of labels, or NaN.
    """
    labels = as_tensors(labels)
    if labels is not None and not tensors(labels):
        raise TypeError(f"labels must be a tensor [N], not {type(labels).__name__}")
    if images is None:
        return None, labels
    if isinstance(images, Samples):
        samples = images
    else:
        item = as_tensors(images)
        if not tensors(item):
            raise TypeError(f"images must be a tensor [N, ...], not {type(images).__name__}")
        samples = _all_of(item)
    require_dense(samples.item)
    inputs = _first_tensor(samples.item)
    single = isinstance(samples.item, Tensor) or not is_inner(samples.item)
    if not samples.rows or (single and inputs.ndim < 2):
        raise InputError(f"images have the shape {list(inputs.shape)}", fix="give a batch [N, ...] with N at least 1")
    _require_as_many(samples, samples.item if labels is None else labels)
    if not isinstance(samples.item, Tensor) and not is_pair(samples.item):
        return samples, labels
    require_finite_inputs(inputs)
    return samples, labels


def _all_of(item: Any) -> Samples:
    first = _first_tensor(item)
    rows = len(first) if first.ndim else 0
    return Samples(item=item, rows=rows, places=torch.arange(rows))


def _first_tensor(tree: Any) -> Tensor:
    return tensors(tree)[0]


def is_pair(item: Any) -> bool:
    """Return whether examples are ``(images, labels)``, ``(images, None)`` or ``(images,)``, the images one tensor."""
    return isinstance(item, tuple | list) and 1 <= len(item) <= 2 and isinstance(item[0], Tensor)


def _require_as_many(samples: Samples, labels: Any) -> None:
    """Refuse labels of which there are more or fewer than examples."""
    if labels is samples.item and not (is_pair(labels) and len(labels) == 2):
        return
    value = labels[1] if labels is samples.item else labels
    if isinstance(value, Tensor) and row_dim(value, rows=samples.rows, dim=samples.dim) is None:
        given = f"{len(value)} labels" if value.ndim else "labels without a dimension"
        raise InputError(f"there are {samples.rows} images and {given}", fix="give one label for each image")
    if not isinstance(value, Tensor) and value is not None and not tensors(value):
        of = next(iter(value), None) if isinstance(value, tuple | list) else None
        inner = f" of {type(of).__name__}" if of is not None else ""
        raise InputError(
            f"a {type(value).__name__}{inner} given as labels is no tensor",
            fix="give one label for each image, as a tensor",
        )


def require_finite_inputs(inputs: Inputs) -> None:
    """Refuse inputs that hold NaN, or infinity outside of a mask.

    Raises:
        InputError: The message has the number of the first example.
    """
    rows = len(inputs)
    for tensor in inputs.tensors if isinstance(inputs, Batch) else (inputs,):
        dim = row_dim(tensor, rows=rows, dim=inputs.dim if isinstance(inputs, Batch) else 0)
        if dim is None or not tensor.is_floating_point():
            continue
        # Several inputs may have a mask of minus infinity among them.
        sick = torch.isnan(tensor) if isinstance(inputs, Batch) else ~torch.isfinite(tensor)
        if bad := rows_not_finite(torch.where(sick, torch.nan, 0.0).movedim(dim, 0)):
            raise InputError(
                f"{len(bad)} of {rows} images hold NaN or infinity, the first is number {bad[0]}",
                fix="remove them, or mend the transform that made them",
            )


def rows_not_finite(values: Tensor) -> list[int]:
    """Return the numbers of the rows that hold NaN or infinity."""
    found: list[int] = (~torch.isfinite(values)).unsqueeze(-1).flatten(1).any(1).nonzero().flatten().tolist()
    return found


def require_finite_answers(teacher: nn.Module, output: Tensor) -> None:
    """Refuse a teacher that no network could agree with."""
    # Minus infinity beside finite scores is a mask, such as of classes that are left out.
    scores = output.reshape(len(output), -1)
    masked = torch.isneginf(scores) & torch.isfinite(scores).any(1, keepdim=True)
    rows = rows_not_finite(torch.where(masked, 0.0, scores))
    if not rows:
        return
    # Infinity in a buffer may be a mask's.
    sick = [name for name, value in teacher.named_parameters() if not bool(torch.isfinite(value).all())]
    sick += [name for name, value in teacher.named_buffers() if bool(torch.isnan(value).any())]
    raise InputError(
        f"the outputs of the teacher {type(teacher).__name__} are NaN or infinite for {len(rows)} of {len(output)} "
        f"images, number {rows[0]} first" + (f", and so is its {sick[0]}" if sick else ""),
        fix="load its weights again; where the model shares memory with it, as after bayesian-torch's utils.MOPED(), "
        "training the model changed it"
        if sick
        else "leave these images out, or look where its forward divides, takes a logarithm or overflows",
    )


def batch_for_loss(samples: Samples, probed: Probed, labels: Any, model: nn.Module, most: int) -> Any:
    """Return a copy of the batch that a training loss gets, in the structure in which the examples were given.

    Args:
        samples: The examples.
        probed: How the model takes them: inputs get its dtype, all else keeps its own.
        labels: Those that were given beside the examples; None where they are among them.
        model: Where the batch goes.
        most: The most examples, where no loader made batches and the network takes any number.
    """
    size = probed.inputs.size if isinstance(probed.inputs, Batch) else None
    tree = samples.take(size or most) if samples.first is None or size else samples.first
    places = iter([name for name, _ in leaves(tree)])

    def move(leaf: Any) -> Any:
        name = next(places)
        if not isinstance(leaf, Tensor):
            return leaf
        moved = fitted(leaf, model) if name in probed.places else leaf.to(_device(model, leaf))
        # A leaf of its own: a gradient to it is not one to the user's tensor.
        return moved.detach().clone().requires_grad_(leaf.requires_grad)

    batch = mapped(tree, move)
    if labels is not None:
        return batch, _beside(labels, samples, tree, model)
    if isinstance(batch, Tensor):
        return batch, None
    if is_pair(batch) and len(batch) == 1:
        return batch[0], None
    return tuple(batch) if type(batch) is list else batch


def labels_in(batch: Any, samples: Samples, probed: Probed) -> Tensor | None:
    """Return the labels in a batch that `batch_for_loss` made; None where there are none, or more than one tensor."""
    if not isinstance(probed.labels, Tensor):
        return None
    places = [name for name, leaf in leaves(samples.item) if leaf is probed.labels]
    found = [leaf for name, leaf in leaves(batch) if name in places]
    if not found:
        beside = [leaf for name, leaf in leaves(batch) if name not in probed.places and isinstance(leaf, Tensor)]
        found = beside if len(beside) == 1 else []
    return found[0] if len(found) == 1 and isinstance(found[0], Tensor) else None


def _beside(labels: Any, samples: Samples, tree: Any, model: nn.Module) -> Any:
    """Return copies of the labels of a batch on a model's device, out of those that were given beside the examples."""
    numbers = torch.arange(rows_of(tree, samples.dim))

    def copied(value: Any) -> Any:
        return value.detach().to(_device(model, value), copy=True) if isinstance(value, Tensor) else value

    def take(leaf: Any) -> Any:
        some = taken(leaf, numbers, rows=samples.rows)
        return mapped(some, copied)

    return mapped(labels, take, per_example(samples.rows))


def _device(model: nn.Module, leaf: Tensor) -> torch.device:
    reference = next(model.parameters(), None)
    return leaf.device if reference is None else reference.device


def does_not_accept(role: str, model: nn.Module, images: Inputs, error: ForwardError) -> InputError:
    """Word the error of a network that cannot take the images."""
    if isinstance(error, NoRowsError):
        return InputError(
            f"the {role} {type(model).__name__} takes {described(images)}, and its outputs cannot be judged ({error})",
            fix="wrap it so that it returns a row of numbers for each example",
        )
    if isinstance(error.__cause__, SystemExit):
        return InputError(
            f"the forward of the {role} {type(model).__name__} tried to end the process ({error})",
            fix="remove the call that ends it, such as sys.exit()",
        )
    cause = error.__cause__ or error
    return InputError(
        f"the {role} {type(model).__name__} does not accept {described(images)} ({error})",
        fix=advice(cause, device_of(images)) or "give data that fits it: --data MODULE:FACTORY, or images= in Python",
    )


def require_weights(role: str, network: nn.Module | None) -> None:
    """Refuse parameters that hold no numbers, or that no gradient can reach."""
    parameters = () if network is None else network.named_parameters()
    for name, parameter in ((name, parameter) for name, parameter in parameters if not is_lazy(parameter)):
        if parameter.is_meta:
            raise InputError(
                f"the {role}'s {name} is on the meta device, without numbers", fix="load its weights before the audit"
            )
        if parameter.is_inference():
            raise InputError(
                f"the {role}'s {name} was made in inference mode: no gradient can reach it",
                fix="build, convert or load the network outside of torch.inference_mode()",
            )


def require_functions(loss: object, factory: object, slices: object) -> None:
    """Refuse a loss, a factory or slices that cannot be called.

    Raises:
        TypeError: It is something else.
    """
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function loss(model, batch), not {type(loss).__name__}")
    if factory is not None and (not callable(factory) or isinstance(factory, nn.Module)):
        raise TypeError(f"factory must be a function without arguments, not {type(factory).__name__}")
    if slices is not None and not callable(slices):
        raise TypeError(f"slices must be a function of an example's number, not {type(slices).__name__}")


def named_sets(given: Any, like: Any) -> dict[str, Any]:
    """Return sets of examples by name: those of a mapping, or one that is called "outside".

    Args:
        given: A mapping of names to examples, or examples; None for no set.
        like: Examples of the model's own task: a mapping with the same keys is one set of such examples.

    Raises:
        InputError: It is a list of sets.
    """
    if given is None:
        return {}
    item = like.item if isinstance(like, Samples) else like
    if isinstance(given, dict) and not (isinstance(item, dict) and set(given) <= set(item)):
        return {str(name): examples for name, examples in given.items()}
    if isinstance(given, list) and len(given) > 1 and all(_is_a_set(one) for one in given):
        raise InputError(
            f"ood is a list of {len(given)} sets of examples (--ood)",
            fix="give several sets in a dictionary, by name, or one set",
        )
    return {"outside": given}


def _is_a_set(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point()


def named_series(given: Any) -> dict[str, list[Any]]:
    """Return series of sets of examples by name: those of a mapping, or one that is called "shift".

    Args:
        given: A list of sets, or a mapping of names to such lists; None for no series.

    Raises:
        InputError: It is something else, or a list is empty.
    """
    if given is None:
        return {}
    found = given if isinstance(given, dict) else {"shift": given}
    for name, steps in found.items():
        if not isinstance(steps, list | tuple) or not steps:
            what = "empty" if isinstance(steps, list | tuple) else kind(steps)
            raise InputError(
                f"the series {name!r} of growing shifts is {what}",
                fix="give a list of data sets, the least shift first, or a dictionary of such lists (--shifts)",
            )
    return {str(name): list(steps) for name, steps in found.items()}
