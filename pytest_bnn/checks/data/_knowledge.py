"""What a teacher knows of labels: whether its answers fit them, by chance, in another order, or not at all."""

from __future__ import annotations

import torch

from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.counts import at_least_of_fair, at_most
from pytest_bnn.stats.intervals import clopper_pearson_lower, clopper_pearson_upper
from pytest_bnn.tasks.answers import Answers


def best_possible(answers: Answers) -> int:
    """Return the most answers that can be right, however they are assigned to the examples."""
    return int(torch.minimum(answers.said_counts, answers.label_counts).sum())


def claimed_wrongly(answers: Answers) -> float:
    """Return a p-value of "each answer is right with at least half of the probability that the teacher gives it".

    Judged by what is possible at all: the answers of each class, and the labels of each class, are counted, however
    they are paired. So a low accuracy alone says nothing here, and a teacher that says one class for all does, where
    the labels are many and it is sure.
    """
    return at_most(best_possible(answers), answers.sure / 2)


def chance(answers: Answers) -> float:
    """Return the share of answers that would be right, were answers and labels paired at random."""
    return float((answers.said_counts.double() * answers.label_counts).sum()) / len(answers) ** 2


def is_at_chance(answers: Answers, budget: Budget) -> bool:
    """Return whether nothing shows that the answers are better than chance, where knowledge would have shown.

    Knowledge is shown by an accuracy whose lower bound (Clopper and Pearson) is above chance, or by one class that the
    teacher says more often where it is the label than elsewhere (Fisher's exact test). It would have shown where the
    accuracy's upper bound is below the middle between chance and 1.
    """
    if len(answers) < 2 or says_the_commonest(answers):
        return False
    guess, share = chance(answers), budget.beta / 2
    if clopper_pearson_upper(answers.right, len(answers), budget.beta) >= (1 + guess) / 2:
        return False
    return clopper_pearson_lower(answers.right, len(answers), share) <= guess and _least_p(answers) > share


def says_the_commonest(answers: Answers) -> bool:
    """Return whether the teacher does no worse than always saying the label of more than half of the examples."""
    commonest = int(answers.label_counts.max()) if len(answers) else 0
    return 2 * commonest > len(answers) and answers.right >= commonest


def _least_p(answers: Answers) -> float:
    """Return the p-value of answers that know no class, by Fisher's exact test of each class and Bonferroni's bound."""
    from scipy.stats import hypergeom

    said, labels = answers.said_counts, answers.label_counts
    right = torch.bincount(answers.said[answers.said == answers.labels], minlength=answers.classes)
    tested = ((said > 0) & (labels > 0)).nonzero().flatten()
    if not len(tested):
        return 1.0
    counts = (right[tested] - 1, torch.full_like(tested, len(answers)), labels[tested], said[tested])
    found = torch.as_tensor(hypergeom.sf(*(column.numpy() for column in counts)))
    return float(found.min()) * len(tested)


def other_order(answers: Answers, error_rate: float) -> dict[int, int]:
    """Return which label each class of the teacher's fits, where the labels count the classes in another order.

    The order is found on one half of the examples and tested on the other, by the sign test over the examples on which
    the two orders differ. Classes change places only where the examples of none are worse off, so that a class that
    the teacher has not learned is no class in another place. Empty where no other order is surely better.
    """
    found, test = answers[0::2], answers[1::2]
    moved = _moved(found)
    if not moved or not len(test):
        return {}
    said = test.said.clone()
    for old, new in moved.items():
        said[test.said == old] = new
    better = int(((said == test.labels) & (test.said != test.labels)).sum())
    worse = int(((said != test.labels) & (test.said == test.labels)).sum())
    return moved if at_least_of_fair(better, better + worse) <= error_rate else {}


def _moved(answers: Answers) -> dict[int, int]:
    from scipy.optimize import linear_sum_assignment

    counts = torch.zeros(answers.classes, answers.classes, dtype=torch.float64)
    counts.index_put_((answers.said, answers.labels), torch.ones(len(answers), dtype=torch.float64), accumulate=True)
    # Where two orders are as good, that of the numbers counts.
    rows, columns = linear_sum_assignment((counts + 0.5 * torch.eye(len(counts))).numpy(), maximize=True)
    order = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    moved: dict[int, int] = {}
    for cycle in _cycles(order):
        if all(counts[old, order[old]] >= counts[order[old], order[old]] for old in cycle):
            moved |= {old: order[old] for old in cycle}
    return moved


def _cycles(order: dict[int, int]) -> list[list[int]]:
    left = {old for old, new in order.items() if old != new}
    cycles = []
    while left:
        cycle = [min(left)]
        while order[cycle[-1]] != cycle[0]:
            cycle.append(order[cycle[-1]])
        left -= {*cycle}
        cycles.append(cycle)
    return cycles
