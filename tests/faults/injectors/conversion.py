"""What a conversion by the library loses: rows A15 to A26 of the catalogue, each with what injects it."""

from __future__ import annotations

from copy import deepcopy

from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn
from torch import Tensor, nn
from torch.nn import functional

from tests.faults.injectors.patient import PARAMETERS, Fault, Given, Patient


def weight_norm(patient: Patient) -> Given:
    nn.utils.parametrizations.weight_norm(patient.part(patient.teacher, "head"))
    return {"model": patient.converted()}


class LowRank(nn.Linear):
    """A Linear with LoRA's two small ones beside it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_a = nn.Linear(inputs, 2, bias=False)
        self.lora_b = nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + 0.01 * self.lora_b(self.lora_a(x))
        return out


def low_rank(patient: Patient) -> Given:
    plain = patient.part(patient.teacher, "head")
    head = LowRank(plain.in_features, plain.out_features)
    head.load_state_dict(plain.state_dict(), strict=False)
    patient.put(patient.teacher, "head", head)
    return {"model": patient.converted()}


class ScaledConv2d(nn.Conv2d):
    """A user's subclass, which the library selects by its name and then does not know."""


def raises_midway(patient: Patient) -> Given:
    patient.part(patient.teacher, "block.conv2").__class__ = ScaledConv2d
    model = deepcopy(patient.teacher)
    try:
        dnn_to_bnn(model, {**PARAMETERS, "type": patient.estimator})
    except AttributeError as error:
        if "ScaledConv2d" in str(error):
            return {"model": model}
        raise
    raise RuntimeError("the library converts a subclass: this row has to be another one")


class Conv2d(nn.Module):
    """A user's own layer that shares nothing but the name, and the attributes that the library reads."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = like.weight, like.bias
        self.in_channels, self.out_channels, self.kernel_size = like.in_channels, like.out_channels, like.kernel_size
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, like.groups

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, padding="same")


def namesake(patient: Patient) -> Given:
    patient.put(patient.teacher, "block.conv1", Conv2d(patient.part(patient.teacher, "block.conv1")))
    return {"model": patient.converted()}


def used_twice(patient: Patient) -> Given:
    patient.put(patient.teacher, "block.conv2", patient.part(patient.teacher, "block.conv1"))
    return {"model": patient.converted()}


def tied(patient: Patient) -> Given:
    first, second = (patient.part(patient.teacher, name) for name in ("block.conv1", "block.conv2"))
    second.weight = first.weight
    return {"model": patient.converted()}


def second_reference(patient: Patient) -> Given:
    """Let the block call its convolutions from a list that it keeps beside them."""
    block = patient.part(patient.teacher, "block")
    block.order = [block.conv1, block.conv2]
    listed = {"conv1": property(lambda self: self.order[0]), "conv2": property(lambda self: self.order[1])}
    block.__class__ = type("ListedBlock", (type(block),), listed)
    return {"model": patient.converted()}


def circular(patient: Patient) -> Given:
    patient.part(patient.teacher, "block.conv2").padding_mode = "circular"
    return {"model": patient.converted()}


def lost_hook(patient: Patient) -> Given:
    patient.part(patient.teacher, "block.conv1").register_forward_hook(lambda module, inputs, output: output + 1)
    return {"model": patient.converted()}


def without_moped(patient: Patient) -> Given:
    return {"model": patient.converted(moped=False)}


def deterministic_checkpoint(patient: Patient) -> Given:
    model = patient.converted(moped=False)
    model.load_state_dict(patient.teacher.state_dict(), strict=False)
    return {"model": model}


CONVERSION = (
    Fault(
        id="A15-weight-norm",
        description="a parametrized layer owns a child module and is skipped",
        inject=weight_norm,
        fails={"layers.replaced": ("head", "parametrizations", "skips")},
    ),
    Fault(
        id="A15-lora",
        description="a layer with LoRA's children is skipped, the children are not",
        inject=low_rank,
        fails={"layers.replaced": ("head", "lora_a", "skips")},
    ),
    Fault(
        id="A16-midway",
        description="a subclass raises midway and leaves the model half converted",
        inject=raises_midway,
        fails={"layers.replaced": ("2 of {layers}", "block.conv2", "head", "is still nn.")},
    ),
    Fault(
        id="A16-namesake",
        description="a user's own class that is merely named Conv2d is replaced",
        inject=namesake,
        fails={"mean.equals_teacher": ("block.conv1", "not torch's")},
        # The user's layer is not the one that these weights were trained in.
        open=("teacher.agreement",),
    ),
    Fault(
        id="A17-twice",
        description="a module used at two places becomes two",
        inject=used_twice,
        fails={"layers.replaced": ("block.conv1", "block.conv2", "one module", "two in the model")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="A17-tied",
        description="a weight shared by two layers is untied",
        inject=tied,
        fails={"layers.replaced": ("block.conv1", "block.conv2", "shares its weight", "no longer")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="A17-reference",
        description="a reference outside _modules keeps the old layers in use",
        inject=second_reference,
        fails={"layers.replaced": ("block.conv1", "block.conv2", "never called")},
    ),
    Fault(
        id="A18",
        description="padding_mode is lost",
        inject=circular,
        fails={"mean.equals_teacher": ("block.conv2", "padding mode")},
        open=("teacher.agreement",),
    ),
    Fault(
        id="A21-hook",
        description="forward hooks are lost",
        inject=lost_hook,
        fails={"mean.equals_teacher": ("block.conv1",)},
        open=("teacher.agreement",),
    ),
    Fault(
        id="A22",
        description="MOPED off discards the trained weights",
        inject=without_moped,
        fails={"mean.equals_teacher": ("teacher's weights are not in this model", "moped_enable", "stem", "cosine")},
        # Of random weights in a deep network the noise leaves little.
        open=("noise.spread", "teacher.agreement"),
    ),
    Fault(
        id="A26",
        description="a deterministic state_dict loaded with strict=False leaves random weights",
        inject=deterministic_checkpoint,
        fails={"mean.equals_teacher": ("teacher's weights are not in this model", "strict=True")},
        # Of random weights in a deep network the noise leaves little.
        open=("noise.spread", "teacher.agreement"),
    ),
)
