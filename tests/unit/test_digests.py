"""What a report says of files and tensors can be computed again by others: sha256sum, hashlib, `pytest-bnn digest`."""

from __future__ import annotations

import builtins
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from torch import nn

from pytest_bnn import cli
from pytest_bnn.audit.run import audit_model
from pytest_bnn.conversion import convert
from pytest_bnn.data.digests import of_examples, of_state
from pytest_bnn.data.origin import MOST_FILES, Origin, files_read, named, of_function, within
from pytest_bnn.records.digests import of_audit, of_file, of_folder
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.run import AuditRun, FileDigest


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()


def loss(model: nn.Module, batch: Any) -> Any:
    return model(batch[0]).square().mean()


def test_of_a_file(tmp_path: Path) -> None:
    """The file's own: what sha256sum prints, so that it can be compared."""
    (tmp_path / "w.pt").write_bytes(b"x" * 300_000)
    assert of_file(tmp_path / "w.pt", "w.pt") == FileDigest(path="w.pt", sha256=sha(b"x" * 300_000), bytes=300_000)
    assert of_file(tmp_path / "w.pt").path == str(tmp_path / "w.pt")


def test_of_a_folder(tmp_path: Path) -> None:
    """The shell line of the documentation gives the same."""
    for name in ("b.png", "a/z.png", "a.txt", "Z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    lines = "".join(f"{sha(name.encode())}  {name}\n" for name in ("Z.txt", "a.txt", "a/z.png", "b.png"))
    assert of_folder(tmp_path) == sha(lines.encode())
    if shutil.which("sha256sum"):
        line = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
        said = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert said.stdout.split()[0] == of_folder(tmp_path)
    before = of_folder(tmp_path)
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert of_folder(tmp_path) != before


def test_of_an_audit(tmp_path: Path) -> None:
    """The same for any layout of the same JSON, another for another verdict."""
    evidence = Evidence(id="a.b", subject="s", stage="unknown", verdict=Verdict.PASS, claim="c", headline="ö")
    run = AuditRun(checks=(evidence,), provenance={"b": "1", "a": "2"})
    again = AuditRun.from_json(json.dumps(json.loads(run.to_json()), indent=8, sort_keys=True))
    assert of_audit(again) == of_audit(run)
    compact = json.dumps(json.loads(run.to_json()), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert of_audit(run) == sha(compact.encode())
    assert of_audit(AuditRun(provenance={"a": "2"})) != of_audit(run)


def test_of_a_state() -> None:
    """By hand: names, dtypes, shapes and bytes in the order of names; the order of the state is no matter."""
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3]])}
    by_hand = b"a torch.int64 [1, 1]" + numpy.array([3]).tobytes()
    by_hand += b"b torch.float32 [2]" + numpy.array([1, 2], dtype="float32").tobytes()
    assert of_state(state) == sha(by_hand) == of_state(dict(reversed(state.items())))


EXAMPLES = torch.arange(12.0).reshape(4, 3)

#: Each differs from the plain tensor in one respect.
OTHERS = {
    "order": EXAMPLES.flip(0),
    "dtype": EXAMPLES.double(),
    "shape": EXAMPLES.reshape(3, 4),
    "a label": (EXAMPLES, torch.zeros(4)),
    "a name": {"x": EXAMPLES},
    "one number": EXAMPLES.clone().index_put_((torch.tensor([0]), torch.tensor([0])), torch.tensor(1e-30)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_of_examples(other: str) -> None:
    """Whatever could make another audit makes another digest; how the numbers lie in memory does not."""
    assert of_examples(OTHERS[other]) != of_examples(EXAMPLES)
    assert of_examples(EXAMPLES.t().contiguous().t()) == of_examples(EXAMPLES)
    assert of_examples(EXAMPLES) == sha(b" torch.float32 [4, 3]" + EXAMPLES.numpy().tobytes())


def test_of_unusual_tensors() -> None:
    """Half precision, complex conjugates, packed sequences and tensors without bytes have digests too."""
    conj = torch.tensor([1 + 2j]).conj()
    assert of_examples(conj) == of_examples(torch.tensor([1 - 2j]))
    packed = nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])
    found = {of_examples(t) for t in (EXAMPLES.bfloat16(), packed, torch.ones(2, device="meta"), torch.tensor(1.0))}
    assert len(found) == 4


Write = Callable[[Path], object]
Load = Callable[[Path], object]

READERS: dict[str, tuple[str, Write, Load]] = {
    "torch": ("w.pt", lambda p: torch.save({"a": EXAMPLES}, p), lambda p: torch.load(p, weights_only=True)),
    "torch, mapped": ("w.pth", lambda p: torch.save(EXAMPLES, p), lambda p: torch.load(p, mmap=True)),
    "safetensors": (
        "w.safetensors",
        lambda p: safetensors.torch.save_file({"a": EXAMPLES}, p),
        lambda p: safetensors.torch.load_file(p),
    ),
    "numpy": ("x.npy", lambda p: numpy.save(p, EXAMPLES.numpy()), lambda p: numpy.load(p, mmap_mode="r")),
    "text path": ("x.npz", lambda p: numpy.savez(p, EXAMPLES.numpy()), lambda p: numpy.load(str(p))["arr_0"]),
    "pickle": ("x.pkl", lambda p: p.write_bytes(b"1"), lambda p: p.read_bytes()),
}


@pytest.mark.parametrize("reader", READERS)
def test_files_that_are_read_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    """Whatever reads them; by their names in the folder of the start, with the digest of their bytes."""
    monkeypatch.chdir(tmp_path)
    name, write, load = READERS[reader]
    write(Path(name))
    with files_read() as read:
        load(Path(name))
        load(Path(name))
    load(Path(name))
    assert read.digests() == (
        FileDigest(path=name, sha256=sha(Path(name).read_bytes()), bytes=Path(name).stat().st_size),
    )


def test_files_that_are_not_the_subject_s(tmp_path: Path) -> None:
    """Written, of another kind, gone, no file, or read outside: none of these is listed. Nothing is disturbed."""
    before = (builtins.open, vars(safetensors.torch)["safe_open"], torch.jit.load)
    (tmp_path / "outside.pt").touch()
    (tmp_path / "folder.pt").mkdir()
    with files_read() as read:
        (tmp_path / "new.pt").write_bytes(b"1")
        (tmp_path / "notes.txt").write_text("1", encoding="utf-8")
        (tmp_path / "notes.txt").read_text(encoding="utf-8")
        (tmp_path / "gone.pt").touch()
        (tmp_path / "gone.pt").read_bytes()
        (tmp_path / "gone.pt").unlink()
        with pytest.raises(FileNotFoundError):
            torch.load(tmp_path / "missing.pt")
        with pytest.raises(OSError, match="directory"):
            (tmp_path / "folder.pt").read_bytes()
        assert vars(safetensors.torch)["safe_open"] is not before[1]
    (tmp_path / "outside.pt").read_bytes()
    assert read.digests() == ()
    assert (builtins.open, vars(safetensors.torch)["safe_open"], torch.jit.load) == before


def test_no_more_than_a_few_files(tmp_path: Path) -> None:
    """A data set of ten thousand arrays must not fill the page."""
    for number in range(MOST_FILES + 5):
        (tmp_path / f"{number:03}.npy").touch()
    with files_read() as read:
        for path in sorted(tmp_path.iterdir()):
            path.read_bytes()
    assert len(read.digests()) == MOST_FILES


def test_where_things_are_from(tmp_path: Path) -> None:
    """Relative to the folder of the start where they lie in it; in full otherwise."""
    assert within(tmp_path / "a" / "b.pt", tmp_path) == "a/b.pt"
    assert within(tmp_path, tmp_path / "other") == str(tmp_path)
    here = Path(__file__)
    assert named(f"{__name__}:small", here.parent) == f"{__name__}:small ({here.name})"
    assert named("nowhere:net") == "nowhere:net"
    assert of_function(loss, here.parent) == f"{__name__}:loss ({here.name})"
    assert of_function(nn.CrossEntropyLoss()).startswith("torch.nn.modules.loss:CrossEntropyLoss (")
    assert of_function(len) == "builtins:len"


def test_a_subject_s_record_says_what_it_was() -> None:
    """From Python: the examples as given, with their labels, and where its loss and its factory are from."""
    images, labels = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    origin = Origin(sources={"data": "a photograph"}, files=(FileDigest(path="w.pt", sha256="0" * 64, bytes=1),))
    run = audit_model(
        convert(small()), data=(images, labels), loss=loss, checks=["kl.present"], origin=origin, factory=small
    )
    record = run.subjects[0]
    assert record.data_sha256 == of_examples((images, labels))
    here = within(__file__)
    assert record.sources == {
        "model": f"{__name__}:small ({here})",
        "loss": f"{__name__}:loss ({here})",
        "data": "a photograph",
    }
    assert record.files == origin.files
    assert AuditRun.from_json(run.to_json()).subjects[0] == record
    assert audit_model(convert(small()), checks=["kl.present"]).subjects[0].data_sha256 == ""


NET = """
import numpy, torch
from torch import nn
import pytest_bnn

def teacher():
    net = nn.Sequential(nn.Linear(3, 2))
    net.load_state_dict(torch.load("weights/teacher.pt", weights_only=True))
    return net.eval()

def bayesian():
    return pytest_bnn.convert(teacher())

def held_out():
    return numpy.load("x.npy")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, with a network that loads its weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "digest_net.py").write_text(NET, encoding="utf-8")
    torch.save(nn.Sequential(nn.Linear(3, 2)).state_dict(), "weights/teacher.pt")
    numpy.save("x.npy", numpy.ones((4, 3), dtype="float32"))
    return tmp_path


def test_the_command_line_knows_what_was_read(folder: Path) -> None:
    """The same digests come out of `pytest-bnn digest`, sha256sum and the report."""
    names = ["--model", "digest_net:bayesian", "--teacher", "digest_net:teacher", "--data", "digest_net:held_out"]
    assert cli.main(["audit", *names, "--checks", "layers.replaced"]) == 0
    record = AuditRun.from_json(Path("audit.json").read_text(encoding="utf-8")).subjects[0]
    assert {file.path: file.sha256 for file in record.files} == {
        "weights/teacher.pt": sha(Path("weights/teacher.pt").read_bytes()),
        "x.npy": sha(Path("x.npy").read_bytes()),
    }
    assert record.sources == {
        "model": "digest_net:bayesian (digest_net.py)",
        "teacher": "digest_net:teacher (digest_net.py)",
        "data": "digest_net:held_out (digest_net.py)",
    }
    assert record.data_sha256 == of_examples(torch.ones(4, 3))


def digests(capsys: pytest.CaptureFixture[str], *names: str) -> dict[str, str]:
    """What the command prints, by kind."""
    assert cli.main(["digest", *names]) == 0
    return {line[:8].strip(): line.split()[-2] for line in capsys.readouterr().out.splitlines()}


def test_digest_of_each_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint by its bytes and its state, data by bytes and numbers, a folder, an audit, and anything else."""
    state = torch.load("weights/teacher.pt", weights_only=True)
    said = digests(capsys, "weights/teacher.pt")
    assert said == {"file": sha(Path("weights/teacher.pt").read_bytes()), "state": of_state(state)}
    safetensors.torch.save_file(state, "w.safetensors")
    assert digests(capsys, "w.safetensors")["state"] == said["state"]
    assert digests(capsys, "x.npy")["examples"] == of_examples(torch.ones(4, 3))
    torch.save((torch.ones(4, 3), torch.zeros(4)), "pairs.pt")
    assert digests(capsys, "pairs.pt")["examples"] == of_examples((torch.ones(4, 3), torch.zeros(4)))
    Path("audit.json").write_text(AuditRun().to_json(), encoding="utf-8")
    assert digests(capsys, "audit.json")["audit"] == of_audit(AuditRun())
    assert digests(capsys, "weights") == {"folder": of_folder("weights")}
    assert digests(capsys, "digest_net.py") == {"file": sha(NET.encode())}


def test_digest_of_a_checkpoint_in_parts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training loops keep the state beside the optimizer's; no code in a file is executed, and none stops the rest."""
    torch.save({"epoch": 3, "net": {"a": EXAMPLES}, "optimizer": {"lr": 0.1}}, "c.ckpt")
    assert cli.main(["digest", "c.ckpt"]) == 0
    assert f"state of 'net'  {of_state({'a': EXAMPLES})}  c.ckpt\n" in capsys.readouterr().out
    torch.save(small(), "whole.pt")  # an object: loading it would execute code
    assert digests(capsys, "whole.pt").keys() == {"file"}
    Path("damaged.safetensors").write_bytes(b"\xff" * 20)
    assert digests(capsys, "damaged.safetensors").keys() == {"file"}


@pytest.mark.parametrize("name", ["missing.pt", "nul\0.pt"])
def test_digest_of_nothing(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Wrong input, in one line."""
    assert cli.main(["digest", name]) == 4
    said = capsys.readouterr().err
    assert "cannot be read (" in said
    assert said.endswith("Give a file or a folder.\n")


QUANTIZED = pytest.mark.skipif(
    not hasattr(torch, "quantize_per_tensor"), reason="runs with releases of torch that make quantized tensors"
)
VALUES = torch.tensor([[0.0, 1.5, -2.0], [0.25, 0.0, 3.0]])


def quantized(values: torch.Tensor = VALUES, scale: float = 0.25, zero: int = 3) -> torch.Tensor:
    return torch.quantize_per_tensor(values, scale, zero, torch.qint8)


def by_channel(scales: tuple[float, float] = (0.25, 0.5), zeros: tuple[int, int] = (0, 1)) -> torch.Tensor:
    return torch.quantize_per_channel(VALUES, torch.tensor(scales), torch.tensor(zeros), 0, torch.qint8)


@QUANTIZED
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantized_tensor_s_digest_is_that_of_its_integers_behind_its_scale() -> None:
    """By hand: name, dtype and shape, scale and zero point, and a byte for each integer, row by row."""
    integers = bytes((round(value / 0.25) + 3) % 256 for row in VALUES.tolist() for value in row)
    assert of_state({"w": quantized()}) == sha(b"w torch.qint8 [2, 3] 0.25 3" + integers)
    assert of_examples(quantized()) == of_examples(quantized().clone())
    channels = bytes(
        (round(value / scale) + zero) % 256
        for row, scale, zero in zip(VALUES.tolist(), (0.25, 0.5), (0, 1), strict=True)
        for value in row
    )
    assert of_state({"w": by_channel()}) == sha(b"w torch.qint8 [2, 3] [0.25, 0.5] [0, 1] 0" + channels)


@QUANTIZED
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_other_scales_of_equal_integers_are_another_quantized_tensor() -> None:
    """Twice the scale is twice each weight, with the same integers."""
    one, other = quantized(), quantized(2 * VALUES, scale=0.5)
    assert torch.equal(one.int_repr(), other.int_repr())
    several = [one, other, quantized(VALUES, zero=4), quantized(VALUES + 0.25), by_channel(), by_channel((0.5, 0.5))]
    several += [by_channel(zeros=(1, 1)), VALUES]
    assert len({of_state({"w": tensor}) for tensor in several}) == len(several)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "coo": torch.Tensor.to_sparse,
    "coo, not coalesced": lambda dense: torch.sparse_coo_tensor(
        torch.cat([dense.to_sparse().indices()] * 2, 1), torch.cat([dense.to_sparse().values() / 2] * 2), dense.shape
    ),
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
    "bsr": lambda dense: dense.to_sparse_bsr((1, 3)),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_tensor_s_digest_is_that_of_its_values(layout: str) -> None:
    """In whatever layout they are kept; by hand, their bytes as a dense tensor has them."""
    sparse = LAYOUTS[layout](VALUES)
    assert sparse.layout is not torch.strided
    by_hand = sha(b"w torch.float32 [2, 3]" + VALUES.numpy().tobytes())
    assert of_state({"w": sparse}) == by_hand
    assert of_state({"w": LAYOUTS[layout](VALUES + (VALUES == 1.5))}) != by_hand
    kept = sparse.clone()
    of_state({"w": sparse})
    assert sparse.layout is kept.layout
    assert torch.equal(sparse.to_dense(), kept.to_dense())
