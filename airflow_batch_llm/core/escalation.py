"""Decide which route a row takes next: by its outcome, by a number in its answer, or because the time is nearly over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_batch_llm.core.model import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One reason to ask a row again by another route."""

    to: str
    of: tuple[str, ...]
    """The routes whose rows take another one."""
    on: tuple[Outcome, ...] = ()
    """The outcomes after which a row takes another route, once its attempts on this one are spent."""
    below: Mapping[str, float] = field(default_factory=dict)
    """Columns of the answer, and the number below which a row takes another route. NULL is below every number."""
    left: float | None = None
    """Seconds before the run's end at which batches are cancelled and their open rows go on. None: never."""

    def to_json(self) -> dict[str, Any]:
        """Return the rule for the frozen plan."""
        return {"to": self.to, "of": self.of, "on": self.on, "below": dict(self.below), "left": self.left}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Rule":
        """Return the rule of a frozen plan."""
        return cls(**{**stored, "of": tuple(stored["of"]), "on": tuple(map(Outcome, stored["on"]))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The rules for the rows of one shard, which have taken some routes already."""

    rules: Sequence[Rule] = ()
    route: str = ""
    before: tuple[str, ...] = ()
    """The routes that the rows took before this one. They do not go back to one of them."""
    is_late: bool = False
    """The time has come at which batches are given up."""

    def after_failure(self, outcome: Outcome) -> str | None:
        """Return the route of a row without a good answer whose attempts are spent. Returns None if it takes no other route."""
        if self.is_late and outcome is Outcome.CANCELED:
            late = self.when_late(self.route)
            if late is not None and late not in self.before:
                return late
        return self._first(lambda rule: outcome in rule.on)

    def after_answer(self, values: Mapping[str, object]) -> str | None:
        """Return the route of a row with a good answer. Returns None if the answer counts."""
        return self._first(lambda rule: any(_is_below(values[name], at) for name, at in rule.below.items()))

    @property
    def looks_at(self) -> frozenset[str]:
        """The columns of an answer that decide whether the row takes another route."""
        return frozenset(name for rule in self.rules if self._applies(rule) for name in rule.below)

    def when_late(self, route: str) -> str | None:
        """Return the route that rows of a route take when the time is nearly over."""
        return next(
            (
                rule.to
                for rule in self.rules
                if rule.left is not None and route in rule.of and rule.to != route
            ),
            None,
        )

    def _first(self, fits: Callable[[Rule], bool]) -> str | None:
        return next((rule.to for rule in self.rules if self._applies(rule) and fits(rule)), None)

    def _applies(self, rule: Rule) -> bool:
        return self.route in rule.of and rule.to != self.route and rule.to not in self.before


def _is_below(value: object, number: float) -> bool:
    return value is None or float(value) < number  # type: ignore[arg-type]  # the column is checked to hold numbers


def reachable(rules: Sequence[Rule], route: str) -> frozenset[str]:
    """Return the routes by which a row that begins on this one may be answered, this one included."""
    found, grown = frozenset({route}), frozenset[str]()
    while found != grown:
        grown, found = found, found | {rule.to for rule in rules if found & set(rule.of)}
    return found


def batches_until(rules: Sequence[Rule], deadline: float) -> float:
    """Return the time at which batches are given up for another route."""
    return deadline - max((rule.left for rule in rules if rule.left is not None), default=0.0)
