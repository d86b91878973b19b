"""Simulate when batches are looked at: how late an end is seen on average, and how many looks it takes.

    python -m tests.benchmarks.looks

A batch ends at any moment around the age. `before` is the curve until this release, `now` is the package's own. A look
is one call for up to 100 batches of a connection.
"""

import random
from collections.abc import Callable, Mapping

from airflow_batch_llm.core.waiting import interval

CURVES: Mapping[str, Callable[[float], float]] = {
    "before": lambda age: min(300.0, max(2.0, age / 10)),
    "every 60 s": lambda _: 60.0,
    "now": interval,
}
_AGES = {"1 min": 60, "5 min": 300, "20 min": 1200, "1 h": 3600, "6 h": 21_600, "24 h": 86_400}
_BATCHES = 2000


def simulate(curve: Callable[[float], float], age: float) -> tuple[float, float]:
    """Return the mean lateness in seconds, and the mean number of looks, of batches that end at about this age."""
    dice = random.Random(0)
    late = looks = 0.0
    for _ in range(_BATCHES):
        end = age * dice.uniform(0.8, 1.2)
        now, count = 0.0, 1
        while now < end:
            now += curve(now) * dice.uniform(0.9, 1.1)
            count += 1
        late, looks = late + now - end, looks + count
    return late / _BATCHES, looks / _BATCHES


def main() -> None:
    print(f"{'':8}" + "".join(f"{name + ': s late':>20}{'looks':>8}" for name in CURVES))
    for told, age in _AGES.items():
        seen = [simulate(curve, age) for curve in CURVES.values()]
        print(f"{told:8}" + "".join(f"{late:>20.1f}{looks:>8.0f}" for late, looks in seen))


if __name__ == "__main__":
    main()
