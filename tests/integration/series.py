"""A series of checkpoints of a very small network, audited by the command in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pytest_bnn.records.run import AuditRun
from tests.integration.test_many_checkpoints import environment, timeless

#: Each state has its number, which is noted when it is loaded; that takes a while or ends its process where asked to.
NET = """
import os
import pathlib
import signal
import time

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from pytest_bnn import convert
from torch import nn


class Numbered(nn.Sequential):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer("number", torch.zeros((), dtype=torch.int64))

    def load_state_dict(self, state, **more):
        number = int(state["number"])
        with open(os.environ.get("JUDGED", os.devnull), "a") as file:
            file.write(f"{number}\\n")
        time.sleep(float(os.environ.get("SLOWLY", 0)))
        deadly = pathlib.Path(os.environ.get("DEADLY", "none"))
        if deadly.name == str(number) and not deadly.exists():
            deadly.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load_state_dict(state, **more)


def teacher():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def bayesian():
    return Numbered(*convert(teacher(), moped_delta=0.1))


def held_out():
    images = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return images, teacher()(images).argmax(1)


def loss(model, batch):
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels) + get_kl_loss(model) / 45
"""

#: Identities and cheap claims: an audit of all checks takes a minute and a half for forty checkpoints.
CHECKS = "layers.replaced,mean.equals_teacher,kl.present,kl.loss,noise.varies"

#: What only the processes of one command have in their environment.
_MARK = "PYTEST_BNN_TEST_COMMAND"


def make(count: int) -> list[str]:
    """Write the network's module and its checkpoints into the current folder; return their names."""
    Path("series_net.py").write_text(NET, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("series_net_of_the_test", "series_net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = module.bayesian().state_dict()
    for number in range(count):
        path = Path(f"runs/{number:02}/last.pt")
        path.parent.mkdir(parents=True)
        moved = {name: value + number / count if "rho" in name else value for name, value in state.items()}
        torch.save({**moved, "number": torch.tensor(number)}, path)
    return [f"runs/{number:02}/last.pt" for number in range(count)]


def command(*more: str, checkpoints: str = "runs/*/last.pt", folder: str = "out") -> list[str]:
    """Return the command that audits them."""
    named = [f"--{part}=series_net:{part}" for part in ("teacher", "loss")]
    return [
        "audit", "--model=series_net:bayesian", *named, "--data=series_net:held_out", "--num-batches=45",
        f"--checks={CHECKS}", f"--checkpoints={checkpoints}", "-o", f"{folder}/index.html", *more,
    ]  # fmt: skip


def started(arguments: list[str], code: str = "", **variables: str) -> subprocess.Popen[str]:
    """Start the command in a session of its own; ``code`` is run before it, in the same process."""
    program = f"import sys\nfrom pytest_bnn import cli\n{code}\nsys.exit(cli.main({arguments!r}))"
    mark = {_MARK: f"{Path.cwd()}:", "OMP_NUM_THREADS": "1", "JUDGED": str(Path("judged.txt").absolute())}
    return subprocess.Popen(
        [sys.executable, "-c", program], env={**environment(), **mark, **variables}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def done(arguments: list[str], code: str = "", **variables: str) -> tuple[int, str]:
    """Run the command; return its exit code and all that it said."""
    process = started(arguments, code, **variables)
    said, _ = process.communicate(timeout=280)
    return process.returncode, said


def living() -> list[str]:
    """Return the processes that the commands of this folder started and that live, whatever their session."""
    mark, found = f"{_MARK}={Path.cwd()}:".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Wait; fail where it takes too long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def judged() -> list[int]:
    """Return the numbers of the states that were loaded to be judged, in their order, and forget them."""
    path = Path("judged.txt")
    numbers = [int(line) for line in path.read_text().split()] if path.exists() else []
    path.unlink(missing_ok=True)
    return numbers


def whole(folder: str = "out") -> dict[int, Path]:
    """Return the files of audits that can be read, by the number of their checkpoint."""
    found = {}
    for path in Path(folder).glob("runs-*.json"):
        run = AuditRun.from_json(path.read_text(encoding="utf-8"))
        found[int(run.provenance["checkpoint"].split("/")[1])] = path
    return found


def documents(folder: str) -> Mapping[str, dict[str, Any]]:
    """Return the audits of a folder without times and machines, by their files' names."""
    return {
        path.name: timeless(AuditRun.from_json(path.read_text(encoding="utf-8"))) for path in whole(folder).values()
    }


def rows(folder: str) -> list[dict[str, Any]]:
    """Return the rows of an index without their links."""
    document = json.loads(Path(folder, "index.json").read_text(encoding="utf-8"))
    return [{name: value for name, value in row.items() if name not in ("audit", "page")} for row in document["rows"]]
