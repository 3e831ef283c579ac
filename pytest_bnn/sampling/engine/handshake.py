"""May the engine stand in for a model's own forward? Only after it has repeated some of its passes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product

import torch
from torch import Tensor, nn

from pytest_bnn.errors import in_a_line
from pytest_bnn.libraries.capture import LayerCall, calls_by_layer, capture
from pytest_bnn.libraries.posterior import BayesianLayer, bayesian_layers
from pytest_bnn.network.calling import output_tensor
from pytest_bnn.network.comparing import difference, tolerance
from pytest_bnn.network.isolation import preserved_random_state, random_state
from pytest_bnn.sampling.engine.consumers import Consumers
from pytest_bnn.sampling.engine.draws import DrawTests
from pytest_bnn.sampling.engine.lockstep import Lockstep, forward_without_numbers, may_take_turns
from pytest_bnn.sampling.engine.noise import Noise, make_noise
from pytest_bnn.sampling.engine.plan import Unsupported, make_plan
from pytest_bnn.sampling.engine.replica import Worker
from pytest_bnn.sampling.engine.run import Engine, passes_chunk
from pytest_bnn.sampling.freed import give_memory_back
from pytest_bnn.sampling.own import undisturbed_passes
from pytest_bnn.sampling.threads import limited, share

#: Passes of the model's own forward that are repeated: the least, the most, and the draws that they should add up to.
_LEAST_PASSES, _MOST_PASSES, _ENOUGH_DRAWS = 3, 32, 20_000


def shake_hands(model: nn.Module, images: Tensor, seed: int) -> Engine:
    """Make an engine for a model, once it has shown that it computes what the model's own forward computes.

    The weights that the own forward really used in some passes on two images are captured and given to the engine:
    the outputs must be equal to float tolerance. The captured draws must be what the posterior says (`DrawTests`).
    The engine's own passes must give an image the same output whatever images are beside it.

    Args:
        model: The network; it is left undisturbed.
        images: Its inputs.
        seed: The seed of the engine's noise.

    Raises:
        Unsupported: The engine must not be used; the message says why.
    """
    layers = bayesian_layers(model)
    reason = refusal(model, layers, images, torch.device("cpu"))
    if reason:
        raise Unsupported(reason)
    two = images[:2] if len(images) > 1 else images[:1].repeat(2, *[1] * (images.ndim - 1))
    reasons = []
    noise, warning = make_noise(seed)
    turns = (True, False) if may_take_turns(model, layers) else (False,)
    for channels_last, in_turns in product((True, False), turns):
        with torch.no_grad(), preserved_random_state():
            try:
                with undisturbed_passes(model, seed=seed):
                    worker, chunk = _compare(model, layers, two, noise, channels_last=channels_last, in_turns=in_turns)
                    workers = [worker, *(Worker(model, worker.plan, noise) for _ in range(share() - 1))]
                give_memory_back()
                worker.plan.lay_out()
                engine = Engine(worker.plan, workers, chunk, warning)
                rows = torch.arange(2)
                together, *apart = engine.run_apart([(two, rows), *zip(two.split(1), rows.split(1), strict=True)])
                require_independent_images(together, apart)
                give_memory_back()
            except Unsupported:
                raise
            except Exception as error:
                reasons.append(in_a_line(error))
                continue
        return engine
    raise Unsupported(f"repeating its forward raised {reasons[-1]}")


def refusal(model: nn.Module, layers: Sequence[BayesianLayer], images: Tensor, device: torch.device) -> str:
    """Say why a sampler for a device must not even try a model as it is now; empty where it may."""
    if not layers:
        return "nothing in it is Bayesian"
    if images.device != device or images.dtype is not torch.float32:
        return f"the images are {str(images.dtype).removeprefix('torch.')} on {images.device.type}"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device != device or tensor.layout is not torch.strided:
            return f"{name} is on {tensor.device.type}, {str(tensor.layout).removeprefix('torch.')}"
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            return f"{name} is {str(tensor.dtype).removeprefix('torch.')}"
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        return "torch has global forward hooks"
    bayesian = {id(layer.module) for layer in layers}
    for path, module in model.named_modules():
        where = f"{path or 'the model itself'} ({type(module).__name__})"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{where} has a forward hook"
        if "forward" in vars(module) or type(module).__call__ is not nn.Module.__call__:
            return f"{where} has a forward of its own instead of its class's"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{where} is compiled"
        if module.training and not model.training and id(module) not in bayesian:
            return f"{where} is in train mode"
    return ""


def passes_to_repeat(layers: Sequence[BayesianLayer]) -> int:
    """Return how many passes of a model's own forward are repeated."""
    weights = sum(layer.weights for layer in layers)
    return max(_LEAST_PASSES, min(_MOST_PASSES, _ENOUGH_DRAWS // max(1, weights)))


def require_no_draws(*, drew: bool) -> None:
    """Make sure that a forward with given weights has drawn nothing from torch's, numpy's and Python's generators.

    Otherwise passes would depend on what was drawn before, and disturb it; and what is random may show in few of them.

    Args:
        drew: Whether it has.

    Raises:
        Unsupported: It has.
    """
    if drew:
        raise Unsupported("its forward draws random numbers outside of its Bayesian layers, as dropout that is on does")


def _compare(
    model: nn.Module,
    layers: Sequence[BayesianLayer],
    two: Tensor,
    noise: Noise,
    *,
    channels_last: bool,
    in_turns: bool,
) -> tuple[Worker, int]:
    """Let the engine repeat passes of the model's own forward; return its worker, and the images of a chunk."""
    tests = DrawTests()
    wanted: Tensor | None = None
    with ExitStack() as taken:
        calls = taken.enter_context(capture(model))
        consumers = taken.enter_context(Consumers(model, calls))
        if in_turns:
            forward_without_numbers(model, two)
        else:
            wanted = output_tensor(model(two))
    plan = make_plan(calls, consumers, channels_last=channels_last)
    chunk = passes_chunk(calls, len(two))
    del consumers
    worker = Worker(model, plan, noise)
    for index in range(passes_to_repeat(layers)):
        give_memory_back()  # what the pass before left lies in pieces, which the next one's do not fit
        images = two[index % 2 :][:1] if index else two
        tests.begin_pass()
        if in_turns:
            wanted, found = _in_turns(model, worker, images, tests)
        else:
            if wanted is None:
                with capture(model) as calls:
                    wanted = output_tensor(model(images))
            found = _afterwards(worker, calls, images, tests)
            calls.clear()
        require_repeated(wanted, found, "the engine's")
        wanted = None
    with limited(1):
        trouble = tests.trouble()
    if trouble:
        raise Unsupported(trouble)
    return worker, chunk


def _in_turns(model: nn.Module, worker: Worker, images: Tensor, tests: DrawTests) -> tuple[Tensor, Tensor]:
    """Return the outputs of a pass and those of the engine, with the weights of one layer at a time."""
    with Lockstep(worker, images) as engine:

        def told(call: LayerCall) -> None:
            with limited(1):  # many small sums: threads would wait for each other
                tests.take(call)
            engine.take(call)

        with capture(model, told=told):
            wanted = output_tensor(model(images))
        found = engine.result()
        require_no_draws(drew=engine.drew)
        return wanted, found


def _afterwards(worker: Worker, calls: Sequence[LayerCall], images: Tensor, tests: DrawTests) -> Tensor:
    """Return the engine's outputs, with all the weights of a pass."""
    by_layer = calls_by_layer(calls)
    with limited(1):
        for call in calls:
            tests.take(call)
    worker.given = lambda layer, number: by_layer[layer][number]
    try:
        worker.start(0, torch.arange(len(images)))
        before = random_state()
        found = output_tensor(worker.model(images))
        require_no_draws(drew=random_state() != before)
        worker.finish()
    finally:
        worker.given = None
    return found


def require_repeated(wanted: Tensor, found: Tensor, whose: str) -> None:
    """Refuse a sampler that computes something else than the model's own forward with the same weights.

    Args:
        wanted: The outputs of the own forward.
        found: Those of the sampler.
        whose: How messages call the sampler: ``"the engine's"``.

    Raises:
        Unsupported: They differ by more than float tolerance.
    """
    gap = difference(wanted, found)
    if not 0 <= gap <= tolerance(wanted):
        amount = "shape" if gap < 0 else f"{gap:.2g} of the outputs' scale"
        raise Unsupported(f"with the weights of its own forward {whose} outputs differ by {amount}")


def require_independent_images(together: Tensor, apart: Sequence[Tensor]) -> None:
    """Refuse a network whose output for an image depends on others.

    Args:
        together: Outputs for some images.
        apart: Those of the same pass for each image alone.

    Raises:
        Unsupported: They differ by more than float tolerance.
    """
    gap = difference(together, torch.cat([*apart]))
    if not 0 <= gap <= tolerance(together):
        raise Unsupported("its output for an image depends on the images beside it")
