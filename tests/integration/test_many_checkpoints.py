"""Many checkpoints of one network: audited apart by any executor, resumed, merged; the same files whoever did it."""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pytest_bnn import audit_many, cli, replacing
from pytest_bnn.audit.named import Named
from pytest_bnn.checks import registry
from pytest_bnn.checks.choices import from_texts
from pytest_bnn.commands import command as exits
from pytest_bnn.data.checkpoints import found, load_into, read_state
from pytest_bnn.errors import InputError, WeightsError, WriteError
from pytest_bnn.many import engines
from pytest_bnn.many.series import audit_series
from pytest_bnn.many.work import Job, Work, forget, jobs_of, perform
from pytest_bnn.options import Level, Settings, Source
from pytest_bnn.records.collection import Collection, collect
from pytest_bnn.records.run import AuditRun

NET = """
import dataclasses
import os
import signal

import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from pytest_bnn import convert
from torch import nn

calls = 0


def teacher():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def bayesian():
    global calls
    calls += 1
    return convert(teacher(), moped_delta=0.1)


def held_out():
    images = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return images, teacher()(images).argmax(1)


class Deadly(nn.Sequential):
    def load_state_dict(self, state, **more):
        if any(bool(tensor.isnan().any()) for tensor in state.values()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load_state_dict(state, **more)


def deadly():
    return Deadly(*bayesian())

@dataclasses.dataclass
class Example:
    image: torch.Tensor
    number: torch.Tensor


class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, place):
        image = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(place))
        return Example(image=image, number=torch.tensor(place % 3))


def collated(examples):
    return Example(
        image=torch.stack([one.image for one in examples]), number=torch.stack([one.number for one in examples])
    )


class Records(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = bayesian()

    def forward(self, image, number=None):
        return self.inner(image)


def loader():
    return torch.utils.data.DataLoader(Examples(), batch_size=8, num_workers=1, shuffle=True, collate_fn=collated)


def unseeded():
    return torch.randn(24, 1, 4, 4)


class Stubborn(Records):
    def __deepcopy__(self, memo):
        raise RuntimeError("not this one")


def on_meta():
    return Records().to("meta")


def with_an_argument(width):
    return bayesian()
"""

CHECKS = ("layers.replaced", "mean.equals_teacher", "kl.present", "noise.varies")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "many_net.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    forget()
    yield tmp_path
    forget()
    sys.modules.pop("many_net", None)


def save(name: str, *, shift: float = 0.0, nan: bool = False, network: torch.nn.Module | None = None) -> str:
    """Write a checkpoint of the network, its rho moved by ``shift``."""
    import many_net  # type: ignore[import-not-found]

    network = network or many_net.bayesian()
    state = {key: value.clone() + (shift if "rho" in key else 0.0) for key, value in network.state_dict().items()}
    if nan:
        state[next(iter(state))].fill_(float("nan"))
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return name


def shared(folder: Path, model: str = "many_net:bayesian", **more: Any) -> Work:
    named = Named(model=model, teacher="many_net:teacher", data="many_net:held_out")
    return Work(named=named, checks=CHECKS, folder=str(folder), **more)


def audited(work: Work, files: Iterable[str], folder: str, **more: Any) -> list[tuple[Path, AuditRun]]:
    """Return the file and the audit of each checkpoint."""
    return audit_series(work, files, folder, keep=lambda path, run, _new: (path, run), **more)


def timeless(run: AuditRun) -> dict[str, Any]:
    """Return an audit without what another machine, or another moment, may say."""
    document: dict[str, Any] = json.loads(run.to_json())
    for check in document["checks"]:
        check["seconds"], check["test"] = 0.0, ""  # this test judges in its own process, too
    for name in ("created", "threads", "duration", "machine"):
        document["provenance"].pop(name, None)
    return document


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Name what differs in two documents."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [words for key in one for words in differences(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [words for number, pair in pairs for words in differences(*pair, f"{place}.{number}")]
    return [] if one == other else [f"{place}: {one!r} != {other!r}"]


def require_same(one: Iterable[tuple[Path, AuditRun]], other: Iterable[tuple[Path, AuditRun]]) -> None:
    """Require the same audits under the same names, but for times and machines."""
    first, second = ({path.name: timeless(run) for path, run in found} for found in (one, other))
    assert differences(first, second) == []


def test_executors_and_parts_give_the_same(folder: Path) -> None:
    """What a row says depends neither on who judged it nor on the order; threads of one process take turns."""
    files = [save(f"runs/{number}/last.safetensors", shift=number / 10) for number in range(3)]
    serial = audited(shared(folder), files, "serial")
    assert len(serial) == 3
    with ThreadPoolExecutor(2) as pool:
        threaded = audited(shared(folder), reversed(files), "threaded", executor=pool)
    require_same(serial, threaded)
    parts = [*audited(shared(folder), files[:2], "a"), *audited(shared(folder), files[2:], "b")]
    tables = [collect((path.name, "", run) for path, run in found) for found in (serial, threaded, parts)]
    assert all(table == tables[0] for table in tables)
    assert len({row.sha256 for row in tables[0].rows}) == 3


def test_how_many_processes_audit_a_series_is_no_change_of_an_audit(folder: Path) -> None:
    """Else an audit by two of them would not be that of one."""
    files, work = [save("0.safetensors")], shared(folder)
    said = {"jobs": Source(Level.COMMAND_LINE, "--jobs"), "samples": Source(Level.COMMAND_LINE, "--samples")}
    two = replace(work, settings=replace(work.settings, jobs=2, samples=9), setting_sources=said)
    ((path, run),) = audited(two, files, "two")
    assert [change.name for change in run.changed] == ["samples"]
    one = replace(two, settings=replace(two.settings, jobs=0), setting_sources={"samples": said["samples"]})
    require_same(audited(one, files, "one"), [(path, run)])


OWN = """
from pytest_bnn import Finding, Verdict, check


@check("mycompany.named", claim="The name is long enough.")
def named(subject, *, least: int = 1) -> Finding:
    verdict = Verdict.PASS if len(subject.name) >= least else Verdict.FAIL
    return Finding(verdict=verdict, headline=f"it is {len(subject.name)} long", remedy="rename it")
"""


@pytest.mark.nightly("a process of its own; every push has executors of this process, and the killed one")
def test_another_process_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a check of one's own, options, a severity, records from a shuffled loader with a worker of its own."""
    import many_net

    monkeypatch.setattr(engines, "processes", lambda _workers: engines.Processes(1))  # one takes long enough to start

    (folder / "conftest.py").write_text(OWN, encoding="utf-8")
    for number in range(2):
        save(f"runs/{number}/last.safetensors", shift=number / 10, network=many_net.Records())
    command = ["audit", "--model", "many_net:Records", "--data", "many_net:loader", "--checkpoints", "runs/*/last.*",
               "--checks", "mycompany.named,noise.varies", "--set", "mycompany.named.least=99", "--set",
               "mycompany.named.severity=warn"]  # fmt: skip
    codes = [cli.main([*command, "-o", "serial/index.html"])]
    codes.append(cli.main([*command, "-o", "apart/index.html", "--jobs", "2"]))
    assert codes == [exits.PASSED, exits.PASSED]
    serial, apart = (
        [(path, read_run(path)) for path in sorted(Path(name).glob("runs*.json"))] for name in ("serial", "apart")
    )
    require_same(serial, apart)
    assert [run["mycompany.named"].verdict for _, run in serial] == ["warn", "warn"]
    for name in ("index.json", "index.html"):
        assert Path("serial", name).read_bytes() == Path("apart", name).read_bytes()


def read_run(path: Path) -> AuditRun:
    return AuditRun.from_json(path.read_text(encoding="utf-8"))


def test_the_factory_is_called_once(folder: Path) -> None:
    """Each checkpoint goes into a copy of what it made."""
    import many_net

    files = [save(f"{number}.safetensors", shift=number / 10) for number in range(3)]
    before = many_net.calls
    audits = audited(shared(folder), files, "out")
    assert many_net.calls == before + 1
    assert len({run.subjects[0].sha256 for _, run in audits}) == 3


def test_only_what_is_missing_is_done_again(folder: Path) -> None:
    """Half a file, a changed checkpoint, other settings: done again; what is whole and the same: not."""
    files = [save(f"{number}.safetensors", shift=number / 10) for number in range(4)]
    first = audited(shared(folder), files, "out")
    whole, half, changed, gone = (path for path, _ in first)
    text = half.read_text(encoding="utf-8")
    half.write_text(text[: len(text) // 2], encoding="utf-8")
    gone.unlink()
    save("2.safetensors", shift=1.0)
    written = whole.stat().st_mtime_ns
    second = audited(shared(folder), files, "out")
    assert whole.stat().st_mtime_ns == written
    assert timeless(second[1][1]) == timeless(first[1][1])
    assert timeless(second[3][1]) == timeless(first[3][1])
    assert changed.is_file()
    assert timeless(second[2][1]) != timeless(first[2][1])
    settings = Settings(seed=3)
    again = audited(shared(folder, settings=settings), files, "out")
    assert {check.seed for _, run in again for check in run.checks} == {3}
    assert whole.stat().st_mtime_ns != written


def reimported() -> None:
    """Let the next import read the source again, as a new process does."""
    importlib.invalidate_caches()
    for name in ("many_net", "many_helper"):
        sys.modules.pop(name, None)


HELPER = "def scale():\n    return 1.0\n"
USES = """
import torch
from many_net import *


def shared_loss(model, batch):
    from many_helper import scale

    return scale() * model(batch[0]).mean()


def read():
    return torch.load("examples.pt")


class Others(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, place):
        return torch.full((1, 4, 4), float(place))
"""


def key_of(folder: Path, **more: Any) -> str:
    reimported()
    named: dict[str, Any] = {"model": "many_uses:bayesian", "teacher": "many_uses:teacher", "data": "many_uses:read"}
    named |= {"loss": "many_uses:shared_loss", "ood": "many_uses:Others", **more.pop("named", {})}
    sys.modules.pop("many_uses", None)
    one = Work(named=Named(**named), **{"checks": CHECKS, "folder": str(folder), **more})
    return jobs_of(one, ["a.safetensors"])[1][0].key


def rewritten(path: str, before: str, after: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    assert before in text
    Path(path).write_text(text.replace(before, after), encoding="utf-8")


def saved_anew() -> None:
    save("a.safetensors", shift=0.3)


CHANGES: dict[str, Callable[[], dict[str, Any] | None]] = {
    "checkpoint": saved_anew,
    "data": lambda: torch.save(torch.zeros(8, 1, 4, 4), "examples.pt"),
    "network": lambda: rewritten("many_net.py", "moped_delta=0.1", "moped_delta=0.2"),
    "loss, in a module that its module imports": lambda: rewritten("many_helper.py", "1.0", "2.0"),
    "own check": lambda: rewritten("conftest.py", "len(subject.name) >=", "len(subject.name) >"),
    "seed": lambda: {"settings": Settings(seed=1)},
    "checks": lambda: {"checks": CHECKS[:2]},
    "option": lambda: {"options": {"kl.loss": {"num_batches": 3}}},
    "choice": lambda: {"choices": from_texts(["noise.spread.severity=warn"], "--set")},
    "choice for a pattern": lambda: {"choices": from_texts(["noise.*.severity=warn"], "--set")},
    "fewer examples": lambda: {"named": {"images": 7}},
}


def test_what_changed_is_judged_anew(folder: Path) -> None:
    """Whatever an audit depends on; what is the same is the same, in whichever process, with however many threads."""
    (folder / "many_helper.py").write_text(HELPER, encoding="utf-8")
    (folder / "many_uses.py").write_text(USES, encoding="utf-8")
    (folder / "conftest.py").write_text(OWN, encoding="utf-8")
    (folder / "unrelated.py").write_text("", encoding="utf-8")
    torch.save(torch.ones(8, 1, 4, 4), "examples.pt")
    save("a.safetensors")
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    try:
        with registry.kept():
            first = key_of(folder)
            torch.rand(3)
            rewritten("unrelated.py", "", "x = 1")
            assert key_of(folder, settings=Settings(threads=2)) == first
            keys = [first, *(key_of(folder, **(change() or {})) for change in CHANGES.values())]
    finally:
        sys.dont_write_bytecode = kept
        reimported()
        sys.modules.pop("many_uses", None)
    assert len(set(keys)) == len(keys), dict(zip(["first", *CHANGES], keys, strict=True))


def test_a_module_that_changed_since_it_was_imported(folder: Path) -> None:
    """The code that would run is no longer that of the file, as in a notebook or a cluster's old worker."""
    save("a.safetensors")
    jobs_of(shared(folder), ["a.safetensors"])
    rewritten("many_net.py", "moped_delta=0.1", "moped_delta=0.2")
    with pytest.raises(InputError, match=r"many_net\.py changed since this process imported it"):
        jobs_of(shared(folder), ["a.safetensors"])


def test_what_draws_without_a_seed_is_the_same_everywhere(folder: Path) -> None:
    """Every process begins its factories with the seed of the settings; the process itself goes on as it was."""
    work = Work(named=Named(model="many_net:bayesian", data="many_net:unseeded"), folder=str(folder))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.random.get_rng_state()
        save("a.safetensors")
        state = torch.random.get_rng_state()
        found.append(jobs_of(work, ["a.safetensors"])[1][0].key)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not torch.equal(expected, state) or seed
    assert found[0] == found[1]


def test_a_process_that_has_other_data_judges_nothing(folder: Path) -> None:
    """It would say something of other examples than those that the index is of."""
    save("a.safetensors")
    work, (job,) = jobs_of(shared(folder), ["a.safetensors"])
    other = replace(job, shared={**job.shared, "data": "?", "versions": "?"})
    (check,) = AuditRun.from_json(perform(work, other)).checks
    assert check.verdict == "error"
    assert "has other data and versions than the one that started all" in check.headline
    assert len(AuditRun.from_json(perform(work, job)).checks) == len(CHECKS)


def test_checks_that_another_process_does_not_know(folder: Path) -> None:
    """Such as those of a script: said, not left out."""
    save("a.safetensors")
    work, (job,) = jobs_of(shared(folder), ["a.safetensors"])
    (check,) = AuditRun.from_json(perform(replace(work, known=("mine.rule",)), job)).checks
    assert "does not know the check 'mine.rule'" in check.headline


def test_a_checkpoint_that_changes_or_vanishes(folder: Path) -> None:
    """While the series runs; what could not even be read at the start stands in its row, too."""
    save("a.safetensors")
    Path("link.pt").symlink_to("nowhere.pt")
    work, jobs = jobs_of(shared(folder), ["a.safetensors", "link.pt"])
    save("a.safetensors", shift=0.1)
    said = [AuditRun.from_json(perform(work, job)).checks[0].headline for job in jobs]
    assert said == ["a.safetensors changed while the series ran", "there is no file 'link.pt'"]


def test_whatever_a_network_raises_stands_in_its_row(folder: Path) -> None:
    """In this process as in another one."""
    save("a.safetensors")
    for model, words in (
        ("many_net:on_meta", "the network has no memory for inner.1.mu_weight"),
        ("many_net:Stubborn", "judging it raised RuntimeError: not this one"),
    ):
        work, (job,) = jobs_of(Work(named=Named(model=model), folder=str(folder)), ["a.safetensors"])
        (check,) = AuditRun.from_json(perform(work, job)).checks
        assert words in check.headline
        assert check.verdict == "error"


class Breaking(Executor):
    """Ends, as a pool of processes does, when a job kills its worker; what was handed to it later is lost, too."""

    def __init__(self, deadly: str, rounds: list[int]) -> None:
        self.deadly, self.rounds, self.broken = deadly, rounds, False
        self.rounds.append(0)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do it here, or break."""
        future: Future[Any] = Future()
        self.rounds[-1] += 1
        self.broken = self.broken or bool(args and args[1].name == self.deadly)
        if self.broken:
            future.set_exception(BrokenProcessPool("a process ended"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_process_that_is_killed_loses_its_own_checkpoint_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """For lack of memory, say: the others are judged, each once, and the one is named."""
    files = [save(f"{number}.safetensors", shift=number / 10) for number in range(4)]
    files.insert(place, save("deadly.safetensors"))
    rounds: list[int] = []
    monkeypatch.setattr(engines, "processes", lambda _workers: Breaking("deadly.safetensors", rounds))
    require_the_others_judged(shared(folder), files)
    assert len(rounds) <= 4


def require_the_others_judged(work: Work, files: list[str]) -> None:
    told: list[str] = []
    audits = audited(work, files, "out", jobs=2, done=lambda job, *_: told.append(job.name))
    assert sorted(told) == sorted(files)
    verdicts = {run.checks[0].subject: run for _, run in audits}
    broken = verdicts.pop("deadly.safetensors")
    assert [(check.id, check.verdict) for check in broken.checks] == [("checkpoint", "error")]
    assert "ended before it was done" in broken.checks[0].headline
    assert all({check.id for check in run.checks} == set(CHECKS) for run in verdicts.values())


@pytest.mark.nightly("processes are started and killed: half a minute")
def test_a_process_that_is_really_killed(folder: Path) -> None:
    """By the system, in the middle."""
    files = [save(f"{number}.safetensors", shift=number / 10) for number in range(5)]
    files.insert(1, save("deadly.safetensors", nan=True))
    require_the_others_judged(shared(folder, "many_net:deadly"), files)


def test_processes_that_cannot_be_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error in place of as many as there are checkpoints."""
    files = [save(f"{number}.safetensors") for number in range(3)]

    class Dead(Breaking):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.broken = True
            return super().submit(fn, *args, **kwargs)

    monkeypatch.setattr(engines, "processes", lambda _workers: Dead("", []))
    with pytest.raises(InputError, match="no process can be started that audits checkpoints"):
        audited(shared(folder), files, "out", jobs=2)


class Failing(Executor):
    """Loses tasks in all the ways in which a cluster may."""

    def __init__(self) -> None:
        self.count = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do it here, or lose it."""
        future: Future[Any] = Future()
        self.count += 1
        if self.count == 3:
            raise RuntimeError("cannot schedule new futures")
        if self.count == 2:
            future.cancel()
            future.set_running_or_notify_cancel()
        elif self.count == 1:
            future.set_exception(ConnectionError("the node is gone"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_what_an_executor_loses_is_named_and_done_at_the_next_start(folder: Path) -> None:
    """An error of the cluster is no verdict on the model, and no reason to lose the others."""
    files = [save(f"{number}.safetensors", shift=number / 10) for number in range(4)]
    audits = audited(shared(folder), files, "out", executor=Failing())
    lost = [run.checks[0].headline for _, run in audits if run.checks[0].id == "checkpoint"]
    assert lost == [
        "the executor lost it (ConnectionError: the node is gone)",
        "the executor lost it (CancelledError: it was cancelled)",
        "the executor lost it (RuntimeError: cannot schedule new futures)",
    ]
    again = audited(shared(folder), files, "out")
    assert all({check.id for check in run.checks} == set(CHECKS) for _, run in again)


def test_an_interrupt_keeps_what_is_done(folder: Path) -> None:
    """The finished audits lie there whole; nothing else does."""
    files = [save(f"{number}.safetensors", shift=number / 10) for number in range(3)]

    def stop(_job: Job, _run: AuditRun, count: int, _of: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audited(shared(folder), files, "out", done=stop)
    done = sorted(Path("out").iterdir())
    assert len(done) == 2
    assert [AuditRun.from_json(path.read_text(encoding="utf-8")).verdict for path in done] == ["pass", "pass"]


class AtOnce(Executor):
    """Works in the thread that gives it a task; at the third it is interrupted."""

    count = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.count += 1
        if self.count == 3:
            raise KeyboardInterrupt
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_an_executor_that_works_in_this_thread_loses_nothing_that_is_done(folder: Path) -> None:
    """Each audit is written before the next task is given."""
    files = [save(f"{number}.safetensors", shift=number / 10) for number in range(3)]
    with pytest.raises(KeyboardInterrupt):
        audited(shared(folder), files, "out", executor=AtOnce())
    assert len(list(Path("out").iterdir())) == 2


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_leaves_stops_no_series(folder: Path, monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    """As ``2>&1 | head -1`` does."""
    for number in range(3):
        save(f"runs/{number}.safetensors", shift=number / 10)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as nobody, monkeypatch.context() as patched:
        patched.setattr(sys, stream, nobody)
        code = cli.main([*COMMAND, "--checkpoints", "runs/*", "-o", "a/index.html"])
    assert code == exits.PASSED
    assert len(Collection.from_json(Path("a/index.json").read_text(encoding="utf-8")).rows) == 3


COMMAND = ("audit", "--model", "many_net:bayesian", "--teacher", "many_net:teacher", "--data", "many_net:held_out",
           "--checks", ",".join(CHECKS))  # fmt: skip


def test_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An index with a row each, the worst first, whose links lead to reports; the exit code is that of the worst."""
    for number in range(3):
        save(f"runs/{number}/last.safetensors", shift=number / 10)
    wide = save("runs/wide/last.safetensors", nan=True)
    code = cli.main([*COMMAND, "--checkpoints", "runs/*/last.safetensors", "-o", "out/index.html"])
    said = capsys.readouterr()
    assert code == exits.FAILED, said
    assert "4 of 4" in said.err
    index = Collection.from_json(Path("out/index.json").read_text(encoding="utf-8"))
    assert index.rows[0].name == wide
    assert [row.verdict for row in index.rows] == ["fail", "pass", "pass", "pass"]
    for row in index.rows:
        assert (Path("out") / row.page).is_file()
        assert (Path("out") / row.audit).is_file()
    (Path("out") / index.rows[1].page).unlink()
    assert cli.main([*COMMAND, "--checkpoints", "runs/*/last.safetensors", "-o", "out/index.html"]) == exits.FAILED
    again = capsys.readouterr()
    assert again.err == "all 4 were done before\n"
    assert (Path("out") / index.rows[1].page).is_file()
    assert f"fail         {wide}: noise.varies" in again.out or f"fail         {wide}: mean" in again.out
    assert cli.main([*COMMAND, "--checkpoints", "runs/*/last.safetensors", "-o", "out/index.html", "-q"]) == code
    assert capsys.readouterr() == ("1 of 4 models fails, 3 pass\n", "")
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert page.index(wide) < page.index("runs/0/last.safetensors")
    own = [str(path) for path in Path("out").glob("*.json")]
    assert cli.main(["merge", *own, "-o", "out/index.html"]) == exits.FAILED
    assert cli.main(["merge", "out/index.json", *own, "-o", "other/index.html"]) == exits.FAILED
    elsewhere = Collection.from_json(Path("other/index.json").read_text(encoding="utf-8"))
    assert [row.page for row in elsewhere.rows] == [f"../out/{row.page}" for row in index.rows]
    assert Path("out/index.html").read_text(encoding="utf-8") == page
    assert Path("out/index.json").read_text(encoding="utf-8") == index.to_json()


def test_a_disk_that_is_full_in_the_middle(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One error that says how many are done and how to go on; the rest is done at the next start."""
    for number in range(4):
        save(f"{number}.safetensors", shift=number / 10)
    command = [*COMMAND, "--checkpoints", "*.safetensors", "-o", "out/index.html"]
    with monkeypatch.context() as patch:
        written: list[Path] = []

        def failing(place: Path, *more: Any) -> Any:
            written.append(place)
            if len(written) > 5:  # a report and its JSON each
                raise OSError(28, "No space left on device")
            return prepared(place, *more)

        prepared = replacing._prepared
        patch.setattr(replacing, "_prepared", failing)
        assert cli.main(command) == exits.BROKEN
    said = capsys.readouterr().err.splitlines()[-1]
    assert "json' could not be written (No space left on device)" in said
    words = "Of 4 checkpoints 2 are audited. Mend that and start the same again: an audit that lies there whole is not"
    assert words in said
    assert not Path("out/index.html").exists()
    assert len([read_run(path) for path in Path("out").glob("*.json")]) == 2
    assert cli.main(command) == exits.PASSED
    assert capsys.readouterr().err.startswith("2 of 4 were done before\n3 of 4: 2.safetensors: pass\n")


def test_a_folder_that_is_taken_away(folder: Path) -> None:
    """It is not made anew, as if nothing had been in it; what cannot be made is said."""
    names = [save(f"{number}.safetensors", shift=number / 10) for number in range(3)]

    def move(_job: Job, _run: AuditRun, count: int, _of: int) -> None:
        if count == 2:
            Path("out").rename("elsewhere")

    with pytest.raises(WriteError, match=r"'out' is no longer there\. Of 3 checkpoints 2 are audited"):
        audited(shared(folder), names, "out", done=move)
    assert not Path("out").exists()
    with pytest.raises(InputError, match=r"'0\.safetensors/out' cannot be made \(Not a directory\)"):
        audited(shared(folder), names, "0.safetensors/out")


def test_parts_that_were_made_with_other_data_and_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Merging refuses nothing; its output, the page and each row say so. The exit code is that of the verdict."""
    for number in range(3):
        save(f"{number}.safetensors", shift=number / 10)
    audit_many("many_net:bayesian", ["[01].safetensors"], folder="a", **PARTS)
    other = {**PARTS, "data": "many_net:unseeded", "images": 9}
    audit_many("many_net:bayesian", ["2.safetensors"], folder="b", **other)
    assert cli.main(["merge", "a/index.json", "b/index.json", "-o", "all/index.html"]) == exits.PASSED
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "All 3 models pass"
    rows = {row.name: row.made_with for row in Collection.from_json(Path("all/index.json").read_text("utf-8")).rows}
    assert rows["0.safetensors"] == rows["1.safetensors"]
    for line, what in zip(said[1:3], ("settings", "data"), strict=True):
        usual, odd = rows["0.safetensors"][what], rows["2.safetensors"][what]
        assert line == f"  not all were made with the same {what}: 2 with {usual}, 1 with {odd} (2.safetensors)"
        assert line[3:] in Path("all/index.html").read_text("utf-8")
        assert read_run(next(Path("b").glob("2*.json"))).provenance[f"audit {what}"].startswith(odd)
    assert said[3].startswith("index: ")
    assert rows["0.safetensors"]["versions"] == rows["2.safetensors"]["versions"]
    assert cli.main(["merge", "a/index.json", "-o", "one/index.html"]) == exits.PASSED
    assert "not all" not in capsys.readouterr().out


def test_the_index_states_the_sum_of_the_error_rates(folder: Path) -> None:
    """Each audit keeps its own; together they are more."""
    files = [save(f"{number}.safetensors", shift=number / 10) for number in range(3)]
    audits = audited(shared(folder), files, "out")
    index = collect((path.name, "", run) for path, run in audits)
    assert {row.alpha for row in index.rows} == {1e-6}
    assert index.alpha == pytest.approx(3e-6)


WRONG = {
    "no such file": (("--checkpoints", "none/*.pt"), "no checkpoint is called 'none/*.pt'"),
    "engine alone": (("--engine", "ray"), "--engine without --checkpoints"),
    "address alone": (("--checkpoints", "a.safetensors", "--ray-address", "auto"), "--ray-address without --engine"),
    "baseline": (("--checkpoints", "a.safetensors", "--baseline", "b.json"), "--baseline with --checkpoints"),
    "ctrf": (("--checkpoints", "a.safetensors", "--ctrf", "c.json"), "--ctrf with --checkpoints"),
    "jobs of a cluster": (
        ("--checkpoints", "a.safetensors", "--engine", "ray", "--ray-address", "auto", "--jobs", "2"),
        "--jobs with --ray-address",
    ),
    "no jobs": (("--checkpoints", "a.safetensors", "--jobs", "few"), "a whole number from 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    """One clear line, before anything is loaded."""
    arguments, words = WRONG[case]
    try:
        code: Any = cli.main([*COMMAND, *arguments])
    except SystemExit as error:
        code = error.code
    assert code == exits.USAGE
    assert words in capsys.readouterr().err


def test_merge_refuses_what_is_no_audit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says which file it is; the same audit counts once, an index of nothing does no harm."""
    Path("package.json").write_text("{}", encoding="utf-8")
    assert cli.main(["merge", "package.json", "-o", "index.html"]) == exits.USAGE
    assert "'package.json': the JSON is not an audit" in capsys.readouterr().err
    save("a.safetensors")
    audit_many("many_net:bayesian", "a.safetensors", folder="part", **PARTS)
    audit_many("many_net:bayesian", [], folder="empty", **PARTS)
    assert cli.main(["merge", "part/index.json", "empty/index.json", *map(str, Path("part").glob("a*.json"))]) == 0
    assert "The one model passes" in capsys.readouterr().out
    assert cli.main(["merge", "index.json"]) == exits.USAGE
    assert "no audit was given beside the index itself" in capsys.readouterr().err
    next(Path("part").glob("a*.json")).unlink()
    assert cli.main(["merge", "part/index.json"]) == exits.USAGE
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err


class Net(torch.nn.Module):
    """Two layers, one of them called like a wrapper's prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(2, 3)
        self.b = torch.nn.Linear(3, 1)


def _states() -> dict[str, tuple[Any, str]]:
    state = Net().state_dict()
    return {
        "missing": ({"a.weight": state["a.weight"]}, "it lacks a.bias, b.weight, b.bias"),
        "unexpected": ({**state, "c": torch.ones(1)}, "it holds c, which the network lacks"),
        "prefixed": ({f"module.{k}": v for k, v in state.items()}, "Every name begins with 'module.'"),
        "compiled": ({f"_orig_mod.{k}": v for k, v in state.items()}, "Every name begins with '_orig_mod.'"),
        "shape": ({**state, "a.bias": torch.ones(4)}, r"a.bias is \(4,\), the network's is \(3,\)"),
        "no state": ({"epoch": 3}, "holds no state_dict"),
        "a tensor": (torch.ones(3), "holds no state_dict"),
        "a wrapper's own": ({f"inner.net.{k}": v for k, v in state.items()}, r"begins with 'inner\.net\.'"),
        "complex": ({k: v.to(torch.complex64) for k, v in state.items()}, "a.weight is complex64, the network's is"),
        "whole numbers": ({**state, "a.bias": torch.ones(3, dtype=torch.int8)}, "a.bias is int8, the network's is"),
        "code": (Net(), "would execute code"),
    }


@pytest.mark.parametrize("case", _states())
def test_a_state_that_does_not_fit(tmp_path: Path, case: str) -> None:
    """The names tell what is wrong, and the network is as it was."""
    state, words = _states()[case]
    path, network = tmp_path / "state.pt", Net()
    torch.save(state, path)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=words):
        load_into(network, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_state_beside_an_optimizer(tmp_path: Path) -> None:
    """As training scripts save it."""
    path, state = tmp_path / "epoch.pt", Net().state_dict()
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"state": {}}}, path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in read_state(path).items())


class Tied(torch.nn.Module):
    """One tensor under two names, a layer without a shape yet, and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.lazy = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.LazyLinear(2)
        self.b.weight = self.a.weight
        self.step = 0

    def get_extra_state(self) -> Any:
        """Return what is no tensor."""
        return {"step": self.step}

    def set_extra_state(self, state: Any) -> None:
        """Take it back."""
        self.step = state["step"]


def test_states_of_unusual_networks(tmp_path: Path) -> None:
    """What is shared may stand in the file once; what has no shape yet takes that of the file."""
    saved, path = Tied(), tmp_path / "tied.pt"
    saved.lazy(torch.ones(1, 3))
    saved.step = 7
    state = saved.state_dict()
    del state["b.weight"]
    torch.save({"model": state}, path)
    network = Tied()
    load_into(network, path)
    assert network.b.weight is network.a.weight
    assert torch.equal(network.b.weight, saved.a.weight)
    assert (network.step, network.lazy.weight.shape) == (7, (2, 3))


def test_patterns_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file once, whatever its name holds; a folder is none, a link is one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.pt", "b[1].pt", "sub/c.pt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("link.pt").symlink_to("a.pt")
    Path("lost.pt").symlink_to("nowhere.pt")
    assert found(["*"]) == ["a.pt", "b[1].pt", "link.pt", "lost.pt"]
    assert found(["./a.pt", tmp_path / "a.pt", "a*", "sub/../a.pt"]) == ["a.pt"]
    assert found([Path("b[1].pt"), "**/c.pt"]) == ["b[1].pt", "sub/c.pt"]
    assert found(["~/a.pt"]) == [str(tmp_path / "a.pt")]
    with pytest.raises(InputError, match="'sub' is a folder, not a checkpoint"):
        found(["su*"])


PARTS: dict[str, Any] = {"data": "many_net:held_out", "checks": ["layers.replaced"]}


def test_in_python(folder: Path) -> None:
    """A pattern alone, no file at all, functions in place of names; what cannot be used is said before it is tried."""
    import many_net

    save("runs/0.safetensors")
    index = audit_many(many_net.bayesian, "runs/*.safetensors", folder="out", **PARTS)
    assert [row.name for row in index.rows] == ["runs/0.safetensors"]
    assert audit_many("many_net:bayesian", [], folder="none", **PARTS).rows == ()
    assert "There is no audit here" in Path("none/index.html").read_text(encoding="utf-8")
    Path("file").touch()
    wrong: dict[str, dict[str, Any]] = {
        "data is a Tensor, which other processes cannot import": {"data": torch.zeros(2000)},
        "jobs is 0": {"jobs": 0},
        "file/index.html' cannot be written": {"folder": "file"},
        "with_an_argument needs the argument width": {"model": "many_net:with_an_argument"},
        "the executor forks": {"executor": ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))},
    }
    for words, arguments in wrong.items():
        given = {"model": many_net.bayesian, "checkpoints": "runs/*", "folder": "out", **PARTS, **arguments}
        with pytest.raises(InputError, match=words):
            audit_many(**given)
    with pytest.raises(TypeError, match=r"audit_many\(\) got an unexpected keyword argument 'tacher'"):
        audit_many(many_net.bayesian, "runs/*", folder="out", tacher="many_net:teacher")


def test_only_rows_are_kept(folder: Path) -> None:
    """However many checkpoints there are, only those that are at work are in memory, and no file stays open."""
    for number in range(10):
        save(f"runs/{number}.safetensors", shift=number / 10)
    seen: list[tuple[int, int]] = []

    def done(_job: Job, _run: AuditRun, count: int, _of: int) -> None:
        if count not in (2, 10):
            return
        gc.collect()  # what waits for the collector is not kept
        alive = sum(type(one) is AuditRun for one in gc.get_objects())
        seen.append((alive, len(list(Path("/proc/self/fd").glob("*")))))

    with ThreadPoolExecutor(1) as executor:
        for more in ({"folder": "one"}, {"folder": "two", "executor": executor}, {"folder": "two"}):
            seen.clear()
            audit_many("many_net:bayesian", "runs/*", done=done, **more, **PARTS)
            assert len(seen) == 2
            (runs, files), (runs_later, files_later) = seen
            assert (runs_later <= runs + 3, files_later <= files + 3) == (True, True), seen  # of 8 more


SCRIPT = """
from pytest_bnn import audit_many

index = audit_many("many_net:bayesian", "*.safetensors", folder="out", jobs=2, checks=["layers.replaced"])
print([row.verdict.value for row in index.rows])
"""

SLOW = """
import time
from many_net import *


class Slow(Records):
    def load_state_dict(self, *given, **more):
        time.sleep(600)
"""


@pytest.mark.nightly("processes are started, 15 s")
def test_a_script_needs_no_guard(folder: Path) -> None:
    """The processes that it starts do not run it again."""
    for number in range(2):
        save(f"{number}.safetensors")
    Path("script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False, env=environment())
    assert (done.stdout, done.returncode) == ("['pass', 'pass']\n", 0), done.stderr


@pytest.mark.nightly("processes are started and ended: half a minute")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="it looks at processes in /proc")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", exits.INTERRUPTED), ("SIGKILL", -9), ("SIGTERM", -15)])
def test_no_process_outlives_the_command(folder: Path, name: str, code: int) -> None:
    """Whatever ended it: from the keyboard, all of the group get the signal; from elsewhere, the command alone."""
    for number in range(2):
        save(f"{number}.safetensors")
    Path("slow.py").write_text(SLOW, encoding="utf-8")
    command = [sys.executable, "-m", "pytest_bnn.cli", "audit", "--model", "slow:Slow", "--jobs", "2"]
    command += ["--checkpoints", "*.safetensors", "--checks", "layers.replaced"]
    started = subprocess.Popen(
        command, env=environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while len(members(started.pid)) < 4 and time.monotonic() < deadline:  # it, two workers and their tracker
        time.sleep(0.2)
    time.sleep(5)
    if name == "SIGINT":
        os.killpg(started.pid, signal.SIGINT)
    else:
        os.kill(started.pid, getattr(signal, name))
    said, _ = started.communicate(timeout=60)
    assert started.returncode == code
    while members(started.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert members(started.pid) == []
    assert "Traceback" not in said
    if name == "SIGINT":
        assert said == "pytest-bnn: interrupted\n"


def members(session: int) -> list[int]:
    """Return the living processes of a session."""
    living = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(number) == session and state != "Z":
            living.append(int(path.parent.name))
    return living


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(exits.__file__).parents[2]), *sys.path])}


def test_an_index_that_is_none() -> None:
    """Another file of that name is not taken for one."""
    for text in ("{", "[]", "{}"):
        with pytest.raises(InputError):
            Collection.from_json(text)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself is not asked, which would try for minutes."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(free.getsockname()[1])
        with (
            pytest.raises(InputError, match=r"the Ray cluster .*127\.0\.0\.1:\d+ does not answer"),
            engines.ray_cluster(address),
        ):
            pass


@pytest.mark.nightly("a Ray cluster starts on this machine: half a minute")
def test_ray_gives_the_same_and_repeats_a_killed_task(folder: Path) -> None:
    """Locally embedded, as --engine ray starts it."""
    pytest.importorskip("ray", reason="runs where the extra pytest-bnn[ray] is installed")
    from pytest_bnn.many.engines import ray_cluster

    files = [save(f"{number}.safetensors", shift=number / 10) for number in range(4)]
    expected = [timeless(run) for _, run in audited(shared(folder), files, "here")]
    with ray_cluster(workers=2) as executor:
        found = audited(shared(folder), files, "there", executor=executor)
        once = executor.submit(_dies_once, str(folder / "died"))
        assert once.result(timeout=120) == "alive"
    assert [timeless(run) for _, run in found] == expected


def _dies_once(mark: str) -> str:
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"
