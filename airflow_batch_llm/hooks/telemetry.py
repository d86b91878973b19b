"""Send the metrics that worker and triggerer share, and hold the tags that every metric of ours has.

A metric must not fail a run whose rows are paid for, so tags hold only what every backend takes.
"""

import re

from airflow.providers.common.compat.sdk import Stats

#: Plain StatsD ends a name at a colon, and its client sends ASCII only.
_UNSAFE = re.compile(r"[^\w./@+-]", re.ASCII)


def metric_tags(**given: object) -> dict[str, str]:
    """Return these tags, with an underscore for each character that some backend does not take."""
    return {name: _UNSAFE.sub("_", str(value)) for name, value in given.items()}


def gauge_open_since(since: float, *, dag_id: str, task_id: str, map_index: int = -1) -> None:
    """Send the time since which a task has an open run, in seconds since the epoch. 0: it has none."""
    tags = metric_tags(dag_id=dag_id, task_id=task_id)
    if map_index >= 0:
        tags["map_index"] = str(map_index)
    Stats.gauge("batch_llm.open_since", since, tags=tags)
