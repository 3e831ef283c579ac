"""What a converted network must do: run, agree with its teacher, draw its posterior, save, load and repeat itself."""

from __future__ import annotations

import copy
import io
from collections import defaultdict
from itertools import combinations

import torch
from torch import Tensor, nn

from pytest_bnn.errors import ConversionError
from pytest_bnn.libraries.capture import capture
from pytest_bnn.libraries.posterior import KlError, PosteriorTensor, bayesian_layers, kl, zero_sigma
from pytest_bnn.network.comparing import first_parting, tolerance, traced
from pytest_bnn.network.isolation import undisturbed
from pytest_bnn.properties.trial import PropertyError, Trial, evaluated, named, outputs, raising, run, same

#: The rate at which `noise_is_posterior` fails a right conversion, over all its tests: one in a billion.
ERROR_RATE = 1e-9

#: Draws of each tensor that `noise_is_posterior` asks for, and the passes that it may take for them.
_DRAWS, _MIN_PASSES, _MAX_PASSES = 600, 4, 40

#: Relative error of a KL in the layers' dtype against float64; sums over a tensor, as in `checks.kl`.
_KL_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE_KL_TOLERANCE = 5e-2


def forward_runs(trial: Trial) -> None:
    """The forward runs, and gives as many tensors, of the same shapes and dtypes, finite where the teacher's are."""
    name = "forward_runs"
    for before, after in _paired(name, trial, trial.outputs(name)):
        if before.dtype != after.dtype:
            raise PropertyError(name, f"the teacher's output is {before.dtype}, the converted network's {after.dtype}")
        if bool(before.isfinite().all()) and not bool(after.isfinite().all()):
            bad = [
                t.path
                for layer in bayesian_layers(trial.result)
                for t in layer.tensors
                if not bool(t.rho.isfinite().all())
            ]
            raise PropertyError(name, "the outputs are NaN or infinite, and the teacher's are finite", bad)


def mean_equals_teacher(trial: Trial) -> None:
    """With every sigma at 0 the outputs are the teacher's, to float tolerance relative to the largest activation.

    A converter that starts from random weights (MOPED off) cannot have this property: skip it there.
    """
    name = "mean_equals_teacher"
    with evaluated(trial.network, seed=trial.seed), traced(trial.network) as calls:
        trial.network(trial.x)
    largest = max((float(call.output.abs().max()) for call in calls if call.output.numel()), default=0.0)
    for before, after in _paired(name, trial, trial.outputs(name, mean=True)):
        apart = float((before.double() - after.double()).abs().max()) if before.numel() else 0.0
        if not apart <= tolerance(before, after) * largest:
            with evaluated(trial.result, seed=trial.seed), zero_sigma(trial.result), traced(trial.result) as now:
                trial.result(trial.x)
            where = first_parting(calls, now)
            text = (
                f"with every sigma at 0 the outputs differ from the teacher's by {apart:.3g} (its largest activation "
            )
            text += f"is {largest:.3g})" + (f"; first at {named(where.path)} ({where.kind})" if where else "")
            raise PropertyError(name, text, [where.path] if where else [])


def _paired(name: str, trial: Trial, after: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    before = trial.expected()
    shapes = [list(t.shape) for t in before], [list(t.shape) for t in after]
    if shapes[0] != shapes[1]:
        raise PropertyError(name, f"the outputs have the shapes {shapes[1]}, the teacher's {shapes[0]}")
    return list(zip(before, after, strict=True))


def kl_is_closed_form(trial: Trial) -> None:
    """The KL term is there, finite, and the closed form of mu, sigma and prior.

    Accepted are the sum over all weights and the library's convention, the sum over tensors of the mean over each.
    Source: the KL divergence of two Gaussians, as in Kingma and Welling 2014, appendix B.
    """
    name = "kl_is_closed_form"
    tensors = [tensor for layer in bayesian_layers(trial.result) for tensor in layer.tensors]
    try:
        with undisturbed(trial.result, seed=trial.seed):
            value = kl(trial.result)
    except KlError as error:
        path = str(error).rpartition(", in ")[2].partition(" ")[0]
        raise PropertyError(name, f"kl_loss() raised {error}", [path]) from error
    if value is None:
        raise PropertyError(name, "the model has no KL term: bayesian-torch's get_kl_loss gives None")
    found, sums = float(value.detach()), [(tensor.kl_sum(), tensor) for tensor in tensors]
    wanted = {
        "the sum over tensors of their means": sum(s / max(1, t.count) for s, t in sums),
        "the sum over all weights": sum(s for s, _ in sums),
    }
    allowed = max(_KL_TOLERANCE.get(t.mu.dtype, _COARSE_KL_TOLERANCE) for t in tensors) if tensors else 0.0
    if not any(abs(found - value) <= allowed * max(abs(value), 1e-3) for value in wanted.values()):
        closed = ", ".join(f"{text} is {value:.6g}" for text, value in wanted.items())
        raise PropertyError(name, f"the KL term is {found:.6g}; in closed form {closed}", [t.path for _, t in sums])


def noise_is_posterior(trial: Trial) -> None:
    """The weights that forward passes really use are draws of the posterior, fresh for every pass and layer.

    Standardised draws ``(w - mu) / sigma``, seen at the functional call, are tested per tensor for a mean of 0 and a
    variance of 1 with the exact normal and chi-square distributions, all at a joint rate of `ERROR_RATE`, and for
    being repeated, between passes or layers, exactly. Weights whose sigma is 0 or drowned by the rounding of mu are
    left out, and so are layers that compute by other means than a functional call of torch. A tensor of which nothing
    is left, because every sigma is below the rounding of a mu that is not 0, has no posterior to draw from.
    """
    from scipy import stats

    _require_width(trial)
    draws = _draws(trial)
    groups = [(t.name, t.path, torch.stack(passes).flatten()) for t, passes in draws.values()]
    groups.append(
        ("all tensors together", "", torch.cat([torch.zeros(0, dtype=torch.double), *(z for *_, z in groups)]))
    )
    rate = ERROR_RATE / (4 * len(groups))
    for text, path, z in groups:
        n = len(z)
        if n == 0:
            continue
        squares = float((z * z).sum())
        if not abs(float(z.sum())) <= stats.norm.isf(rate) * n**0.5:
            text = f"the noise of {text} has the mean {float(z.mean()):.3g} in units of sigma, over {n} draws"
            raise PropertyError("noise_is_posterior", text, [path])
        if not stats.chi2.ppf(rate, n) <= squares <= stats.chi2.isf(rate, n):
            text = f"the noise of {text} has {(squares / n) ** 0.5:.3g} times the posterior's sigma, over {n} draws"
            raise PropertyError("noise_is_posterior", text, [path])
    _require_fresh(draws)


_Draws = dict[tuple[str, str], tuple[PosteriorTensor, list[Tensor]]]


def _draws(trial: Trial) -> _Draws:
    """Return the standardised draws of each tensor, of the first call in each of some passes."""
    found: _Draws = {}
    sizes = [t.count for layer in bayesian_layers(trial.result) for t in layer.tensors if t.count]
    passes = min(_MAX_PASSES, max(_MIN_PASSES, -(-_DRAWS // min(sizes, default=_DRAWS))))
    with evaluated(trial.result, seed=trial.seed):
        for _ in range(passes):
            seen = set()
            with capture(trial.result) as calls, raising("noise_is_posterior", "the forward", trial.result):
                trial.result(trial.x)
            for call in calls:
                for tensor, noise in call.noise():
                    key = (tensor.path, tensor.role)
                    if key not in seen:
                        seen.add(key)
                        found.setdefault(key, (tensor, []))[1].append(_standardised(tensor, noise))
    return found


def _standardised(tensor: PosteriorTensor, noise: Tensor) -> Tensor:
    sigma, mu = tensor.sigma, tensor.mu.detach()
    seen = (sigma > 0) & sigma.isfinite() & (torch.finfo(mu.dtype).eps * mu.abs() <= sigma / 10)
    return (noise[seen].double() / sigma[seen].double()).flatten()


def _require_width(trial: Trial) -> None:
    """Refuse a tensor whose noise no pass can see: each mu + sigma * eps is mu again."""
    for layer in bayesian_layers(trial.result):
        for tensor in layer.tensors:
            mu, sigma = tensor.mu.detach(), tensor.sigma
            judged = (mu != 0) & mu.isfinite() & sigma.isfinite()
            lost = judged & (sigma < torch.finfo(mu.dtype).eps / 8 * mu.abs())
            if bool(judged.any()) and bool((lost == judged).all()):
                text = (
                    f"every sigma of {tensor.name} is below the rounding of its mu (the largest is "
                    f"{float(sigma[judged].max()):.3g}): all passes use the same weights"
                )
                raise PropertyError("noise_is_posterior", text, [tensor.path])


def _require_fresh(draws: _Draws) -> None:
    """Refuse noise that comes twice; one draw of one number may, by rounding, so it takes two."""
    large = [(tensor, passes) for tensor, passes in draws.values() if passes and passes[0].numel() > 1]
    for tensor, passes in large:
        for one, other in combinations(passes[:6], 2):
            if torch.equal(one, other):
                text = f"the noise of {tensor.name} is the same in two passes"
                raise PropertyError("noise_is_posterior", text, [tensor.path])
    by_size: defaultdict[int, list[tuple[PosteriorTensor, Tensor]]] = defaultdict(list)
    for tensor, passes in large:
        by_size[passes[0].numel()].append((tensor, torch.stack(passes)))
    for group in by_size.values():
        for (tensor, one), (twin, other) in combinations(group, 2):
            if len(one) == len(other) and bool(torch.isclose(one, other, rtol=1e-3, atol=1e-3).all()):
                text = f"{tensor.name} and {twin.name} draw the same noise"
                raise PropertyError("noise_is_posterior", text, [twin.path, tensor.path])


def state_dict_round_trip(trial: Trial) -> None:
    """What was saved after training loads strictly into another conversion, which then is the same model."""
    name = "state_dict_round_trip"
    with raising(name, "a second conversion"):
        other = run(trial.convert, copy.deepcopy(trial.network), trial.seed + 1)
    file = io.BytesIO()
    with undisturbed(trial.result, seed=trial.seed):
        with torch.no_grad():
            for parameter in trial.result.parameters():
                parameter.mul_(0.75)
        torch.save(trial.result.state_dict(), file)
        file.seek(0)
        with raising(name, "loading"):
            other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        trained, loaded = trial.result.state_dict(), other.state_dict()
        for key, value in trained.items():
            if isinstance(value, Tensor) and not same(value, loaded[key]):
                raise PropertyError(name, f"{key} came back with other values", [key.rpartition(".")[0]])
        for before, after in zip(trial.outputs(name), outputs(other, trial.x, trial.seed), strict=True):
            if not same(before, after):
                raise PropertyError(
                    name, "from the same seed, the loaded network gives other outputs than the saved one"
                )
        if not _equal_kl(trial.result, other):
            raise PropertyError(name, "the loaded network has another KL term than the saved one")


def _equal_kl(one: nn.Module, other: nn.Module) -> bool:
    try:
        values = [kl(one), kl(other)]
    except KlError:  # `kl_is_closed_form` says so
        return True
    if values[0] is None or values[1] is None:
        return values[0] is values[1]
    return same(values[0], values[1])


def seeds_decide(trial: Trial) -> None:
    """Equal seeds give equal conversions and equal outputs, to the bit."""
    with raising("seeds_decide", "a second conversion"):
        again = run(trial.convert, copy.deepcopy(trial.network), trial.seed)
    one, other = trial.result.state_dict(), again.state_dict()
    if one.keys() != other.keys():
        raise PropertyError("seeds_decide", "two conversions from the same seed have other names in their state_dict")
    for key, value in one.items():
        if isinstance(value, Tensor) and not same(value, other[key]):
            text = f"{key} differs between two conversions from the same seed"
            raise PropertyError("seeds_decide", text, [key.rpartition(".")[0]])
    first, second = trial.outputs("seeds_decide"), trial.outputs("seeds_decide")
    if not all(map(same, first, second)):
        raise PropertyError("seeds_decide", "two forward passes from the same seed give other outputs")


def twice_is_refused_or_idempotent(trial: Trial) -> None:
    """Converting the converted network again raises ConversionError, or gives the same posterior again."""
    name = "twice_is_refused_or_idempotent"
    try:
        with raising(name, "converting again"):
            again = run(trial.convert, copy.deepcopy(trial.result), trial.seed)
    except PropertyError as error:
        if isinstance(error.__cause__, ConversionError):
            return
        raise
    before, after = (
        {tensor.name: tensor for layer in bayesian_layers(model) for tensor in layer.tensors}
        for model in (trial.result, again)
    )
    if before.keys() != after.keys():
        text = f"converting again changed what is Bayesian: {', '.join(sorted(before.keys() ^ after.keys()))}"
        raise PropertyError(name, text)
    for key, tensor in before.items():
        if not same(tensor.mu, after[key].mu) or not same(tensor.rho, after[key].rho):
            raise PropertyError(name, f"converting again changed the posterior of {key}", [tensor.path])
