"""May the native sampler stand in for a model's own forward? Only after it has repeated some of its passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pytest_bnn.errors import in_a_line
from pytest_bnn.libraries.capture import capture
from pytest_bnn.libraries.posterior import BayesianLayer, bayesian_layers
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.comparing import difference, tolerance
from pytest_bnn.network.float64 import float64_for
from pytest_bnn.network.isolation import preserved_random_state, random_state
from pytest_bnn.network.precision import full
from pytest_bnn.sampling.engine.draws import DrawTests
from pytest_bnn.sampling.engine.handshake import (
    passes_to_repeat,
    refusal,
    require_independent_images,
    require_no_draws,
    require_repeated,
)
from pytest_bnn.sampling.engine.plan import Unsupported, make_plan
from pytest_bnn.sampling.native.run import Native
from pytest_bnn.sampling.own import undisturbed_passes


def shake_hands(model: nn.Module, images: Tensor, seed: int) -> Native:
    """Make a native sampler for a model, once it has shown that it computes what the model's own forward computes.

    It is validated as the engine is (`pytest_bnn.sampling.engine.handshake.shake_hands`): it repeats passes of the own
    forward with the weights that this really used; these are draws of the posterior; its output for an image does not
    depend on the images beside it. Passes run at once only where that gives what they give one after the other.

    Args:
        model: The network, on any device; it is left undisturbed.
        images: Its inputs, on the same device.
        seed: The seed of the noise.

    Raises:
        Unsupported: It must not be used; the message says why.
    """
    layers = bayesian_layers(model)
    reason = refusal(model, layers, images, images.device)
    if reason:
        raise Unsupported(reason)
    two = images[:2] if len(images) > 1 else images[:1].repeat(2, *[1] * (images.ndim - 1))
    with torch.no_grad(), preserved_random_state(), full(images.device), float64_for(images.device):
        try:
            with undisturbed_passes(model, seed=seed):
                native = _compare(model, layers, two, seed)
            rows = torch.arange(2, device=two.device)
            batches = [(two, rows), *zip(two.split(1), rows.split(1), strict=True)]
            together, *apart = (native.run(range(1), *batch)[0] for batch in batches)
            require_independent_images(together, apart)
        except Unsupported:
            raise
        except Exception as error:
            raise Unsupported(f"repeating its forward raised {in_a_line(error)}") from error
        native.refused = _why_not_at_once(native, two)
        native.vmaps = not native.refused
    return native


def _compare(model: nn.Module, layers: Sequence[BayesianLayer], two: Tensor, seed: int) -> Native:
    tests = DrawTests()
    native: Native | None = None
    for index in range(passes_to_repeat(layers)):
        images = two[index % 2 :][:1] if index else two
        with capture(model) as calls:
            wanted = output_tensor(model(images))
        if native is None:
            plan = make_plan(calls, None, channels_last=True)
            outputs = max((c.output.numel() // len(two) for c in calls if isinstance(c.output, Tensor)), default=1)
            native = Native(model, plan, seed, outputs, two.device)
        tests.begin_pass()
        for call in calls:
            tests.take(call)
        before = random_state()
        found = native.repeat(calls, images)
        require_no_draws(drew=random_state() != before)
        require_repeated(wanted, found, "the native sampler's")
        calls.clear()
    trouble = tests.trouble()
    if trouble:
        raise Unsupported(trouble)
    assert native is not None
    return native


def _why_not_at_once(native: Native, two: Tensor) -> str:
    """Say why passes of a network cannot run at once; empty where they can."""
    try:
        one, other = native.compared(range(3), two)
    except Exception as error:
        return f"torch.func.vmap does not take its forward ({in_a_line(error)})"
    gap = difference(one, other)
    return "" if 0 <= gap <= tolerance(one) else f"at once they differ by {gap:.2g} of the outputs' scale"
