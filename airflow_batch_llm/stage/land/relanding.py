"""A finished run, landed once more from the lines that are kept: for tables that were dropped or altered since.

It asks no provider, pays nothing, and leaves the run folder as it is. What a later run has answered stays.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.stage.land.collecting import Collector
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.standings import read_rounds, read_standings
from airflow_batch_llm.stage.round import Round


def land_again(parts: Parts, folder: RunFolder) -> int:
    """Make the tables of the run as they were planned and merge all its rounds. Returns the number of answers."""
    if folder.read_report() is None:
        raise InputError(f"The run {folder.path} is not finished. A retry lands it, and sends nothing twice.")
    rounds = list(read_rounds(folder))
    parts.target.prepare(rounds[0].target)
    parts.spool.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parts.spool) as scratch:
        return sum(_land(parts, folder, plan, Path(scratch)) for plan in rounds)


def _land(parts: Parts, folder: RunFolder, plan: Plan, scratch: Path) -> int:
    collector = Collector(parts=parts, folder=folder, plan=plan, scratch=scratch)
    current = Round(parts=parts, folder=folder, plan=plan, places=0, deadline=0.0, scratch=scratch)
    try:
        tallies = [collector.stage(shard, standing)[1] for shard, standing in read_standings(folder, plan)]
        current.publish()
    finally:
        current.unstage()
    return sum(tally.outcomes[Outcome.SUCCEEDED] for tally in tallies)
