"""What the properties find by themselves in bayesian-torch's own ``dnn_to_bnn``, from generated networks.

``python -m benchmarks.findings`` converts random networks with the bare ``dnn_to_bnn`` in three ways, looks which
properties every conversion lacks, and tells the causes apart by what the properties say: how often each was met is
printed, and what has no cause in the list. ``--shrink`` then has Hypothesis look for the smallest network for each;
``--write docs/explanation/findings.md`` puts these networks into the page.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from torch import Tensor, nn

from pytest_bnn.properties import FAILURE_PROPERTIES, PROPERTIES, PropertyError, Trial, attempt
from pytest_bnn.strategies import architectures, inputs_for, source

PARAMETERS: dict[str, Any] = {
    "prior_mu": 0.0,
    "prior_sigma": 1.0,
    "posterior_mu_init": 0.0,
    "posterior_rho_init": -3.0,
    "type": "Reparameterization",
    "moped_enable": True,
    "moped_delta": 0.1,
}
WAYS: dict[str, dict[str, Any]] = {"": {}, "Flipout": {"type": "Flipout"}, "without MOPED": {"moped_enable": False}}


def bare(network: nn.Module, **changed: Any) -> nn.Module:
    """Convert in place, with nothing around the library."""
    with redirect_stdout(StringIO()):  # it prints a warning for every LSTM
        dnn_to_bnn(network, PARAMETERS | changed)
    return network


@dataclass(frozen=True, slots=True)
class Cause:
    """A defect: the property that shows it, what the property then says, of which modules, and other sights of it."""

    title: str
    row: str
    property: str
    says: str
    of: Callable[[Trial, PropertyError], bool] = lambda trial, error: True
    way: str = ""
    also: str = "(?!)"

    def shown_by(self, trial: Trial, error: PropertyError, way: str) -> bool:
        """Say whether a finding shows this defect."""
        if error.name != self.property or not re.search(self.says, error.finding):
            return False
        return (not self.way or way == self.way) and self.of(trial, error)

    def explains(self, trial: Trial, error: PropertyError, way: str) -> bool:
        """Say whether a finding comes from this defect."""
        return self.shown_by(trial, error, way) or bool(re.search(self.also, str(error)))


def blamed(trial: Trial, error: PropertyError) -> nn.Module:
    """Return the teacher's module at the path that a property names first."""
    return trial.network.get_submodule(error.paths[0]) if error.paths else trial.network


def holds(*kinds: type[nn.Module]) -> Callable[[Trial, PropertyError], bool]:
    return lambda trial, error: any(isinstance(module, kinds) for module in trial.network.modules())


def pads_otherwise(trial: Trial, error: PropertyError) -> bool:
    return getattr(blamed(trial, error), "padding_mode", "zeros") != "zeros"


def pads_its_output(trial: Trial, error: PropertyError) -> bool:
    modules = list(trial.network.modules())
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return any(isinstance(m, transposed) and any(m.output_padding) for m in modules) and not holds(nn.LSTM)(
        trial, error
    )


def is_a_namesake(trial: Trial, error: PropertyError) -> bool:
    kind = type(blamed(trial, error))
    return kind.__name__.startswith(("Linear", "Conv")) and not kind.__module__.startswith("torch")


def has_children(trial: Trial, error: PropertyError) -> bool:
    return bool(error.paths) and bool(blamed(trial, error)._modules)


def is_as_it_was(trial: Trial, error: PropertyError) -> bool:
    """Say whether nothing but the weights can make the outputs differ."""
    module = blamed(trial, error)
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in trial.network.modules())
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return type(module) in kinds and not hooks and not pads_otherwise(trial, error)


CAUSES = (
    Cause(
        "Every replaced layer is left in train mode", "A21", "modes_survive", "was in eval mode and is in train mode"
    ),
    Cause(
        "Replaced layers are float32, whatever the network is",
        "A21",
        "tensors_survive",
        "had the dtype torch.float64",
        also="must have the same dtype",
    ),
    Cause("Frozen weights are trained", "A21", "requires_grad_survives", "had requires_grad False, its mu has True"),
    Cause("Hooks of replaced layers are lost", "A21", "hooks_survive", "had 1 forward hooks and has 0"),
    Cause("Conv1d and ConvTranspose1d raise a TypeError", "A20", "failure_is_a_refusal", r"^TypeError: new\(\)"),
    Cause("A subclass of a layer raises an AttributeError", "A16", "failure_is_a_refusal", r"no attribute 'Doubled"),
    Cause(
        "nn.MultiheadAttention raises an AttributeError",
        "A16",
        "failure_is_a_refusal",
        "no attribute 'NonDynamicallyQuantizableLinear",
    ),
    Cause(
        "Any class whose name contains Conv, Linear or LSTM is taken for a layer",
        "A16",
        "failure_is_a_refusal",
        r"^AttributeError: '\w+' object has no attribute '(in_features|in_channels|input_size)'",
    ),
    Cause(
        "A class that is only called Linear or Conv2d is replaced without a word",
        "A16",
        "mean_equals_teacher",
        "first at",
        is_a_namesake,
    ),
    Cause("A child that is None raises an AttributeError", "A28", "failure_is_a_refusal", "'NoneType' object"),
    Cause(
        "A container at two places raises an AttributeError",
        "A29",
        "failure_is_a_refusal",
        r"no attribute '\w*(Reparameterization|Flipout){2}'",
    ),
    Cause(
        "A conversion that raises leaves half a model behind",
        "A16",
        "failure_leaves_nothing_half_done",
        "left the network changed: .* is another module now",
    ),
    Cause("A model that is itself a layer is left as it is", "A14", "layers_are_replaced", r"the network itself"),
    Cause("Without a Bayesian layer the KL term is None", "A13", "kl_is_closed_form", "get_kl_loss gives None"),
    Cause(
        "A layer with a child module stays deterministic",
        "A15",
        "layers_are_replaced",
        r"neither Bayesian nor reported",
        has_children,
    ),
    Cause(
        "A layer that is used twice becomes two",
        "A17",
        "sharing_survives",
        "were one module and are",
        also="^every_layer_is_called: .* was called 2 times in a forward and is called 1 times",
    ),
    Cause("Two layers with one weight become two weights", "A17", "sharing_survives", "were one tensor and are two"),
    Cause(
        "A reference beside the module tree keeps the old layer in use",
        "A17",
        "every_layer_is_called",
        "is called 0 times",
    ),
    Cause("The padding mode is lost", "A18", "mean_equals_teacher", "first at", pads_otherwise),
    Cause("The output padding is lost", "A19", "forward_runs", r"shapes?\b", pads_its_output),
    Cause("The KL of an LSTM is counted twice", "A12", "kl_is_closed_form", "^the KL term is", holds(nn.LSTM)),
    Cause(
        "The weights of an LSTM are dropped",
        "A12",
        "mean_equals_teacher",
        r"first at .*\(LSTM\w+\)",
    ),
    Cause(
        "The layers and the direction of an LSTM are dropped",
        "A12",
        "forward_runs",
        r"shapes?\b",
        holds(nn.LSTM),
    ),
    Cause(
        "Large weights overflow",
        "A7",
        "forward_runs",
        "NaN or infinite",
        also="^kl_is_closed_form: the KL term is (nan|inf)",
    ),
    Cause(
        "Without MOPED the trained weights are discarded",
        "A22",
        "mean_equals_teacher",
        r"first at .*\((Linear|Conv)",
        is_as_it_was,
        way="without MOPED",
    ),
    Cause(
        "Converting twice raises an AttributeError",
        "A30",
        "twice_is_refused_or_idempotent",
        r"no attribute '\w*(Reparameterization|Flipout){2}'",
    ),
    Cause(
        "Flipout's ConvTranspose2d swaps the channels of its prior",
        "A31",
        "kl_is_closed_form",
        r"kl_loss\(\) raised RuntimeError: The size of tensor",
        also="^tensors_survive: .* had the shape",
        way="Flipout",
    ),
    Cause(
        "Flipout's ConvTranspose3d with a bias cannot run",
        "A32",
        "forward_runs",
        "UnboundLocalError",
        way="Flipout",
    ),
)


def findings(network: nn.Module, x: Tensor, way: str) -> Iterator[tuple[Trial, PropertyError]]:
    """Convert a network, and give every property that the conversion lacks."""
    trial = attempt(lambda given: bare(given, **WAYS[way]), network, x)
    for holds in PROPERTIES if trial.error is None else FAILURE_PROPERTIES:
        try:
            holds(trial)
        except PropertyError as error:
            yield trial, error


#: Properties that fail where a converted network cannot run at all, or not as its teacher does.
RUNS = {"tensors_survive", "forward_runs", "hooks_survive"}


def _follows(error: PropertyError) -> bool:
    """Say whether a finding is but another sight of a forward that raises, or of outputs of another shape."""
    return error.__cause__ is not None or error.name in ("mean_equals_teacher", "forward_runs")


def survey(examples: int) -> tuple[Counter[str], Counter[str]]:
    """Count the networks with each cause, and the findings without one."""
    causes: Counter[str] = Counter()
    unexplained: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    @given(architectures(), st.sampled_from(sorted(WAYS)), st.data())
    def look(network: nn.Module, way: str, data: st.DataObject) -> None:
        found = list(findings(network, data.draw(inputs_for(network)), way))
        explained = {error.name for trial, error in found if any(c.explains(trial, error, way) for c in CAUSES)}
        causes.update({c.title for trial, error in found for c in CAUSES if c.shown_by(trial, error, way)})
        for _, error in found:
            if error.name not in explained and not (RUNS & explained and _follows(error)):
                unexplained[f"{error}\n{way}\n{source(network)}"] += 1

    look()
    return causes, unexplained


def smallest(cause: Cause, examples: int) -> tuple[nn.Module, Tensor, str] | None:
    """Look for the smallest network with a defect; give it with an input and what the property says."""
    kept: list[tuple[nn.Module, Tensor, str]] = []
    convert = WAYS[cause.way]
    checks = {check.__name__: check for check in (*PROPERTIES, *FAILURE_PROPERTIES)}

    def shows(example: tuple[nn.Module, Tensor]) -> bool:
        trial = attempt(lambda given: bare(given, **convert), *example)
        if (trial.error is None) == (cause.property.startswith("failure")):
            return False
        try:
            checks[cause.property](trial)
        except PropertyError as error:
            if cause.shown_by(trial, error, cause.way):
                kept.append((*example, str(error)))
                return True
        return False

    examples_of = architectures(dtypes=_dtypes(cause)).flatmap(lambda n: st.tuples(st.just(n), inputs_for(n)))
    try:
        found = find(examples_of, shows, settings=settings(max_examples=examples, database=None, deadline=None))
    except NoSuchExample:
        return None
    return next(entry for entry in reversed(kept) if entry[0] is found[0])


def _dtypes(cause: Cause) -> list[torch.dtype]:
    return [torch.float32, torch.float64] if "dtype" in cause.says else [torch.float32]


def layers_in(network: nn.Module) -> int:
    """Count the layers of a network: modules that hold no others, each once."""
    return sum(not module._modules for module in network.modules())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1500, help="networks in the survey")
    parser.add_argument("--shrink", action="store_true", help="look for the smallest network of each cause")
    parser.add_argument("--only", default="", help="causes whose title holds this")
    parser.add_argument("--write", type=Path, help="put the smallest networks into this page")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if not arguments.only:
        causes, unexplained = survey(arguments.examples)
        print(f"{arguments.examples} networks; causes met, of {len(CAUSES)}: {len(causes)}")
        for title, count in causes.most_common():
            print(f"  {count:5d}  {title}")
        print(f"findings that no cause explains: {unexplained.total()}")
        for text in unexplained:
            print(text)
    if not (arguments.shrink or arguments.write):
        return
    page = arguments.write.read_text() if arguments.write else ""
    for cause in CAUSES:
        if arguments.only not in cause.title:
            continue
        begin = time.perf_counter()
        found = smallest(cause, 4000)
        if found is None:
            print(f"-- {cause.title}: not found in 4000 networks")
            continue
        network, x, finding = found
        print(f"-- {cause.title} ({cause.row}), {layers_in(network)} layers, {time.perf_counter() - begin:.1f} s")
        print(f"{source(network)}\nx = {source(x)}\n# {finding}\n", flush=True)
        page = put(page, cause, network, x, finding)
    if arguments.write:
        arguments.write.write_text(page)


def put(page: str, cause: Cause, network: nn.Module, x: Tensor, finding: str) -> str:
    """Put an example under its cause's heading, in place of the one that stands there."""
    changed = f", **{WAYS[cause.way]}" if cause.way else ""
    code = f"{source(network)}\nx = {source(x)}\nassert lacks(properties.{cause.property}, network, x{changed})"
    block = f"```python\n{code}\n```\n\n> {finding}\n"
    pattern = rf"(## {re.escape(cause.title)}\n(?:(?!^## ).*\n)*?)<!-- example -->\n(?:.*\n)*?<!-- end -->"
    return re.sub(
        pattern, lambda match: f"{match[1]}<!-- example -->\n\n{block}\n<!-- end -->", page, flags=re.MULTILINE
    )


if __name__ == "__main__":
    main()
