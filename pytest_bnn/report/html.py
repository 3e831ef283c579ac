"""The HTML page: jinja2 templates, filled from the outline of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_bnn.records.charts import Chart
from pytest_bnn.records.run import AuditRun, TrainingStep
from pytest_bnn.report import charts, curves, prose, standing, svg, tables, trajectory, tree, wording
from pytest_bnn.report.extent import Extent, extent
from pytest_bnn.report.gauge import gauge_of
from pytest_bnn.report.identity import identities, of_the_audit
from pytest_bnn.report.outline import Card, Group, by_mean, by_teacher, leaders, outline, picture
from pytest_bnn.report.policy import footer, policy
from pytest_bnn.report.quality import quality
from pytest_bnn.report.standing import LOUD, Standing
from pytest_bnn.report.top import top

if TYPE_CHECKING:
    from jinja2 import Environment

_T = TypeVar("_T")
_STYLES = ("style.css", "top.css", "map.css", "print.css")
_SCRIPT = "script.js"
_OFFENDERS_SHOWN = 12
_QUIET_CARDS_SHOWN = 24
_STEPS_SHOWN = 6
_PERCENT = re.compile(r"(?<=\d) %")


def render(run: AuditRun, text: str) -> str:
    """Return the run, and the text of its JSON, as one HTML page."""
    shape = outline(run)
    styles, script = ["".join(texts(_STYLES)), footer(run, text)], "".join(texts((_SCRIPT,)))
    return wording.clean(
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            outline=shape,
            top=top(run, shape),
            quality=quality(shape),
            identities=identities(shape),
            audited=of_the_audit(run),
            extent=extent(run, shape),
            policy=policy(styles, [script]),
            styles=[trusted(style) for style in styles],
            script=trusted(script),
            counts=wording.in_severity_order(shape.counts),
            prose=partial(as_prose, prose.names_of(run)),
            seeds=sorted({check.seed for check in run.checks}),
            provenance=sorted((name, said) for name, said in run.provenance.items() if name != "repeat"),  # below it
        )
    )


def texts(names: Sequence[str]) -> list[str]:
    """Return files of the page as they are, with line breaks as browsers hash them."""
    loader = environment().loader
    assert loader is not None
    return [loader.get_source(environment(), name)[0].replace("\r\n", "\n") for name in names]


def trusted(content: str) -> Any:
    """Mark a style or a script of our own, in which nothing of the run is left as it was, as safe."""
    from markupsafe import Markup

    return Markup(content)  # noqa: S704 - a file of this package, or escaped by policy.py


@cache
def environment() -> Environment:
    """Return where the templates are, with what they call."""
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
        capital=wording.capital,
        clipped=wording.clipped,
        number=wording.number,
        percent=wording.percent,
        plural=wording.plural,
        seconds=wording.seconds,
        shorten=svg.shorten,
        stage=wording.stage,
        word=standing.word,
    )
    environment.globals.update(
        allowed=wording.allowed,
        by_mean=by_mean,
        by_teacher=by_teacher,
        chart_tables=tables.chart_tables,
        charted=_charted,
        curves=_markup(curves.curves),
        difference=tables.difference,
        draw_ridges=_markup(curves.ridges),
        fared=standing.fared,
        few=_few,
        interval=wording.interval,
        keys=_keys,
        layer_state=tree.state,
        leaders=leaders,
        loud=LOUD,
        offenders=_offenders,
        picture=picture,
        ridge_table=tables.ridge_table,
        rows_of=_rows_of,
        scalar=wording.scalar,
        score=tables.score,
        split_cards=_split_cards,
        symbols=standing.SYMBOLS,
        tally=_tally,
        distribution=_markup(charts.distribution),
        gauge=_markup(gauge_of),
        map_lines=_map_lines,
        map_of=tree.Map,
        share_bar=_markup(tree.bar),
        share_heat=_markup(tree.heat),
        signal=tree.signal,
        strip=_markup(tree.strip),
        multiples=_each_markup(trajectory.multiples),
        verdict_bar=_markup(charts.verdict_bar),
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


def _split_cards(group: Group, most: Extent) -> tuple[Sequence[Card], Sequence[Card]]:
    """Fold away the cards that ask nothing of the reader: beyond the first ones, or all on a short page."""
    loud = [card for card in group.cards if card.standing in LOUD]
    quiet = [card for card in group.cards if card.standing not in LOUD]
    shown, folded = ([], quiet) if most.short else _few(quiet, _QUIET_CARDS_SHOWN)
    return [*loud, *shown], folded


def _tally(group: Group) -> list[tuple[Standing, int]]:
    return wording.in_severity_order(group.counts)


def as_prose(known: Collection[str], text: str, stop: bool = True) -> Any:
    """Write a text of the run as a sentence, with names in code type."""
    from markupsafe import Markup, escape

    parts = prose.pieces(text, known, stop=stop)

    as_name, as_option = Markup("<code>{}</code>"), Markup('<code class="option">{}</code>')

    def written(part: prose.Piece) -> Any:
        if part.code:
            return (as_option if part.text.startswith("--") else as_name).format(part.text)
        return escape(_PERCENT.sub("\u00a0%", part.text))

    return Markup("").join(map(written, parts))


def _map_lines(shown: tree.Map, most: Extent) -> tuple[Sequence[tree.Line], bool]:
    """Return the lines of a map and whether these are all: of one that is too long its parts, and what is not Bayesian.

    The layers that are not Bayesian are as many as fit, after the parts.
    """
    if len(shown.lines) <= most.layers:
        return shown.lines, True
    parts = [line for line in shown.lines if not line.depth]
    other = [line for line in shown.lines if line.depth and line.layer is not None and not line.layer.bayesian]
    kept = {line.path for line in (*parts, *other)[: max(1, most.layers)]}
    return [line for line in shown.lines if line.path in kept], False


def _charted(group: Group, most: Extent) -> list[Card]:
    """Return the cards whose charts are drawn."""
    return [card for card in group.cards if card.evidence.charts and most.whole(card)]


def _rows_of(steps: Sequence[TrainingStep]) -> list[TrainingStep]:
    """Pick a few steps that tell the course: the first, the last and some evenly between."""
    if len(steps) <= _STEPS_SHOWN:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(index * last / (_STEPS_SHOWN - 1))] for index in range(_STEPS_SHOWN)]
