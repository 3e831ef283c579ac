"""Which of torchvision's classification networks convert, without weights: ``python -m benchmarks.zoo``.

The smallest member of each family, with random weights and BatchNorm statistics of random images, is converted by
bayesian-torch's bare ``dnn_to_bnn`` and by ``pytest_bnn.convert`` with both estimators. Judged by the package's own
checks: every layer Bayesian and called (``layers.replaced``), equal to its teacher at the posterior mean
(``mean.equals_teacher``), and varying by the posterior alone (``noise.source``).
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision
from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from torch import nn

from pytest_bnn.checks import measure_layers_replaced, measure_mean_equals_teacher, measure_noise_source
from pytest_bnn.conversion import Conversion, convert_with
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.subject import Subject

#: Family: its members here. Two where a family has two architectures.
FAMILIES: dict[str, tuple[str, ...]] = {
    "AlexNet": ("alexnet",),
    "VGG": ("vgg11",),
    "ResNet": ("resnet18",),
    "ResNeXt": ("resnext50_32x4d",),
    "DenseNet": ("densenet121",),
    "SqueezeNet": ("squeezenet1_1",),
    "GoogLeNet": ("googlenet",),
    "Inception v3": ("inception_v3",),
    "MobileNet": ("mobilenet_v2", "mobilenet_v3_small"),
    "ShuffleNet v2": ("shufflenet_v2_x0_5",),
    "MNASNet": ("mnasnet0_5",),
    "EfficientNet": ("efficientnet_b0",),
    "RegNet": ("regnet_y_400mf",),
    "ConvNeXt": ("convnext_tiny",),
    "ViT": ("vit_b_32",),
    "Swin": ("swin_t", "swin_v2_t"),
    "MaxViT": ("maxvit_t",),
}

#: Image sizes; what the family was made for where it accepts no other.
SIZES = {"inception_v3": 96, "vit_b_32": 224, "maxvit_t": 224}

#: Fully convertible families by convert() of commit 622670e, measured by this module with that commit's package.
BEFORE = 15

BARE = "dnn_to_bnn"
COLUMNS = (BARE, "Reparameterization", "Flipout")
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one converter made of one network."""

    family: str
    member: str
    converter: str
    layers: int
    of: int
    mean: str
    noise: str
    raised: str

    @property
    def complete(self) -> bool:
        """Whether every layer is Bayesian and both other claims hold."""
        return not self.raised and self.layers == self.of and self.mean == self.noise == "pass"

    @property
    def text(self) -> str:
        """The cell of the table."""
        count = f"{self.layers} of {self.of}"
        if self.raised:
            return f"{count}; {self.raised}"
        problems = [
            name for name, verdict in (("mean differs", self.mean), ("noise fails", self.noise)) if verdict != "pass"
        ]
        return "; ".join([count, *problems])


def network(member: str) -> nn.Module:
    """Build a network with a fixed seed, whose activations neither vanish nor explode."""
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if member in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(member, weights=None, num_classes=10, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # zeros hide whatever comes before them
                parameter.normal_(std=0.02)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(images(member, 4))
    return model.eval()


def images(member: str, count: int = 2) -> torch.Tensor:
    size = SIZES.get(member, 64)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def bare(model: nn.Module, conversion: Conversion) -> tuple[nn.Module, str]:
    """Convert a copy by the library alone; give it, half converted where it raised, and what it raised."""
    converted = copy.deepcopy(model)
    parameters = {name: getattr(conversion, name) for name in Conversion.__dataclass_fields__}
    try:
        dnn_to_bnn(converted, parameters)
    except Exception as error:
        return converted, f"raises {_first_line(error)}"
    return converted, ""


def ours(model: nn.Module, conversion: Conversion) -> tuple[nn.Module, str]:
    try:
        return convert_with(model, conversion), ""
    except Exception as error:
        return model, f"refused: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    line = str(error).splitlines()[0]
    return f"{type(error).__name__}: {line[:117]}..." if len(line) > 120 else f"{type(error).__name__}: {line}"


def judge(family: str, member: str, teacher: nn.Module, converter: str) -> Row:
    conversion = Conversion(type="Flipout" if converter == "Flipout" else "Reparameterization")
    convert: Callable[[nn.Module, Conversion], tuple[nn.Module, str]] = bare if converter == BARE else ours
    torch.manual_seed(0)
    model, raised = convert(teacher, conversion)
    layers = measure_layers_replaced(model.eval(), teacher=teacher)
    mean = noise = ""
    if not raised:
        subject = Subject(model, teacher=teacher, images=images(member), stage="converted")
        evidence = measure_mean_equals_teacher(subject)
        mean = evidence.verdict.value
        raised = evidence.headline if "raised" in evidence.headline else ""
        if not raised:
            noise = measure_noise_source(subject).verdict.value
            called = measure_layers_replaced(subject)
            layers = layers if called.verdict is Verdict.PASS else called
    count, of = layers["Bayesian layers"], layers["layers in the claim"]
    assert isinstance(count, int)
    assert isinstance(of, int)
    return Row(
        family=family, member=member, converter=converter, layers=count, of=of, mean=mean, noise=noise, raised=raised
    )


def measure(families: dict[str, tuple[str, ...]]) -> Iterator[Row]:
    for family, members in families.items():
        for member in members:
            teacher = network(member)
            for converter in COLUMNS:
                yield judge(family, member, teacher, converter)
                gc.collect()


def complete(rows: list[Row], *converters: str) -> list[str]:
    """Return the families of which every member converts completely with every one of some converters."""
    families = dict.fromkeys(row.family for row in rows)
    return [f for f in families if all(r.complete for r in rows if r.family == f and r.converter in converters)]


def table(rows: list[Row]) -> str:
    lines = [
        '| family | network | bare `dnn_to_bnn` | `convert()` | `convert(type="Flipout")` |',
        "|---|---|---|---|---|",
    ]
    for member in dict.fromkeys(row.member for row in rows):
        mine = {row.converter: row for row in rows if row.member == member}
        cells = [_escaped(mine[converter].text) for converter in COLUMNS]
        lines.append(f"| {mine[BARE].family} | {member} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("'", "`")


def summary(rows: list[Row]) -> str:
    total = len(dict.fromkeys(row.family for row in rows))
    return (
        f"Fully convertible families, of {total}: {len(complete(rows, BARE))} by bare `dnn_to_bnn`, {BEFORE} by "
        f"`convert()` before it mended (commit 622670e), {len(complete(rows, *COLUMNS[1:]))} by `convert()` with both "
        "estimators."
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, not the table in Markdown")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers in a file")
    parser.add_argument("--only", nargs="*", choices=FAMILIES, metavar="FAMILY", help="some families")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    rows = []
    for row in measure({name: FAMILIES[name] for name in given.only or FAMILIES}):
        rows.append(row)
        print(f"{row.member} {row.converter}: {row.text}", file=sys.stderr, flush=True)
    if given.json:
        print(json.dumps([{**asdict(row), "complete": row.complete} for row in rows], indent=1))
        return
    text = f"{summary(rows)}\n\n{table(rows)}"
    print(text)
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        given.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
