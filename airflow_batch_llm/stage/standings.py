"""What a run folder says of its rounds and shards, read side by side: a record in object storage takes its time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from airflow_batch_llm.core.journal import Standing, stand
from airflow_batch_llm.stage.folder import RunFolder
from airflow_batch_llm.stage.plan import Plan, PlannedShard

_READERS = 8


def read_rounds(folder: RunFolder) -> Iterator[Plan]:
    """The plans of the rounds so far, from the first."""
    number = 1
    while (data := folder.read_plan(number)) is not None:
        yield Plan.from_json(data)
        number += 1


def read_standings(folder: RunFolder, plan: Plan) -> list[tuple[PlannedShard, Standing]]:
    """Every shard of a round, and where its journal says that it stands."""
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        journals = pool.map(lambda shard: folder.journal(shard.number), plan.shards)
        return [(shard, stand(journal)) for shard, journal in zip(plan.shards, journals, strict=True)]
