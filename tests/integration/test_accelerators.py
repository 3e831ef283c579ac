"""Audits on an accelerator: on one that is pretended everywhere, on a real one where there is one."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bayesian_torch.models.dnn_to_bnn import get_kl_loss
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import pytest_bnn
from pytest_bnn import cli, convert
from pytest_bnn.audit.named import Named
from pytest_bnn.checks.choices import Choices
from pytest_bnn.commands import command as exits
from pytest_bnn.libraries.capture import capture
from pytest_bnn.many import key
from pytest_bnn.network import devices
from pytest_bnn.network.precision import full
from pytest_bnn.options import Settings, in_force, using
from pytest_bnn.records.run import AuditRun
from pytest_bnn.sampling.bank import PassBank
from pytest_bnn.sampling.engine.plan import make_plan
from pytest_bnn.sampling.native.run import Native
from tests.pretending import pretending

on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="runs where torch finds a CUDA device")

IMAGES = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )  # fmt: skip


def networks(estimator: Any = "Reparameterization") -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = Small().eval()
        return teacher, convert(teacher, type=estimator, moped_delta=0.1)


def loss(model: nn.Module, batch: Any) -> Tensor:
    value: Tensor = nn.functional.cross_entropy(model(batch[0]), batch[1]) + get_kl_loss(model) / 10
    return value


def audit(device: str, estimator: Any = "Reparameterization", checks: list[str] | None = None) -> AuditRun:
    teacher, model = networks(estimator)
    labels = teacher(IMAGES).argmax(1)
    everything: dict[str, Any] = {} if checks else {
        "ood": 3 * IMAGES.flip(0), "shifts": [(IMAGES + 0.1, labels), (IMAGES + 0.3, labels)],
        "slices": lambda number: number % 2, "factory": lambda: networks(estimator)[1],
    }  # fmt: skip
    with using(Settings(device=device, threads=1)):
        found = pytest_bnn.audit_model(
            model, teacher=teacher, data=(IMAGES, labels), loss=loss, checks=checks, **everything
        )
    assert devices.where(model) == devices.where(teacher) == torch.device("cpu")
    return found


def verdicts(run: AuditRun) -> dict[str, tuple[str, str]]:
    return {
        check.id: (check.verdict.value, check.headline if check.verdict.value == "error" else "")
        for check in run.checks
    }


FEW = ["layers.replaced", "noise.varies", "mean.equals_teacher", "kl.loss"]


@pytest.mark.parametrize(
    "kind",
    [pytest.param("cuda", marks=pytest.mark.nightly("the other device refuses all that it does, and more")), "mps"],
)
def test_verdicts_are_those_of_the_cpu(kind: str) -> None:
    """On a device that refuses tensors of the CPU, and on one without float64."""
    wanted = audit("cpu", checks=FEW)
    with pretending(kind):
        found = audit(kind, checks=FEW)
    assert verdicts(found) == verdicts(wanted)
    assert found.provenance["device"] == {"cuda": "cuda:0 (a card that is not there)", "mps": "mps:0"}[kind]
    assert wanted.provenance["device"] == "cpu"
    samplers = {check.sampler for check in found.checks if check.sampler}
    assert samplers == {f"native (Philox4x32-10 in torch on {kind}, several passes at once)"}


@pytest.mark.nightly("every check, twice for each device and estimator: a minute and a half")
@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_every_verdict_is_that_of_the_cpu(kind: str, estimator: str) -> None:
    """All checks, with all that they can be given."""
    wanted = audit("", estimator)
    with pretending(kind):
        found = audit(kind, estimator)
    assert verdicts(found) == verdicts(wanted)


@pytest.mark.parametrize("sampler", ["own", "native"])
def test_nothing_is_copied_from_pass_to_pass(sampler: str) -> None:
    """However many passes: copies between the CPU and the device are made around them."""
    with pretending() as seen:
        model, images = networks()[1].to(seen.device), IMAGES.to(seen.device)
        bank, counts = PassBank(model, images, 0, sampler=sampler), []
        bank.draw(0, 1)
        for passes in (2, 9):
            seen.copies = seen.reads = 0
            outputs = bank.draw(0, passes)
            counts.append(seen.copies)
            assert outputs.device == seen.device
            assert sampler == "own" or not seen.reads
        assert counts[0] == counts[1] <= 2


def test_fine_tuning_and_predicting_on_a_device() -> None:
    """The images go where the model is; the figures of the steps are those of the CPU, to rounding."""
    found = {}
    for kind in ("cpu", "mps"):
        with pretending("mps"):
            teacher, model = networks()
            devices.move([teacher, model], torch.device(kind) if kind == "cpu" else torch.device(kind, 0))
            with using(Settings(sampler="own")):
                steps = pytest_bnn.finetune(model, teacher, IMAGES, steps=1, batch=8)
            predicted = pytest_bnn.predict(model, IMAGES, passes=4, sampler="native")
            assert devices.where(pytest_bnn.convert(teacher)) == devices.where(model)
            found[kind] = [step.loss for step in steps], predicted.mean
    assert found["mps"][0] == pytest.approx(found["cpu"][0], rel=1e-5)
    torch.testing.assert_close(found["mps"][1], found["cpu"][1], rtol=1e-4, atol=1e-5)


def test_the_pretended_device_refuses_what_a_device_refuses() -> None:
    """What the tests above rest on."""
    with pretending("mps") as seen:
        there = torch.randn(3).to("mps:0").requires_grad_()
        assert (
            (there * 2).device == there.to("mps:0").device == torch.zeros(2, device=there.device).device == seen.device
        )
        assert torch.zeros(2).device == there.cpu().device == torch.device("cpu")
        for refused in (
            lambda: there + torch.ones(3),
            lambda: there.double(),
            lambda: there.detach().numpy(),
            lambda: torch.ones(3, device=seen.device).normal_(generator=torch.Generator()),
            lambda: torch.where(there > 0, there, torch.ones(3)),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                refused()
        (there * torch.tensor(2.0)).sum().backward()  # a number may be anywhere
        assert there.grad is not None
        assert there.grad.device == seen.device
        assert seen.copies == 2


class _Watch(TorchDispatchMode):
    """Counts the operators that see two devices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        places = {leaf.device for leaf in pytree.tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)}
        if len(places) > 1:
            self.seen.append(str(func))
        return found


@pytest.mark.nightly("FakeTensorMode runs each operator that it has not seen a second way: ten seconds and more")
@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_passes_on_torchs_own_fake_card(estimator: str) -> None:
    """It raises where devices mix, inside vmap too; the numbers of the images alone go there, once."""
    model = networks(estimator)[1]
    with FakeTensorMode() as mode:
        for module in model.modules():
            held: Any
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        moved = mode.from_tensor(tensor).detach().to("cuda")
                        held[name] = nn.Parameter(moved) if held is module._parameters else moved
        images = torch.empty(4, 1, 4, 4, device="cuda")
        with torch.no_grad(), capture(model) as calls:
            model(images)
        native = Native(model, make_plan(calls, None, channels_last=True), 3, 64, torch.device("cuda", 0))
        for native.vmaps in (True, False):
            for passes in (2, 5):
                with _Watch() as watch:
                    outputs = native.run(range(passes), images, torch.arange(4))
                assert outputs.shape == (passes, 4, 3)
                assert outputs.device == torch.device("cuda", 0)
                assert watch.seen == ["aten._to_copy.default"]


NET = """
import torch
from torch import nn
import pytest_bnn


def teacher():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def bayesian():
    return pytest_bnn.convert(teacher(), moped_delta=0.1)


def held_out():
    return torch.randn(24, 6, generator=torch.Generator().manual_seed(2)), torch.arange(24) % 3


_weights = torch.ones(3)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=_weights)
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"net_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_the_command_line_owns_what_its_factories_made(net: str, tmp_path: Path) -> None:
    """Model, teacher and the network of each checkpoint are judged there; what a loss holds is told."""
    named = Named(model=f"{net}:bayesian", teacher=f"{net}:teacher", data=f"{net}:held_out", loss=f"{net}:loss")
    sys.modules.pop(net, None)
    with pretending("mps") as seen, using(Settings(device="auto", threads=1)):
        parts = named.load()
        assert parts.teacher is not None
        assert devices.where(parts.model) == devices.where(parts.teacher) == seen.device
        torch.save({name: value.cpu() for name, value in parts.model.state_dict().items()}, tmp_path / "last.pt")
        for judged in (parts, parts.with_state(tmp_path / "last.pt"), parts.with_model(f"{net}:bayesian")):
            found = judged.audit(checks=["layers.replaced", "mean.equals_teacher", "kl.loss"])
            assert [check.verdict.value for check in found.checks] == ["pass", "pass", "error"]
            assert found.provenance["device"] == "mps:0"
            assert "The model and its batch are on mps:0" in found.checks[-1].remedy
        there = _settings_digest(parts)
    with using(Settings(device="cpu", threads=1)):
        on_cpu = _settings_digest(named.load())
    with using(Settings(threads=1)):
        assert _settings_digest(named.load()) == on_cpu != there


def _settings_digest(parts: Any) -> str:
    return key.digests(
        parts, checks=None, options={}, settings=in_force(), choices=Choices(), plugins=(), folder=Path.cwd()
    )["settings"]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs where torch finds no CUDA device")
@pytest.mark.parametrize("more", [(), ("--checkpoints", "*.pt")])
def test_a_device_that_is_not_there_is_wrong_usage(
    net: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and exit code 4, before a factory is called; from the environment too."""
    assert cli.main(["audit", "--model", f"{net}:missing", "--device", "cuda:1", *more]) == exits.USAGE
    said = capsys.readouterr().err
    assert "--device is 'cuda:1', and there is no such device" in said
    assert len(said.strip().splitlines()) == 1
    monkeypatch.setenv("PYTEST_BNN_DEVICE", "cuda")
    assert cli.main(["audit", "--model", f"{net}:missing", *more]) == exits.USAGE
    assert "PYTEST_BNN_DEVICE is 'cuda'" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs where torch finds no CUDA device")
def test_a_session_on_a_device_that_is_not_there_is_wrong_usage(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    found = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--bnn-device=cuda")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines(["*--bnn-device is 'cuda', and there is no such device*"])


@on_a_card
@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout"])
def test_a_whole_audit_on_a_card(estimator: str) -> None:
    """Every verdict is that of the CPU; the user's networks stay where they are."""
    wanted, found = audit("", estimator), audit("cuda", estimator)
    assert verdicts(found) == verdicts(wanted)
    assert found.provenance["device"].startswith("cuda:0 (")
    assert any(check.sampler.startswith("native (") for check in found.checks)


@on_a_card
def test_a_card_draws_the_passes_of_the_cpu() -> None:
    """The same noise: outputs agree to the rounding of the card's functions, in full precision."""
    model = networks()[1]
    wanted = PassBank(model, IMAGES, 3, sampler="native").draw(0, 16)
    card = torch.device("cuda", torch.cuda.current_device())
    there = copy.deepcopy(model).to(card)
    with full(card):
        found = PassBank(there, IMAGES.to(card), 3).draw(0, 16)
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@on_a_card
def test_a_card_is_not_waited_for_inside_the_passes() -> None:
    """torch raises where the host waits for the card or copies from it."""
    card = torch.device("cuda", torch.cuda.current_device())
    model, images = networks()[1].to(card), IMAGES.to(card)
    bank = PassBank(model, images, 3)
    bank.draw(0, 2)
    assert isinstance(bank._engine, Native)
    rows = torch.arange(len(images), device=card)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert bank._engine.run(range(64), images, rows).device == card
    finally:
        torch.cuda.set_sync_debug_mode("default")
