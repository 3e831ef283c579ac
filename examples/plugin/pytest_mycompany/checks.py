"""Our own claims."""

from pytest_bnn import Finding, Measurement, Subject, Threshold, Verdict, check
from pytest_bnn.checks.check import not_applicable
from pytest_bnn.checks.values import Positive


@check("mycompany.width", claim="In every tensor, the median of sigma / abs(mu) is at most the allowed one.")
def width(subject: Subject, *, allowed: Positive = 0.5) -> Finding:
    """Measure whether no posterior is wider than a share of its weights.

    Args:
        subject: The model alone.
        allowed: The largest median of sigma / abs(mu).
    """
    from pytest_bnn.libraries.posterior import bayesian_layers

    widths = {
        tensor.name: float((tensor.sigma / tensor.mu.detach().abs()).median())
        for layer in bayesian_layers(subject.model)
        for tensor in layer.tensors
    }
    if not widths:
        return not_applicable("the model has no Bayesian layer of a library that is known")
    widest = max(widths, key=widths.__getitem__)
    wide = [name for name in widths if not widths[name] <= allowed]
    return Finding(
        verdict=Verdict.FAIL if wide else Verdict.PASS,
        headline=f"{len(wide)} of {len(widths)} tensors are too wide; the widest is {widest} at {widths[widest]:.3g}",
        measurements=(Measurement(name="widest", value=widths[widest], note=widest),),
        threshold=Threshold(quantity="sigma / abs(mu)", observed=widths[widest], relation="<=", allowed=allowed),
        remedy="convert with a smaller moped_delta" if wide else "",
    )
