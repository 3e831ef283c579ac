"""The HTML page: jinja2 templates, filled from the outline of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_bnn.records.charts import Chart
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.run import AuditRun, LayerRow, TrainingStep
from pytest_bnn.report import charts, curves, tables, trajectory, wording
from pytest_bnn.report.outline import QUIET, Group, by_mean, by_teacher, leaders, outline, picture

if TYPE_CHECKING:
    from jinja2 import Environment

_T = TypeVar("_T")
_OFFENDERS_SHOWN = 12
_QUIET_CARDS_SHOWN = 24
_STEPS_SHOWN = 6


def render(run: AuditRun) -> str:
    """Return the run as one HTML page."""
    shape = outline(run)
    page = _environment().get_template("report.html.j2")
    return wording.clean(
        page.render(
            run=run,
            outline=shape,
            sentence=wording.sentence(shape.counts),
            counts=wording.in_severity_order(shape.counts),
            seeds=sorted({check.seed for check in run.checks}),
            provenance=sorted(run.provenance.items()),
        )
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pytest_bnn.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        number=wording.number,
        percent=wording.percent,
        plural=wording.plural,
        seconds=wording.seconds,
        word=wording.word,
    )
    environment.globals.update(
        allowed=wording.allowed,
        by_mean=by_mean,
        by_teacher=by_teacher,
        chart_tables=tables.chart_tables,
        curves=_markup(curves.curves),
        difference=tables.difference,
        draw_ridges=_markup(curves.ridges),
        few=_few,
        interval=wording.interval,
        keys=_keys,
        layer_summary=_layer_summary,
        leaders=leaders,
        offenders=_offenders,
        picture=picture,
        ridge_table=tables.ridge_table,
        rows_of=_rows_of,
        scalar=wording.scalar,
        score=tables.score,
        split_cards=_split_cards,
        symbols=wording.SYMBOLS,
        tally=_tally,
        troubled=_troubled,
        distribution=_markup(charts.distribution),
        gauge=_markup(charts.gauge),
        multiples=_each_markup(trajectory.multiples),
        verdict_bar=_markup(charts.verdict_bar),
        width_axis=_markup(charts.width_axis),
        width_bar=_markup(charts.width_bar),
        width_scale=charts.width_scale,
    )
    return environment


def _markup(draw: Callable[..., str]) -> Callable[..., Any]:
    """Mark a chart as safe: `svg` escaped whatever of it came from the run."""
    from markupsafe import Markup

    @wraps(draw)
    def drawn(*args: Any) -> Markup:
        return Markup(draw(*args))  # noqa: S704 - svg.py escaped it

    return drawn


def _each_markup(draw: Callable[..., list[str]]) -> Callable[..., Any]:
    from markupsafe import Markup

    @wraps(draw)
    def drawn(*args: Any) -> list[Markup]:
        return [Markup(chart) for chart in draw(*args)]  # noqa: S704 - svg.py escaped it

    return drawn


def _keys(chart: Chart) -> list[tuple[Any, str]]:
    """Return the legend of a chart: drawings, and what they stand for."""
    from markupsafe import Markup

    return [(Markup(key.drawing), key.name) for key in curves.keys(chart)]  # noqa: S704 - svg.py escaped it


def _few(items: Sequence[_T], most: int) -> tuple[Sequence[_T], Sequence[_T]]:
    """Split what is shown from what is folded away; a single leftover is not worth folding."""
    return (items, ()) if len(items) <= most + 1 else (items[:most], items[most:])


def _offenders(layers: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Put offending layers first and split those shown from those folded away."""
    bad, good = [layer for layer in layers if not layer.ok], [layer for layer in layers if layer.ok]
    shown = bad[:_OFFENDERS_SHOWN]
    return shown, [*bad[_OFFENDERS_SHOWN:], *good]


def _split_cards(group: Group) -> tuple[Sequence[Any], Sequence[Any]]:
    """Fold away the cards beyond the first that ask nothing of the reader."""
    loud = [card for card in group.cards if card.evidence.verdict not in QUIET]
    quiet = [card for card in group.cards if card.evidence.verdict in QUIET]
    shown, folded = _few(quiet, _QUIET_CARDS_SHOWN)
    return [*loud, *shown], folded


def _tally(group: Group) -> list[tuple[Verdict, int]]:
    return wording.in_severity_order(group.counts)


def _troubled(verdict: Verdict) -> bool:
    return verdict not in QUIET


def _layer_summary(layers: Sequence[LayerRow]) -> str:
    """Say how many layers are Bayesian, with the number of weights and the KL of all."""
    bayesian = sum(layer.bayesian for layer in layers)
    told = f"{bayesian:,} of {wording.plural(len(layers), 'layer')} Bayesian, "
    told += wording.plural(sum(layer.weights for layer in layers), "weight")
    divergences = [layer.kl for layer in layers if layer.kl is not None]
    if not divergences:
        return told
    return f"{told}, KL {wording.number(sum(divergences))} nats in all"  # fsum raises where it overflows


def _rows_of(steps: Sequence[TrainingStep]) -> list[TrainingStep]:
    """Pick a few steps that tell the course: the first, the last and some evenly between."""
    if len(steps) <= _STEPS_SHOWN:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(index * last / (_STEPS_SHOWN - 1))] for index in range(_STEPS_SHOWN)]
