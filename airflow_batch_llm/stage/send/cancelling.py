"""Ending what a run has at its provider, when nobody waits for it any more. What was answered can still be landed."""

from collections.abc import Iterator
from dataclasses import replace

from airflow_batch_llm.errors import ProviderError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.standings import read_rounds, read_standings


def cancel_run(folder: RunFolder, provider: Provider) -> list[str]:
    """Ask for an end of every batch that the run has running; returns their ids.

    A batch that cannot be cancelled holds up no other. Raises the first such error, once all have been tried.
    """
    running = list(_running(folder))
    failed: list[ProviderError] = []
    for batch_id in running:
        try:
            provider.cancel(batch_id)
        except ProviderError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return running


def _running(folder: RunFolder) -> Iterator[str]:
    while folder.read_plan() is not None:
        for plan in read_rounds(folder):
            for _, standing in read_standings(folder, plan):
                if standing.batch is not None and standing.ended is None and standing.staged is None:
                    yield standing.batch.batch_id
        folder = replace(folder, generation=folder.generation + 1)
