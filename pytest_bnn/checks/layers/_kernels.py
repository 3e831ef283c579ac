"""The weights that are no convolution's or Linear's, and multiply all the same: seen in one forward pass."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_bnn.checks.layers._row import FUNCTIONAL, RECURRENT, UNDRAWN, Row
from pytest_bnn.libraries.posterior import BayesianLayer, unknown_layers
from pytest_bnn.network.calling import ForwardError, forward
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.network.operands import Operand, operands
from pytest_bnn.network.wrappers import eager
from pytest_bnn.subject import Subject, fitted

#: Rows of the pass that is followed; all weights of a network are used for few rows as for many.
_ROWS = 4

#: Layers of torch that have kernels and that no conversion here makes Bayesian.
_UNCONVERTED = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


@dataclass(slots=True)
class Kernels:
    """What a pass showed: the names of deterministic kernels, and the layers whose mu is used undrawn.

    ``seen`` says whether a pass was followed, ``constant`` names kernels that nothing trains.
    """

    seen: bool = False
    deterministic: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)
    constant: set[str] = field(default_factory=set)
    undrawn: set[str] = field(default_factory=set)


def require_posteriors(subject: Subject, layers: dict[str, BayesianLayer], rows: list[Row], notes: list[str]) -> bool:
    """Add a row for each module with deterministic kernels, and note where a mu is used undrawn.

    Args:
        subject: What is audited.
        layers: Its Bayesian layers by path.
        rows: The layers of the claim so far, those that are still deterministic among them.
        notes: What else the evidence says.

    Returns:
        Whether all operands of one pass were seen.
    """
    claimed = _Claimed(subject, layers)
    found = _kernels(subject, layers, claimed, notes)
    places = {row.path if row.place is None else row.place: row for row in rows}
    for path in sorted(found.undrawn):
        if path not in places:
            places[path] = Row(path, layers[path].kind, layers[path].weights)
            rows.append(places[path])
        places[path].fail(
            "has its mu used as a weight outside of its own forward: that matrix product is deterministic", UNDRAWN
        )
    by_owner: dict[str, list[str]] = defaultdict(list)
    for name in claimed.parameters:
        if name in found.deterministic:
            by_owner[_owner(name)].append(name)
    modules = dict(subject.model.named_modules(remove_duplicate=False))
    if not found.seen:
        for path, module in modules.items():
            mine = [name for name in claimed.parameters if _owner(name) == path]
            if isinstance(module, _UNCONVERTED) and mine:
                by_owner[path] = mine
    for path, names in by_owner.items():
        if path in places and places[path].problem:  # what is left of a layer that was one of the claim
            continue
        rows.append(_row(path, modules[path], names, found.added, claimed.parameters))
    if found.constant:
        size = sum(claimed.frozen[name].numel() for name in found.constant)
        notes.append(
            f"outside of the claim: {size:,} weights of kernels that are not trained, {min(found.constant)} first"
        )
    return found.seen


def _owner(name: str) -> str:
    """Return the path of the module that a parameter belongs to, that of a parametrized one included."""
    path = name.rpartition(".")[0]
    return path.partition(".parametrizations.")[0].removeprefix("parametrizations.") if "parametriz" in path else path


def _row(path: str, module: nn.Module, names: list[str], added: set[str], parameters: dict[str, Tensor]) -> Row:
    unconverted = isinstance(module, _UNCONVERTED)
    mine = [n for n in parameters if n in names or (_owner(n) == path and (n in added or unconverted))]
    row = Row(path, type(module).__name__, sum(parameters[name].numel() for name in mine), names=tuple(names))
    if unconverted:
        row.warn(f"is a deterministic {type(module).__name__}", RECURRENT)
        return row
    own = [name[len(path) :].lstrip(".") for name in names]
    listed = ", ".join(own[:3]) + (f" and {len(own) - 3} more" if len(own) > 3 else "")
    verb, are = ("is", "has") if len(own) == 1 else ("are", "have")
    row.fail(
        f"its {listed} {verb} multiplied with what comes from the input, as a layer's weight is, and {are} no "
        "posterior",
        FUNCTIONAL,
    )
    return row


class _Claimed:
    """The parameters of a model that the claim may be about: nobody else's, and not yet in a row."""

    def __init__(self, subject: Subject, layers: dict[str, BayesianLayer]) -> None:
        model, teacher = subject.model, subject.teacher
        self.mus: dict[int, str] = {}
        self.widths: set[int] = set()
        for path, layer in layers.items():
            mine = {id(tensor.mu_parameter) for tensor in layer.tensors}
            self.mus |= dict.fromkeys(mine, path)
            parts = [layer.module, *(part for n, part in layer.module.named_children() if n == "parametrizations")]
            own: list[Tensor] = [p for part in parts for p in part.parameters(recurse=part is not layer.module)]
            own += layer.module.buffers(recurse=False)
            self.widths |= {id(tensor) for tensor in own} - mine
        self.widths -= self.mus.keys()
        counted = [path for path, module in model.named_modules(remove_duplicate=False) if _is_in_a_row(module)]
        unknown = [path for path, _ in unknown_layers(model)]
        foreign: set[int] = set()
        if teacher is not None:
            placed = set(subject.alignment.paths.values())
            theirs = {id(p) for p in teacher.parameters()}
            foreign = {id(p) for n, p in model.named_parameters() if id(p) in theirs and _owner(n) not in placed}
        trains = any(tensor.mu_parameter.requires_grad for layer in layers.values() for tensor in layer.tensors)
        trained = _trained(subject)
        self.parameters: dict[str, Tensor] = {}
        self.frozen: dict[str, Tensor] = {}
        #: Those that are in a row already, or nobody's business: a product with one of them is not judged again.
        self.others: set[int] = set(foreign)
        for name, parameter in model.named_parameters():
            if id(parameter) in self.mus or id(parameter) in self.widths or is_lazy(parameter):
                continue
            if id(parameter) in self.others or any(_is_under(_owner(name), path) for path in unknown):
                self.others.add(id(parameter))
            elif trains and not parameter.requires_grad and name not in trained:
                self.frozen[name] = parameter
            else:
                self.parameters[name] = parameter
        for path in counted:
            module = model.get_submodule(path)
            self.others |= {id(p) for p in module.parameters(recurse=False)}
            parametrized = dict(module.named_children()).get("parametrizations", nn.Module())
            self.others |= {id(p) for p in parametrized.parameters()}


def _is_in_a_row(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.MultiheadAttention)


def _is_under(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


def _trained(subject: Subject) -> set[str]:
    """Return the names of the model's parameters whose counterparts in the teacher are trained."""
    if subject.teacher is None:
        return set()
    places = subject.alignment.paths
    found = set()
    for path, module in subject.teacher.named_modules():
        if path in places:
            place = places[path]
            own = module.named_parameters(recurse=False)
            found |= {f"{place}.{name}" if place else name for name, p in own if p.requires_grad}
    return found


def _kernels(subject: Subject, layers: dict[str, BayesianLayer], claimed: _Claimed, notes: list[str]) -> Kernels:
    found = Kernels()
    model = subject.model
    if subject.images is None:
        return found
    images = fitted(subject.images, model)[:_ROWS]
    with eager(), undisturbed(model, seed=subject.seed):
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        buffers = {name for name, _ in model.named_buffers()}
        noisy = {f"{path}.{n}" if path else n for path, la in layers.items() for n, _ in la.module.named_buffers()}
        named = {name: t for name, t in named.items() if (name not in buffers or name in noisy) and not is_lazy(t)}
        try:
            uses = operands(model, lambda: forward(model, images), named)
        except ForwardError as error:
            notes.append(f"it was not seen which tensors are multiplied with the input: the forward raised {error}")
            return found
        if isinstance(model, nn.Module) and not uses:
            return found
        found.seen = True
        _sort(uses, {name: id(tensor) for name, tensor in named.items()}, noisy & buffers, claimed, found)
    return found


def _sort(uses: list[Operand], ids: dict[str, int], noise: set[str], claimed: _Claimed, found: Kernels) -> None:
    """Tell drawn weights from deterministic ones, and a mu that its own layer uses from one that others do."""
    drawn_outside: set[str] = set()
    for use in uses:
        sources = {name: ids[name] for name in use.sources}
        mus = {claimed.mus[key] for key in sources.values() if key in claimed.mus}
        if use.random or use.sources & noise or claimed.widths & set(sources.values()):
            drawn_outside |= {_owner(name) for name in use.sources} - use.inside
        elif mus:
            found.undrawn |= mus - use.inside
        elif not claimed.others & set(sources.values()):
            found.deterministic |= use.sources - claimed.frozen.keys()
            found.constant |= use.sources & claimed.frozen.keys()
            found.added |= use.added
    # Whoever draws outside of the layer, too, computes the mean and the noise in two products.
    found.undrawn -= drawn_outside
