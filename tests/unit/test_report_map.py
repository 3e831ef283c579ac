"""The map of a model: the tree of its modules, with what each part has of weights, KL and noise."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from pytest_bnn.records.run import AuditRun, LayerRow, SubjectRecord
from pytest_bnn.report import render_html
from pytest_bnn.report.tree import Map, bar, heat, signal, state, strip
from tests.unit.test_report import HOSTILE, Page


def row(path: str, kl: float | None = 1.0, noise: float | None = None, accepted: str = "") -> LayerRow:
    return LayerRow(
        path=path, kind="Linear (Reparameterization)", shape="8x8", weights=100, bayesian=kl is not None,
        sigma_over_mu=None if kl is None else 0.1, kl=kl, accepted=accepted, noise=noise,
    )  # fmt: skip


LAYERS = (
    row("stem", 1.0, 0.5),
    row("layer1.0.conv1", 2.0, 0.1),
    row("layer1.0.conv2", 3.0, 0.2),
    row("layer2.0.downsample.0", 2.0, 0.2),
    row("head.fc", None, accepted="latency budget"),
    row("head.out", None),
)


def page_of(*layers: LayerRow) -> str:
    record = SubjectRecord(name="net", stage="converted", model="m", teacher=None, images=0, layers=layers)
    text = render_html(AuditRun(subjects=(record,)))
    found = re.search(r'<section id="subjects">.*?(?=<section id="provenance">)', text, re.DOTALL)
    assert found is not None
    return found[0]


def test_modules_are_set_in_and_chains_of_single_parts_are_one_line() -> None:
    lines = Map(LAYERS).lines
    assert [(line.name, line.depth, line.layer is not None) for line in lines] == [
        ("stem", 0, True),
        ("layer1.0", 0, False),
        ("conv1", 1, True),
        ("conv2", 1, True),
        ("layer2.0.downsample.0", 0, True),
        ("head", 0, False),
        ("fc", 1, True),
        ("out", 1, True),
    ]
    assert [line.path for line in lines][2] == "layer1.0.conv1"


def test_parts_have_the_sums_of_their_layers() -> None:
    part = Map(LAYERS).lines[1]
    assert part.weights == 200
    assert part.kl_share == pytest.approx(5 / 8)
    assert part.noise == pytest.approx(0.3)
    assert part.bayesian == 2
    assert sum(line.kl_share or 0 for line in Map(LAYERS).lines if not line.depth) == pytest.approx(1)


def test_a_layer_is_bayesian_accepted_or_deterministic() -> None:
    assert [state(layer) for layer in LAYERS[3:]] == ["bayesian", "accepted", "deterministic"]
    text = Page(page_of(*LAYERS)).text
    assert "4 of 6 layers are Bayesian (66.7 % of 600 weights); 1 accepted" in text
    assert "1 still deterministic" in text
    assert "✓ accepted latency budget" in text
    assert "✕ deterministic" in text


def test_the_signal_is_the_inverse_of_the_relative_width() -> None:
    found = [signal(replace(LAYERS[0], sigma_over_mu=value)) for value in (0.1, 4.0, 0.0, math.inf, None)]
    assert found == [pytest.approx(10), 0.25, math.inf, 0.0, None]
    assert math.isnan(signal(replace(LAYERS[0], sigma_over_mu=math.nan)) or 0.0)


def test_noise_that_was_not_measured_is_said_and_not_drawn() -> None:
    measured, unmeasured = page_of(*LAYERS), page_of(*(replace(layer, noise=None) for layer in LAYERS))
    assert 'class="chart strip"' in measured
    assert "Noise share" in Page(measured).text
    assert 'class="chart strip"' not in unmeasured
    assert "Noise by layer: not measured" in Page(unmeasured).text
    drawn = strip(LAYERS, "net")
    assert drawn.count('class="unmeasured"') == 2
    assert "head.fc: not measured" in drawn
    assert "The largest share, 50.0\u00a0%, is that of stem" in drawn


def test_more_noise_is_darker() -> None:
    shades = [int(re.findall(r'class="h(\d+)"', heat(share))[0]) for share in (0.0, 1e-6, 0.05, 0.3, 0.9, 1.0, 7.0)]
    assert shades == sorted(shades)
    assert (shades[0], shades[1], shades[-1]) == (0, 1, 10)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e308, -1.0, 5e-324])
def test_odd_numbers_break_no_map(odd: float) -> None:
    """Two KLs of 1e308 have no finite sum."""
    layers = (row("a.b", odd, odd), row("a.c", odd, odd), replace(row("d"), sigma_over_mu=odd))
    page = Page(page_of(*layers))
    assert not page.open
    for drawing in (bar(odd), heat(odd), strip(layers, "net")):
        assert not re.search(r'="[^"]*(nan|inf)[^"]*"', drawing, re.IGNORECASE)


def test_a_path_that_is_empty_twice_the_same_or_hostile_is_shown() -> None:
    text = Page(page_of(row(""), row("a"), row("a.b"), row("a"), row(HOSTILE))).text
    assert "the model itself" in text
    assert "<script>alert(1)</script>" in text


def test_no_chart_of_a_map_has_a_style_of_its_own() -> None:
    """The policy of the page would not let it in."""
    assert " style=" not in page_of(*LAYERS)
