"""What must survive of the network's structure: its layers, tensors, modes, hooks, and what it shares."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from pytest_bnn.conversion.baking import making_hooks
from pytest_bnn.libraries.posterior import PosteriorTensor, bayesian_layers, is_bayesian
from pytest_bnn.properties.trial import PropertyError, Trial, evaluated, named, named_tensors, raising

#: The layers that a converter has to answer for, subclasses included.
ANSWERED_FOR = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)

_BARE_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def layers_are_replaced(trial: Trial) -> None:
    """Every convolution, linear, recurrent and attention layer is Bayesian, or reported by its path in a warning."""
    after = dict(trial.result.named_modules(remove_duplicate=False))
    left = []
    for path, module in answered_for(trial.network):
        now = after.get(path)
        if isinstance(module, nn.MultiheadAttention):
            done = now is not None and all(now._parameters.get(name) is None for name in _BARE_PROJECTIONS)
            done = done and bool(bayesian_layers(now or module))
        else:
            done = now is not None and is_bayesian(now)
        if not done and not _reported(path, trial):
            left.append((path, type(module).__name__))
    if left:
        raise PropertyError(
            "layers_are_replaced",
            f"{len(left)} layers are neither Bayesian nor reported: "
            + ", ".join(f"{named(path)} ({kind})" for path, kind in left),
            [path for path, _ in left],
        )


def tensors_survive(trial: Trial) -> None:
    """What was replaced has its weights' shape, dtype and device; parameters and buffers of all else are unchanged."""
    posterior = _posterior(trial.result)
    now = dict(named_tensors(trial.result))
    for path, name, before in _weights(trial.network):
        tensor = posterior.get((path, name))
        if tensor is None:
            continue
        for after in (tensor.mu, tensor.rho, tensor.prior_mu, tensor.prior_sigma):
            _compare_form(f"{path}.{name}".lstrip("."), path, before, after)
    replaced = {path for path, _ in posterior}
    for full, before in named_tensors(trial.network):
        path = _owner(full)
        module = trial.network.get_submodule(path)
        if path in replaced or isinstance(module, nn.MultiheadAttention) or full not in now:
            if path in replaced or isinstance(module, ANSWERED_FOR):
                continue
            raise PropertyError("tensors_survive", f"{full} is gone", [path])
        _compare_form(full, path, before, now[full])
        if not bool((before.detach() == now[full].detach()).logical_or(before.detach().isnan()).all()):
            raise PropertyError("tensors_survive", f"{full} is no layer's weight, and has other values", [path])


def _compare_form(name: str, path: str, before: Tensor, after: Tensor) -> None:
    for what in ("shape", "dtype", "device"):
        was, now = getattr(before, what), getattr(after, what)
        if was != now:
            was, now = (list(was), list(now)) if what == "shape" else (was, now)
            raise PropertyError("tensors_survive", f"{name} had the {what} {was} and has {now}", [path])


def modes_survive(trial: Trial) -> None:
    """Every module is in the mode, train or eval, in which it was."""
    after = dict(trial.result.named_modules(remove_duplicate=False))
    for path, module in trial.network.named_modules(remove_duplicate=False):
        if path in after and after[path].training != module.training:
            modes = ("train", "eval") if module.training else ("eval", "train")
            raise PropertyError(
                "modes_survive", f"{named(path)} was in {modes[0]} mode and is in {modes[1]} mode", [path]
            )


def requires_grad_survives(trial: Trial) -> None:
    """What was frozen is frozen, mu and rho alike, and what was trained is trained."""
    posterior = _posterior(trial.result)
    for path, name, _ in _weights(trial.network):
        tensor = posterior.get((path, name))
        if tensor is None:
            continue
        trained = _is_trained(trial.network.get_submodule(path), name)
        for role, after in (("mu", tensor.mu), ("rho", tensor.rho)):
            if after.requires_grad != trained:
                text = (
                    f"{path}.{name}".lstrip(".") + f" had requires_grad {trained}, its {role} has {after.requires_grad}"
                )
                raise PropertyError("requires_grad_survives", text, [path])
    now = dict(trial.result.named_parameters(remove_duplicate=False))
    for full, before in trial.network.named_parameters(remove_duplicate=False):
        if full in now and now[full].requires_grad != before.requires_grad:
            text = f"{full} had requires_grad {before.requires_grad} and has {now[full].requires_grad}"
            raise PropertyError("requires_grad_survives", text, [_owner(full)])


def hooks_survive(trial: Trial) -> None:
    """Every module has as many hooks of each kind as before; those that only make a weight anew may go."""
    after = dict(trial.result.named_modules(remove_duplicate=False))
    for path, module in trial.network.named_modules(remove_duplicate=False):
        if path not in after:
            continue
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            was, now = len(getattr(module, kind)), len(getattr(after[path], kind))
            if kind == "_forward_pre_hooks" and path in _replaced(trial.result):
                was -= len(set(making_hooks(module)))
            if was != now:
                text = f"{named(path)} had {was} {kind.strip('_').replace('_', ' ')} and has {now}"
                raise PropertyError("hooks_survive", text, [path])


def sharing_survives(trial: Trial) -> None:
    """Modules and tensors that stand at several paths still do, and nothing else shares memory."""
    after = dict(trial.result.named_modules(remove_duplicate=False))
    for paths in _places(trial.network):
        first, *others = [path for path in paths if path in after]
        apart = [path for path in others if after[path] is not after[first]]
        if apart:
            text = f"{first} and {', '.join(apart)} were one module and are {len(apart) + 1}"
            raise PropertyError("sharing_survives", text, [first, *apart])
    posterior = _posterior(trial.result)
    first_place: dict[int, tuple[str, str]] = {}
    for path, name, weight in list(_weights(trial.network)):  # all alive at once, or ids come twice
        place = first_place.setdefault(id(weight), (path, name))
        one, other = posterior.get(place), posterior.get((path, name))
        if one is not None and other is not None and one.mu is not other.mu:
            names = [f"{p}.{n}" for p, n in (place, (path, name))]
            raise PropertyError("sharing_survives", f"{' and '.join(names)} were one tensor and are two", [path])
    _require_separate(trial)


def _require_separate(trial: Trial) -> None:
    owners: dict[int, tuple[str, Tensor]] = {}
    shared = {
        tensor.untyped_storage().data_ptr(): name for name, tensor in named_tensors(trial.given) if tensor.numel()
    }
    for name, tensor in named_tensors(trial.result):
        if not tensor.numel():
            continue
        at = tensor.untyped_storage().data_ptr()
        other, first = owners.setdefault(at, (name, tensor))
        if first is not tensor and not _shared_before(trial.network, other, name):
            raise PropertyError(
                "sharing_survives",
                f"{other} and {name} share memory, so that a change of one changes both",
                [_owner(name)],
            )
        if at in shared and not trial.in_place:
            text = f"{name} shares memory with the teacher's {shared[at]}, so training the one changes the other"
            raise PropertyError("sharing_survives", text, [_owner(name)])


def _shared_before(network: nn.Module, one: str, other: str) -> bool:
    tensors = dict(named_tensors(network))
    if one not in tensors or other not in tensors:
        return False
    return tensors[one].untyped_storage().data_ptr() == tensors[other].untyped_storage().data_ptr()


def every_layer_is_called(trial: Trial) -> None:
    """In a forward, a Bayesian layer is called as often as the layer at its path was: nothing computes in its place."""
    before = _calls(trial, trial.network)
    now = _calls(trial, trial.result)
    for path in _replaced(trial.result):
        wanted, found = before.get(path, 0), now.get(path, 0)
        if wanted and found != wanted:
            text = f"{named(path)} was called {wanted} times in a forward and is called {found} times"
            raise PropertyError("every_layer_is_called", text, [path])


def _calls(trial: Trial, model: nn.Module) -> dict[str, int]:
    counts: defaultdict[int, int] = defaultdict(int)
    with evaluated(model, seed=trial.seed):
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, _: counts.__setitem__(id(module), counts[id(module)] + 1))
        with raising("every_layer_is_called", "the forward", model):
            model(trial.x)
    return {path: counts[id(module)] for path, module in model.named_modules(remove_duplicate=False)}


def answered_for(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that a converter has to answer for, by every path that leads to them."""
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, ANSWERED_FOR):
            yield path, module


def _reported(path: str, trial: Trial) -> bool:
    text = named(path)
    return any(re.search(rf"(?<![\w.]){re.escape(text)}(?![\w.])", warning) for warning in trial.warnings)


def _replaced(model: nn.Module) -> set[str]:
    own = {id(layer.module) for layer in bayesian_layers(model)}
    return {path for path, module in model.named_modules(remove_duplicate=False) if id(module) in own}


def _posterior(model: nn.Module) -> dict[tuple[str, str], PosteriorTensor]:
    """Return the posterior tensors by every path of their layer, and role."""
    tensors = {id(layer.module): layer.tensors for layer in bayesian_layers(model)}
    return {
        (path, tensor.role): tensor
        for path, module in model.named_modules(remove_duplicate=False)
        for tensor in tensors.get(id(module), ())
    }


def _weights(network: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield weight and bias of the layers in question; those of a parametrization as it computes them."""
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            for name in ("weight", "bias"):
                if isinstance(tensor := getattr(module, name, None), Tensor):
                    yield path, name, tensor


def _is_trained(module: nn.Module, name: str) -> bool:
    if parametrize.is_parametrized(module, name):
        return any(p.requires_grad for p in module.parametrizations[name].parameters())  # type: ignore[index, union-attr]
    return any(p.requires_grad for own, p in module.named_parameters(recurse=False) if own in (name, *_sources(name)))


def _sources(name: str) -> tuple[str, ...]:
    """Return the parameters of which torch's hooks make a weight: weight norm, spectral norm, pruning."""
    return (f"{name}_g", f"{name}_v", f"{name}_orig")


def _places(network: nn.Module) -> list[list[str]]:
    places: defaultdict[int, list[str]] = defaultdict(list)
    for path, module in network.named_modules(remove_duplicate=False):
        if ".parametrizations" not in f".{path}":
            places[id(module)].append(path)
    return [paths for paths in places.values() if len(paths) > 1]


def _owner(name: str) -> str:
    """Return the path of the layer that a parameter belongs to; a parametrization belongs to its layer."""
    path = name.rpartition(".")[0]
    return path.partition(".parametrizations")[0] if not path.startswith("parametrizations") else ""
