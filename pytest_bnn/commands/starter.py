"""The files that ``pytest-bnn init`` writes: a module with what is audited, a test or a table that audits it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_HEADER = '''\
"""What is audited: the network, and what an audit needs to know about it.

{use}
"""

from __future__ import annotations
'''

_EXAMPLE = '''
from functools import cache

import torch
from pytest_bnn import convert, digits, kl
from torch import Tensor, nn

#: Training batches an epoch: the KL term is expected with the weight 1 / BATCHES.
BATCHES = 45


@cache
def teacher() -> nn.Module:
    """Return the deterministic network: yours, from its checkpoint.

    Here a small one is trained on the spot, for a few seconds.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    images, labels = digits("train")
    for _ in range(10):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    return network.eval()


def bayesian() -> nn.Module:
    """Return the Bayesian network, as you converted and trained it."""
    return convert(teacher(), moped_delta=0.1)


def held_out() -> tuple[Tensor, Tensor]:
    """Return examples that training has not seen; a Dataset or a DataLoader will do."""
    return digits("held_out")


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss that trains the Bayesian network, for one of BATCHES batches."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels) + kl(model) / BATCHES
'''

_BAYESIAN = '''

def bayesian() -> nn.Module:
    """Return the Bayesian network, as you converted and trained it."""
    network: nn.Module = make_bayesian()
{state}    return network.eval()
'''

_STATE = """\
    # Its names are those of the saved network, or this raises.
    state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    network.load_state_dict(state)
"""

_SAFE_STATE = """\
    # Its names are those of the saved network, or this raises.
    network.load_state_dict(load_file(CHECKPOINT))
"""

#: Of each part beside the network: its function where the user has one, and what stands there where he has none.
_OTHERS = {
    "teacher": (
        '''

def teacher() -> nn.Module:
    """Return the deterministic network that it was converted from."""
    network: nn.Module = make_teacher()
    return network.eval()
''',
        """

# The deterministic network that it was converted from: with it, an audit compares them.
#
# def teacher() -> nn.Module:
#     return ...
""",
    ),
    "data": (
        '''

def held_out() -> Any:
    """Return examples that training has not seen."""
    return make_data()
''',
        """

# Examples that training has not seen, best with labels: with them, passes are judged.
#
# def held_out() -> tuple[Tensor, Tensor]:
#     return images, labels
""",
    ),
    "loss": (
        '''

def loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss that trains the Bayesian network, for one batch."""
    value: Tensor = training_loss(model, batch)
    return value
''',
        """

# The loss that trains the Bayesian network: with it, its KL term is judged.
#
# def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
#     images, labels = batch
#     return cross_entropy(model(images), labels) + get_kl_loss(model) / BATCHES
""",
    ),
}

#: How each part is called in the module, and the function of the user that it calls.
FUNCTIONS = {"model": "bayesian", "teacher": "teacher", "data": "held_out", "loss": "loss"}
_IMPORTED = {"model": "make_bayesian", "teacher": "make_teacher", "data": "make_data", "loss": "training_loss"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Starter:
    """What is known of a network: functions of the user by part, as ``MODULE:FUNCTION``; none for the example."""

    name: str
    parts: Mapping[str, str]
    checkpoint: str = ""
    batches: int | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The parts that the module has."""
        return tuple(part for part in FUNCTIONS if not self.parts or part in self.parts)

    @property
    def has_batches(self) -> bool:
        """Whether the module has a number of batches."""
        return not self.parts or self.batches is not None

    def module(self, folder: Path, *, table: bool) -> str:
        """Return the module; ``folder`` is where it will lie, which tells whose imports are the user's own."""
        use = "pytest pyproject.toml" if table else f"pytest test_{self.name}.py"
        header = _HEADER.format(use=f"Audit it with: {use} --bnn-report=audit.html")
        if not self.parts:
            example = _EXAMPLE if self.batches is None else _EXAMPLE.replace("= 45", f"= {self.batches}")
            return header + example
        text = header + self._imports(folder)
        if self.checkpoint:
            text += f"\n#: The state of the network that is judged.\nCHECKPOINT = {_quoted(self.checkpoint)}\n"
        if self.batches is not None:
            text += "\n#: Training batches an epoch: the KL term is expected with the weight 1 / BATCHES.\n"
            text += f"BATCHES = {self.batches}\n"
        state = "" if not self.checkpoint else _SAFE_STATE if self._safe else _STATE
        text += _BAYESIAN.format(state=state)
        return text + "".join(_OTHERS[part][part not in self.parts] for part in _OTHERS)

    def test(self) -> str:
        """Return the test of the module."""
        arguments = [f"teacher={self.name}.teacher()"] if "teacher" in self.given else []
        arguments += [f"data={self.name}.held_out()"] if "data" in self.given else []
        arguments += [f"loss={self.name}.loss"] if "loss" in self.given else []
        arguments += [f"num_batches={self.name}.BATCHES"] if self.has_batches else []
        arguments.append(f"factory={self.name}.bayesian")
        given = "".join(f"        {one},\n" for one in arguments)
        return f'''\
"""Claims about the network of {self.name}.py."""

from __future__ import annotations

from pytest_bnn import Audit

import {self.name}


def test_every_claim(bnn_audit: Audit) -> None:
    """What was not given is not judged, and the report says how to give it."""
    run = bnn_audit(
        {self.name}.bayesian(),
{given}    )
    run.raise_for_failures()
'''

    def table(self) -> str:
        """Return the table of the module in pyproject.toml."""
        lines = [f"[tool.pytest-bnn.subjects.{self.name}]"]
        lines += [f'{part} = "{self.name}:{FUNCTIONS[part]}"' for part in self.given]
        batches = 45 if self.batches is None else self.batches
        lines += [f"num-batches = {batches}"] if self.has_batches else []
        return "\n".join(lines) + "\n"

    @property
    def _safe(self) -> bool:
        return self.checkpoint.endswith(".safetensors")

    def _imports(self, folder: Path) -> str:
        """Return the imports in the order that ruff and isort give them: others' packages, then the user's own."""
        others = ["import torch\n"] if self.checkpoint and not self._safe else []
        others += ["from safetensors.torch import load_file\n"] if self._safe else []
        others.append(f"from torch import {'Tensor, ' if 'loss' in self.parts else ''}nn\n")
        own: list[str] = []
        for part, name in self.parts.items():
            module, _, attribute = name.partition(":")
            line = f"from {module} import {attribute} as {_IMPORTED[part]}\n"
            (own if _is_own(module, folder) else others).append(line)
        text = "\nfrom typing import Any\n" if {"data", "loss"} & self.parts.keys() else ""
        text += "\n" + "".join(sorted(others, key=lambda line: (line.startswith("from"), line.lower())))
        return text + ("\n" + "".join(sorted(own, key=str.lower)) if own else "")


def _is_own(module: str, folder: Path) -> bool:
    top = module.partition(".")[0]
    return any((root / f"{top}.py").is_file() or (root / top).is_dir() for root in (folder, folder / "src"))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
