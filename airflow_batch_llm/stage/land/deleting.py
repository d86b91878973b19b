"""Delete a finished run's requests and answers at the vendor, where the user wishes that.

It comes after the report, so the answers are kept and landed. It never fails a run: a failed deletion is a warning, and
the next run with the provider tries again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from airflow_batch_llm.core.journal import Entry, RecordKind
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.providers.base import DeletesBatches
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import read_rounds, read_standings
from airflow_batch_llm.stage.send.sweeping import uncounted
from airflow_batch_llm.stage.send.uploading import delete_uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorCopies:
    """The vendor's copies of one generation of a run."""

    parts: Parts
    folder: RunFolder
    first: Plan

    def delete(self) -> None:
        """Delete the copies that still exist, if the plan asks for that."""
        if not self.first.limits.delete_at_vendor or self.first.provider != self.parts.provider.name:
            return
        if not isinstance(self.parts.provider, DeletesBatches):
            self.parts.warn(
                f"delete_at_vendor: the provider {self.first.provider} cannot delete batches, so its copies stay."
            )
            return
        failed: list[BatchLLMError] = []
        for entry in self._batches():
            try:
                self.parts.provider.delete_batch(entry.batch_id, entry.upload)
                self.folder.note_deleted(entry.batch_id, self.parts.clock())
            except BatchLLMError as error:
                failed.append(error)
        if failed:
            Registers(workspace=self.parts.workspace).add_loose(self.first.provider, self.folder)
            self.parts.warn(
                f"delete_at_vendor: {len(failed):,} of the batches of {self.folder.path} could not be deleted, and stay"
                f" at the vendor until the next run tries again: {failed[0].in_full}"
            )

    def _batches(self) -> Iterator[Entry]:
        """Yield the batches of all rounds, and spare ones once their cost is recorded."""
        for plan in read_rounds(self.folder):
            shards = read_standings(self.folder, plan)
            kept = {
                batch_id
                for _, batch_id in uncounted(self.folder, shards)
                if not self.folder.read_stray(batch_id)
            }
            for shard, _ in shards:
                for entry in self.folder.journal(shard.number):
                    is_batch = entry.kind is RecordKind.SUBMITTED and entry.batch_id not in kept
                    if is_batch and self.folder.read_deleted(entry.batch_id) is None:
                        yield entry


def delete_copies(parts: Parts, folder: RunFolder) -> None:
    """Delete the vendor's copies of an ended run, or the uploads of an unfinished run that was tidied."""
    data = folder.read_plan()
    if data is None:
        return
    first, is_over = Plan.from_json(data), folder.read_report() is not None
    if is_over or not folder.attachments():
        delete_uploads(parts, folder, first)
    if is_over:
        VendorCopies(parts=parts, folder=folder, first=first).delete()
