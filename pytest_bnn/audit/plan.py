"""Which checks an audit runs, with which options, and which share of the error rates each of them has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_bnn.checks import choices, registry
from pytest_bnn.checks.declaration import CheckOption, Declaration
from pytest_bnn.options import Settings
from pytest_bnn.stats.budget import Budget

#: Options of checks, given in Python: by the check's id, then by the option's name.
Explicit = Mapping[str, Mapping[str, object]]

#: More checks than these are counted, not named.
_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The requirements of an audit's checks, and the most passes that they may draw; see each ``measure_*``."""

    min_agreement: float = 0.95
    population: bool = False
    spread: tuple[float, float] = (1e-3, 1.0)
    max_passes: int = 128
    kl_weight: float | None = None
    num_batches: int | None = None
    allow: Mapping[str, str] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        kl_weight: float | None = None,
        num_batches: int | None = None,
        allow: Mapping[str, str] | None = None,
    ) -> Thresholds:
        """Make thresholds of settings, and of what settings do not hold."""
        least, most = (float(end) for end in settings.spread.split(":"))
        return cls(
            min_agreement=settings.min_agreement,
            population=settings.population == "yes",
            spread=(least, most),
            max_passes=settings.samples,
            kl_weight=kl_weight,
            num_batches=num_batches,
            allow=allow or {},
            budget=Budget(alpha=settings.alpha, beta=settings.beta),
        )

    def options_of(self, check: Declaration) -> dict[str, object]:
        """Return the options of a check that these thresholds settle."""
        of_settings: dict[str, object] = {
            "min_agreement": self.min_agreement,
            "population": self.population,
            "spread": self.spread,
            "samples": self.max_passes,
        }
        found = {}
        for option in check.options:
            follows = option.kind.follows
            if follows is not None and follows.setting in of_settings:
                found[option.name] = _lowered(option, of_settings[follows.setting])
        return {**found, **shorthands(self.kl_weight, self.num_batches, self.allow).get(check.id, {})}


def shorthands(
    kl_weight: float | None = None,
    num_batches: int | None = None,
    allow: Mapping[str, str] | None = None,
    num_data: int | None = None,
) -> dict[str, dict[str, object]]:
    """Return the options of single checks that ``--kl-weight``, ``--num-batches``, ``--num-data``, ``--allow`` mean."""
    weight = {"kl_weight": kl_weight, "num_batches": num_batches, "num_data": num_data}
    found: dict[str, dict[str, object]] = {
        "kl.loss": {name: value for name, value in weight.items() if value is not None},
        "layers.replaced": {"allow": dict(allow)} if allow else {},
        "predictions.rows": {"allow": dict(allow)} if allow else {},
    }
    return {id: options for id, options in found.items() if options}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One check of an audit. ``budget`` is its share of the error rates, None where its claim is exact."""

    id: str
    options: Mapping[str, object]
    budget: Budget | None
    severity: choices.Severity


def plan(
    checks: Sequence[Declaration], explicit: Explicit, budget: Budget, missing: Collection[str] = ()
) -> tuple[Step, ...]:
    """Settle the options of checks, and split the error rates evenly over those that sample and have what they need.

    Args:
        checks: What to run, in this order.
        explicit: Options that were given in Python; the others come from what is in force.
        budget: Of all of them together.
        missing: What was not given, as in the checks' ``needs``: what needs it judges nothing, and takes no share.

    Raises:
        InputError: An option, or an id in ``explicit``, cannot be used.
        TypeError: A name in ``explicit`` is no option.
    """
    for id in explicit:
        if id not in registry.ids():
            registry.refuse(id, "options")
    severities = {check.id: choices.severity_of(check.id) for check in checks}
    judging = [check for check in checks if severities[check.id] != "off" and not set(check.needs) & set(missing)]
    share = budget.split(sum(check.sampled for check in judging))
    return tuple(
        Step(
            id=check.id,
            options=choices.filled(check, explicit.get(check.id, {})),
            budget=share if check.sampled else None,
            severity=severities[check.id],
        )
        for check in checks
    )


def not_given(*, teacher: object, data: object, loss: object, slices: object) -> list[str]:
    """Return which parts of a subject are None, as in the checks' ``needs``."""
    parts = {"teacher": teacher, "images": data, "loss": loss, "slices": slices}
    return [name for name, part in parts.items() if part is None]


def left_out(ids: Collection[str]) -> tuple[str, ...]:
    """Say in words which checks were not asked for; nothing where all were.

    Args:
        ids: Those that were.
    """
    known = registry.ids()
    others = len([id for id in known if id not in ids])
    if not others:
        return ()
    if not ids:
        return (f"none of {len(known)} checks was asked for",)
    checks = "1 other check was" if others == 1 else f"{others} other checks were"
    *first, last = ids
    if len(ids) > _NAMED:
        return (f"only {len(ids)} of {len(known)} checks were asked for",)
    said = f"{', '.join(first)} and {last} were" if first else f"{last} was"
    return (f"only {said} asked for, {checks} not run",)


def merged(*parts: Explicit) -> dict[str, dict[str, object]]:
    """Merge the options of several sources; later sources take precedence."""
    found: dict[str, dict[str, object]] = {}
    for part in parts:
        for id, options in part.items():
            found[id] = {**found.get(id, {}), **options}
    return found


def _lowered(option: CheckOption, value: object) -> object:
    if option.kind.follows is not None and option.kind.follows.lowers:
        assert isinstance(value, int)
        return min(option.default, value)
    return value
