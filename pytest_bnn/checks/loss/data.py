"""``loss.data``: do the data reach every drawn weight through the loss, and do they pull the right way?"""

from __future__ import annotations

from dataclasses import replace

from pytest_bnn.checks._objective import Evaluation, cut_of
from pytest_bnn.checks._outputs import Outputs, at_the_outputs
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import NOTHING_BAYESIAN, Finding, not_applicable
from pytest_bnn.checks.kl._sick import not_finite
from pytest_bnn.checks.loss._noise import noise_in_training
from pytest_bnn.checks.loss._reach import arrived, unreached, without_effect
from pytest_bnn.checks.loss._replaced import largest_at_the_labels
from pytest_bnn.libraries.posterior import BayesianLayer, bayesian_layers
from pytest_bnn.libraries.protocol import tensors_of
from pytest_bnn.network import naming
from pytest_bnn.records.evidence import LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.subject import Subject


@check(
    claim="The data reach every drawn weight through the training loss, in train mode too, and pull the outputs toward "
    "their labels.",
    needs=("loss", "images"),
    can=("mean_field", "used_weights"),
    after="gradient.samples",
)
def data(subject: Subject) -> Finding:
    """Measure whether the data reach every drawn weight through the loss, and pull the outputs toward their labels.

    The loss is evaluated with every drawn weight detached where it is used: the gradient to it is the data's. Fails
    where none comes to a layer whose weights change the loss, where the loss does not depend on the outputs, pushes
    them away from their labels, pairs them with labels of other rows, takes scores for log-probabilities, runs the
    teacher in train mode, or where the noise is gone, or cut off from rho, in train mode; warns where the loss draws
    none in either mode, and the model does. Exact: no randomness beyond one draw.

    Args:
        subject: loss and images, at least; see `Subject`. The loss gets one batch, see `Subject.loss_batch`.

    Raises:
        InputError: The loss raised, or returned no scalar tensor.

    Source: the gradient of cross-entropy at the scores, Bishop 2006, equation 4.109; distillation and its factor T^2,
        Hinton, Vinyals and Dean 2015, section 2.
    """
    layers = bayesian_layers(subject.model)
    if not layers:
        return not_applicable(NOTHING_BAYESIAN)
    if sick := not_finite(layers):
        return not_applicable(
            f"{naming.called(sick[0].path)} ({sick[0].finding}): see kl.present, and load or train its weights again"
        )
    left = cut_of(subject, layers)
    if not left.called:
        return _never_called(left)
    seen = [layer for layer in layers if layer.path not in left.not_cut]
    called = {call.layer.path for call in left.calls}
    judged = [layer for layer in seen if layer.path in called]
    if not judged and not left.undrawn:
        return not_applicable(
            "no layer shows the weights that it draws: the claim is about weights that a convolution or linear call "
            "uses; see docs/checks/loss.data.md"
        )
    return (
        unreached(subject, judged, left)
        or without_effect(subject, judged, left)
        or _the_teacher_in_train_mode(subject, left)
        or _judged(subject, layers, judged, left)
    )


measure_loss_data, assert_loss_data = data.measure, data.assert_


def _never_called(left: Evaluation) -> Finding:
    if not left.reached:
        return not_applicable("the loss never called the model that it was given: see kl.loss")
    return Finding(
        verdict=Verdict.FAIL,
        headline="the loss takes the KL term of the model that it was given and never calls it: no data reach its "
        "weights, whatever network the data term is about",
        measurements=(Measurement(name="calls of the model in a loss", value=0),),
        threshold=Threshold(quantity="calls of the model in a loss", observed=0, relation=">=", allowed=1),
        remedy="compute the data term from the outputs of the loss's first argument, not of a copy or of a global",
    )


def _judged(
    subject: Subject, layers: tuple[BayesianLayer, ...], judged: list[BayesianLayer], left: Evaluation
) -> Finding:
    outputs = at_the_outputs(subject, left)
    if outputs.form == "distance" and outputs.sign == -1 and not largest_at_the_labels(subject, layers, left):
        outputs.pulls = [replace(pull, form="unknown", sign=0) for pull in outputs.pulls]
    problem = outputs.problem()
    training = noise_in_training(subject, layers, left)
    notes = [*outputs.notes, *training.notes]
    unseen = [layer.path for layer in layers if layer.path in left.not_cut]
    if unseen:
        notes.append(
            f"not judged: {naming.called(unseen[0])}" + (f" and {len(unseen) - 1} more" if len(unseen) > 1 else "")
        )
    unused = [layer.path for layer in judged if not arrived(left, layer)]
    if unused:
        notes.append(
            f"no data come to {', '.join(map(naming.called, unused[:3]))}: the loss does not use what it computes"
        )
    if problem is not None:
        verdict, headline, remedy = problem
        return _finding(verdict, headline, remedy, outputs, notes, ())
    if training.layers:
        rows = tuple(
            LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding=training.finding)
            for layer in training.layers
        )
        verdict = Verdict.WARN if training.meant else Verdict.FAIL
        return _finding(verdict, training.headline(len(layers)), training.remedy, outputs, notes, rows)
    tensors = len(tensors_of(judged))
    modes = " in eval and train mode" if training.judged else ""
    headline = (
        f"the data reach the drawn weights of {tensors} tensors{modes}; the pull on the outputs is {outputs.words}"
    )
    return _finding(Verdict.PASS, headline, "", outputs, notes, ())


def _finding(
    verdict: Verdict,
    headline: str,
    remedy: str,
    outputs: Outputs,
    notes: list[str],
    layers: tuple[LayerFinding, ...],
) -> Finding:
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="calls of the model in a loss", value=len(outputs.pulls)),
            Measurement(name="pull on the outputs", value=outputs.form),
            Measurement(name="factor of a row", value=outputs.scale, unit="of the form's own gradient"),
        ),
        threshold=Threshold(quantity="direction of the pull", observed=outputs.sign, relation=">=", allowed=0),
        layers=layers,
        remedy=remedy,
        notes=tuple(notes),
    )


def _the_teacher_in_train_mode(subject: Subject, left: Evaluation) -> Finding | None:
    if subject.teacher is None:
        return None
    own = {id(module): name for name, module in subject.teacher.named_modules()}
    moved = [own[id(module)] for module in left.foreign if id(module) in own]
    if not moved:
        return None
    return Finding(
        verdict=Verdict.FAIL,
        headline=f"the loss runs the teacher in train mode: {len(moved)} of its modules, `{moved[0]}` first, work with "
        "the statistics of each batch, and their running ones move with every evaluation",
        measurements=(Measurement(name="modules of the teacher that moved", value=len(moved)),),
        threshold=Threshold(
            quantity="modules of the teacher that moved", observed=len(moved), relation="==", allowed=0
        ),
        layers=tuple(
            LayerFinding(
                path=f"the teacher's {name}", kind="teacher", ok=False, finding="its buffers moved in the loss"
            )
            for name in moved
        ),
        remedy="call teacher.eval() once before training, and nothing that puts it back into train mode",
    )
