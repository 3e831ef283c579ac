"""The exercise as it was published, with its mistakes kept, for the audit to judge.

Only the data is another: the embedded digits teacher and a held-out digit in place of ImageNet and a dog, so that it
runs offline. ``resnet18_notebook.py`` does it well. What is wrong here:

1. moped_delta is .5, which drowned the knowledge of the original's ImageNet network; the digits survive it;
2. the loss has no KL term, although the function for it is imported;
3. gradients are cleared once before the loop, so they add up over the steps;
4. one image is the whole training set;
5. one pass is taken for the prediction, and nothing says how sure it is.

Run it, then audit what it makes, from this folder:

    python resnet18_notebook_as_published.py
    pytest-bnn audit --model resnet18_notebook_as_published:bayesian --teacher resnet18_notebook_as_published:teacher \
        --data resnet18_notebook_as_published:held_out --loss resnet18_notebook_as_published:loss

The audit can see the second mistake. It is given a network, not the loop that trained it, so the third and fourth
show only where they do harm, and the first only where the predictions suffer; the fifth is no property of a network.
"""

from __future__ import annotations

import functools

import torch
from bayesian_torch.models.dnn_to_bnn import (
    dnn_to_bnn,
    get_kl_loss,  # noqa: F401  mistake 2: imported and never used
)
from torch import Tensor, nn

import pytest_bnn

STEPS = 40

PARAMETERS = {
    "prior_mu": 0.0,
    "prior_sigma": 1.0,
    "posterior_mu_init": 0.0,
    "posterior_rho_init": -3.0,
    "type": "Reparameterization",
    "moped_enable": True,
    "moped_delta": 0.5,  # mistake 1
}


@functools.cache
def teacher() -> nn.Module:
    """Return the deterministic ResNet18."""
    return pytest_bnn.load_teacher("digits").model


def held_out() -> tuple[Tensor, Tensor]:
    """Return the digits that the teacher never saw, with labels."""
    return pytest_bnn.digits("held_out")


def loss(model: nn.Module, batch: tuple[Tensor, Tensor | None]) -> Tensor:
    """Return the mean squared error to the teacher's logits; mistake 2: nothing holds the posterior to its prior."""
    with torch.no_grad():
        target = teacher()(batch[0])
    return nn.functional.mse_loss(model(batch[0]), target)


def converted() -> nn.Module:
    """Return the Bayesian network before its fine-tuning."""
    model = pytest_bnn.load_teacher("digits").model
    dnn_to_bnn(model, PARAMETERS)
    return model.eval()


def finetune(model: nn.Module, image: Tensor, *, steps: int = STEPS, say: bool = False) -> None:
    """Train toward the teacher's logits for one image (mistake 4), and print what one pass says of it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    optimizer.zero_grad()  # mistake 3: belongs into the loop
    for step in range(1, steps + 1):
        value = loss(model, (image, None))
        value.backward(retain_graph=True)
        optimizer.step()
        schedule.step()
        if say:
            print(f"  step {step:>3}: {predict(model, image)}")


def predict(model: nn.Module, image: Tensor) -> str:
    """Return the leading class of a single pass, in percent; mistake 5."""
    with torch.no_grad():
        shares = model(image).softmax(1)[0]
    return f"{pytest_bnn.load_teacher('digits').class_names[int(shares.argmax())]} {100 * float(shares.max()):.4f} %"


def bayesian() -> nn.Module:
    """Return the network that the exercise ends with."""
    model = converted()
    finetune(model, held_out()[0][:1])
    return model


def main() -> int:
    """Run the exercise."""
    image = held_out()[0][:1]
    print(f"the teacher: {predict(teacher(), image)}")
    model = converted()
    for number in (1, 2):
        print(f"the BNN, pass {number}: {predict(model, image)}")
    finetune(model, image, say=True)
    for number in (1, 2):
        print(f"the BNN after fine-tuning, pass {number}: {predict(model, image)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
