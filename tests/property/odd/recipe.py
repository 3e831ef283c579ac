"""Recipes of healthy subjects: plain values, of which `subject` makes what is audited."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import torch
from hypothesis import strategies as st

from tests.property.odd.architectures import ARCHITECTURES
from tests.property.odd.losses import KLS, TERMS, DataTerm
from tests.property.odd.shapes import SHAPES, TWICE, Shape

ALL: dict[str, Shape] = {**SHAPES, **ARCHITECTURES}

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


WRAPPERS = ("none", "a class", "DataParallel")

OPTIMIZERS = ("AdamW", "SGD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Plain values, of which `subject` makes what is audited: an example that fails can be read and repeated.

    Attributes:
        term: The data term of the loss, of those that `TERMS` has for what the outputs mean.
        kl: The KL term of the loss, of `KLS`.
        backward: Whether the loss runs backward itself, part by part.
        steps: Steps of training, each on the whole batch; 0 leaves the conversion as it is.
        declared: What is said of the KL's weight.
        train: Whether the model is handed over in train mode.
    """

    shape: str = "scores"
    width: int = 4
    depth: int = 1
    seed: int = 0
    dtype: str = "float32"
    type: Literal["Reparameterization", "Flipout"] = "Reparameterization"
    delta: float = 0.05
    noise: str = "the library's"
    wrapper: str = "none"
    teacher: bool = True
    labels: bool = True
    loss: bool = True
    term: str = ""
    kl: str = "get_kl_loss"
    backward: bool = False
    steps: int = 0
    optimizer: str = "AdamW"
    declared: str = "nothing"
    train: bool = False


def term_of(recipe: Recipe) -> DataTerm:
    """Return the data term of a recipe, the first of its kind where it names none."""
    terms = TERMS[ALL[recipe.shape].meaning]
    return terms[recipe.term] if recipe.term else next(iter(terms.values()))


def healthy(recipe: Recipe) -> Recipe:
    """Return each forward pass noise of its own where several are run backward at once (A1), and where layers share."""
    term = term_of(recipe)
    at_once = term.together or (term.several and not recipe.backward)
    own = recipe.noise == "fresh buffers" or (recipe.noise == "local" and recipe.type == "Reparameterization")
    # What `local` leaves the library's: layers that are not linear.
    own = own and not (at_once and recipe.noise == "local" and recipe.shape not in ("scores", "shares", "side"))
    if own or (recipe.shape not in TWICE and not at_once):
        return recipe
    return replace(recipe, noise="fresh buffers")


def drawn(random: Random) -> Recipe:
    """Draw a recipe; one in ten is of a large architecture, which takes as long as five others."""
    choose = random.choice
    shape = choose([*2 * list(SHAPES), *list(ARCHITECTURES)])
    return healthy(
        Recipe(
            shape=shape,
            width=random.randint(4, 12),
            depth=random.randint(1, 2),
            seed=random.randint(0, 1000),
            dtype=choose(list(DTYPES)),
            type=choose(["Reparameterization", "Flipout"]),
            delta=choose([0.05, 0.02, 0.1]),
            noise=choose(["the library's", "fresh buffers", "local"]),
            wrapper=choose(WRAPPERS),
            teacher=choose([True, True, False]),
            labels=choose([True, True, True, False]),
            loss=choose([True, True, True, False]),
            term=choose(list(TERMS[ALL[shape].meaning])),
            kl=choose(list(KLS)),
            backward=choose([False, False, True]),
            steps=choose([0, 3, 6]),
            optimizer=choose(OPTIMIZERS),
            declared=choose(["nothing", "num_batches", "num_data", "both", "kl_weight"]),
            train=choose([True, False]),
        )
    )


def recipes() -> st.SearchStrategy[Recipe]:
    """Generate recipes of all kinds evenly: of thirty that are drawn choice by choice, two had a loss."""
    return st.randoms(use_true_random=True).map(drawn)
