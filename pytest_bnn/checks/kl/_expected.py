"""The weight of the KL term beside the one that was declared, in units of the data term."""

from __future__ import annotations

from pytest_bnn.checks.kl._beside import DataTerm, data_term_of
from pytest_bnn.checks.kl._judgement import Judgement
from pytest_bnn.checks.kl._reading import Declared, Reading


def of_the_weight(judgement: Judgement, reading: Reading) -> tuple[str, str]:
    """Return what is wrong with the weight beside what was declared, and what to do; both empty where nothing is.

    It is taken in units of the data term where its size shows.
    """
    value, declared, expected = reading.found.value, judgement.declared, judgement.expected
    if expected is None and declared.num_data is None:
        return "", ""
    beside = data_term_of(judgement.subject, judgement.layers, reading.first)
    plain = expected is None or judgement.near(value, expected)
    if plain and (beside.times is None or declared.kl_weight is not None):
        return "", ""
    units = beside.units(value)
    if declared.kl_weight is not None:
        right: tuple[float, ...] = (declared.kl_weight,)
    else:
        right = _right(declared, beside, summed=reading.found.convention == "sum")
        if _may_be_by_examples(declared, beside, reading, units):
            return "", ""
        if not right and declared.num_batches is None:
            return "", ""
    if any(judgement.near(one, weight) for one in units for weight in right):
        return "", ""
    if declared.kl_weight is not None or beside.times is None:
        return _another_weight(value, right[0] if expected is None else expected)
    return _beside_what(judgement, reading, beside)


def _right(declared: Declared, beside: DataTerm, *, summed: bool) -> tuple[float, ...]:
    """Return the weights, in units of the data term, that are right by what was declared."""
    found = []
    if declared.num_data is not None and summed and beside.over != "sum":
        found += [1 / declared.num_data / each for each in beside.per_example]
    if declared.num_batches is not None:
        if not (summed and beside.over == "mean" and beside.times is not None):
            found.append(1 / declared.num_batches)
        if not summed and beside.over != "mean":
            # The library's own mean of a batch, and its share of the KL, both times the number of labels.
            found += [count / declared.num_batches for count in beside.counts]
    return tuple(found)


def _may_be_by_examples(declared: Declared, beside: DataTerm, reading: Reading, units: tuple[float, ...]) -> bool:
    """Say whether a summed KL may be divided by the number of examples, which was not said, or not in which units."""
    if reading.found.convention != "sum" or beside.over == "sum" or declared.num_batches is None:
        return False
    if declared.num_data is not None and beside.times is not None:
        return False
    return min(units) * declared.num_batches <= 0.5 + 1e-6  # for batches of two or more


def _beside_what(judgement: Judgement, reading: Reading, beside: DataTerm) -> tuple[str, str]:
    value, declared = reading.found.value, judgement.declared
    assert beside.times is not None
    ratio = beside.units(value)[0]
    data = f"a data term that is a {beside.over} over examples" + (
        "" if judgement.near(beside.times, 1) else f", times {beside.times:.4g}"
    )
    summed_beside_mean = reading.found.convention == "sum" and beside.over == "mean"
    if summed_beside_mean and declared.num_data is not None:
        times = f"{ratio * declared.num_data:.4g} times the expected 1 / {declared.num_data} examples"
    elif summed_beside_mean:
        times = "expected 1 / number of examples, far below 1 / number of batches"
    else:
        batches = declared.num_batches
        assert batches is not None
        times = f"{ratio * batches:.4g} times the expected 1 / {batches} batches"
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
