"""``kl.loss``: does a training loss contain the KL term, and with which weight?

With every eps at 0 a layer's weights are mu, so the data term has exactly no gradient to rho, and the loss's
gradient to rho is ``weight * dKL/drho``, element by element, whatever the loss looks like. The data term does not
depend on the prior either: moving the prior gives a second opinion that tells a missing term from a detached one, and
the weight itself where every sigma still is the prior's and the KL has no gradient to rho. All of it stands on noise
that is proven to be silent on the model at hand; where it is not, the claim is not applicable.
"""

from __future__ import annotations

from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import BAYESIAN_LAYERS, Finding
from pytest_bnn.checks.kl._judgement import Judgement
from pytest_bnn.checks.kl._reading import Declared
from pytest_bnn.checks.kl._sick import NOT_FINITE, counted, not_finite
from pytest_bnn.checks.kl._verdict import judge
from pytest_bnn.checks.values import Count, Positive
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.naming import called
from pytest_bnn.records.evidence import Measurement, Verdict
from pytest_bnn.subject import Subject


@check(
    claim="The training loss contains the KL term, with the weight that it should have.",
    needs=("loss", "images"),
    can=("mean_field", "divergence", "used_weights"),
    after="kl.present",
    either=("kl_weight", "num_batches"),
)
def loss(
    subject: Subject,
    *,
    kl_weight: Positive | None = None,
    num_batches: Count | None = None,
    num_data: Count | None = None,
) -> Finding:
    """Measure whether a training loss contains the KL term with the weight that it should have.

    Fails where the term is missing, detached, negative, on some tensors only, or has another weight than the
    expected one; without an expected weight it reports the one found. Not applicable where the layers' noise cannot be
    silenced, or the loss changes by itself from call to call. Exact: no randomness.

    Args:
        subject: loss and images, at least; see `Subject`. The loss gets one batch, see `Subject.loss_batch`.
        kl_weight: The weight that the KL term should have, in the convention that the loss uses.
        num_batches: Expect 1 / num_batches, in units of the data term where that shows: beside half a cross-entropy
            half of it. A KL summed over weights has it beside a data term summed over examples.
        num_data: How many examples there are to train on: a summed KL has 1 / num_data beside a mean over examples.

    Raises:
        ValueError: Both expectations are given, or one is not above 0.
        InputError: The loss raised, or returned no scalar tensor.

    Source: the bound of Blundell et al. 2015, section 3.4, for the weight 1 / number of batches.
    """
    return _find(subject, Declared(kl_weight=kl_weight, num_batches=num_batches, num_data=num_data))


measure_kl_loss, assert_kl_loss = loss.measure, loss.assert_


def _find(subject: Subject, declared: Declared) -> Finding:
    layers = bayesian_layers(subject.model)
    if not layers:
        return Finding(
            verdict=Verdict.FAIL,
            headline="there is no KL term that a loss could contain: the model has no Bayesian layer",
            measurements=(Measurement(name=BAYESIAN_LAYERS, value=0),),
            remedy="convert the network with pytest_bnn.convert(model), and audit what it returns",
        )
    sick = not_finite(layers)
    if sick:
        return Finding(
            verdict=Verdict.FAIL,
            headline=f"no loss can contain a finite KL term: {called(sick[0].path)} ({sick[0].finding})",
            measurements=counted(sick),
            layers=tuple(sick),
            remedy=NOT_FINITE,
        )
    return judge(Judgement(subject, layers, declared, "cut"))
