"""The weight of the KL term beside the one that was declared, in units of the data term."""

from __future__ import annotations

from pytest_bnn.checks.kl._beside import data_term_of
from pytest_bnn.checks.kl._judgement import Judgement
from pytest_bnn.checks.kl._reading import Reading


def of_the_weight(judgement: Judgement, reading: Reading) -> tuple[str, str]:
    """Return what is wrong with the weight beside what was declared, and what to do; both empty where nothing is.

    It is taken in units of the data term where its size shows.
    """
    value, declared, expected = reading.found.value, judgement.declared, judgement.expected
    if expected is None and declared.num_data is None:
        return "", ""
    beside = data_term_of(judgement.subject, judgement.layers, reading.first)
    plain = expected is None or judgement.near(value, expected)
    if beside is None or (declared.kl_weight is not None and plain):
        return ("", "") if plain or expected is None else _another_weight(value, expected)
    ratio = value / beside.times
    data = f"a data term that is a {beside.over} over examples" + (
        "" if judgement.near(beside.times, 1) else f", times {beside.times:.4g}"
    )
    if declared.kl_weight is not None:
        return ("", "") if judgement.near(ratio, declared.kl_weight) else _another_weight(value, declared.kl_weight)
    summed_beside_mean = reading.found.convention == "sum" and beside.over == "mean"
    if summed_beside_mean and declared.num_data is not None:
        wanted, of = 1 / declared.num_data, f"1 / {declared.num_data} examples"
    elif summed_beside_mean and declared.num_batches is not None:
        if ratio * declared.num_batches <= 0.5 + 1e-6:
            return "", ""  # 1 / number of examples, for batches of two or more
        wanted, of = 0.0, "1 / number of examples, far below 1 / number of batches"
    elif declared.num_batches is not None:
        wanted, of = 1 / declared.num_batches, f"1 / {declared.num_batches} batches"
    else:
        return "", ""
    if wanted and judgement.near(ratio, wanted):
        return "", ""
    times = f"{ratio / wanted:.4g} times the expected {of}" if wanted else f"expected {of}"
    return (
        f"the KL term has weight {value:.6g} {reading.found.share}, beside {data}: {times}",
        "divide a KL that is summed over weights by the number of examples beside a mean over examples, and by the "
        "number of batches beside a sum; multiply both terms alike where gradients are accumulated",
    )


def _another_weight(value: float, expected: float) -> tuple[str, str]:
    return (
        f"the KL term has weight {value:.6g}, {value / expected:.4g} times the expected {expected:.6g}",
        "divide the KL term by the number of batches (or examples) that the data term is averaged over",
    )
