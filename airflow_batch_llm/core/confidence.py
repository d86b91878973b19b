"""Say how sure a count is: intervals of a share, and tests of two answers to the same rows.

Nothing here is an approximation that fails for few rows: Wilson's interval, McNemar's exact test, and Tango's score
test where a drop up to a margin is allowed.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

_NORMAL = NormalDist()
#: The share of cases in which a needed number of rows is to be enough.
_POWER = 0.8
#: More rows than this are no advice.
_MOST_ROWS = 1_000_000


def wilson(right: int, rows: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's interval of a share. Without rows it is everything from 0 to 1."""
    if not rows:
        return 0.0, 1.0
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    share, spread = right / rows, z * z / rows
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    return max(0.0, center - half), min(1.0, center + half)


def rows_for_share(share: float, least: float, confidence: float) -> int | None:
    """Return the rows that tell a share from the least one, in four of five cases. None: no number helps."""
    return _rows(share * (1 - share), share - least, (1 + confidence) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Count the rows that two sides have answered: both right, both wrong, or only one of them right."""

    rows: int
    lost: int
    """Rows that the baseline has right and the candidate wrong."""
    gained: int
    """Rows that the candidate has right and the baseline wrong."""

    @property
    def drop(self) -> float:
        """The accuracy of the baseline less that of the candidate."""
        return (self.lost - self.gained) / self.rows if self.rows else 0.0

    @property
    def swapped(self) -> "Pairs":
        """The same rows with the two sides exchanged."""
        return Pairs(rows=self.rows, lost=self.gained, gained=self.lost)

    def p_worse(self, allowed: float = 0.0) -> float:
        """Return the chance of such a drop or a larger one if the true drop is the allowed one.

        Without an allowance this is McNemar's exact test, with one side. With one it is Tango's score test.
        """
        if allowed == 0:
            return _at_least(self.lost, self.lost + self.gained)
        return 1 - _NORMAL.cdf(self._score(allowed))

    def p_better(self, allowed: float = 0.0) -> float:
        """Return the chance of such a drop or a smaller one if the true drop is the allowed one."""
        if allowed == 0:
            return self.swapped.p_worse()
        return _NORMAL.cdf(self._score(allowed))

    @property
    def p_different(self) -> float:
        """McNemar's exact test with two sides."""
        return min(1.0, 2 * min(self.p_worse(), self.p_better()))

    def drop_between(self, confidence: float) -> tuple[float, float]:
        """Return the interval of the true drop: the values that the score test does not reject."""
        z = _NORMAL.inv_cdf((1 + confidence) / 2)
        return self._drop_at(z), self._drop_at(-z)

    def rows_needed(self, allowed: float, confidence: float) -> int | None:
        """Return the rows that tell such a drop from the allowed one, in four of five cases. None: no number helps."""
        return _rows(self._variance, self.drop - allowed, confidence)

    def drop_seen(self, confidence: float) -> float:
        """Return the drop beyond the allowed one that this many rows show in four of five cases."""
        distance = _NORMAL.inv_cdf(confidence) + _NORMAL.inv_cdf(_POWER)
        return distance * math.sqrt(self._variance / self.rows) if self.rows else 1.0

    @property
    def _variance(self) -> float:
        """The variance of one row's part in the drop. One more row on either side keeps it above 0."""
        if not self.rows:
            return 1.0
        return (self.lost + self.gained + 1) / self.rows - self.drop**2

    def _drop_at(self, z: float) -> float:
        """Return the true drop at which the score has this value. The score falls as the drop grows."""
        low, high = -1.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self._score(middle) > z else (low, middle)
        return (low + high) / 2

    def _score(self, drop: float) -> float:
        """Return Tango's score: the distance of the rows from this true drop, in standard errors."""
        if drop < 0:
            return -self.swapped._score(-drop)
        rows, lost, gained = self.rows, self.lost, self.gained
        linear = drop * (2 * rows - lost + gained) - (lost + gained)
        root = math.sqrt(linear**2 + 8 * rows * gained * drop * (1 - drop))
        share_gained = (root - linear) / (4 * rows) if rows else 0.0
        variance = rows * (2 * share_gained + drop * (1 - drop))
        distance = lost - gained - rows * drop
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)


def _at_least(count: int, tosses: int) -> float:
    """Return the chance that a fair coin shows heads at least this often."""
    sequences = sum(math.comb(tosses, heads) for heads in range(count, tosses + 1))
    return sequences / int(2**tosses)


def _rows(variance: float, distance: float, level: float) -> int | None:
    if distance == 0:
        return None
    z = _NORMAL.inv_cdf(level) + _NORMAL.inv_cdf(_POWER)
    rows = math.ceil(z * z * variance / distance**2)
    return rows if rows <= _MOST_ROWS else None
