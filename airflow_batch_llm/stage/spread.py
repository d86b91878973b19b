"""One run in parts that an executor spreads over its workers: submit some shards, drive all, collect some.

The parts share the run folder and may run in any order, twice, or not at all; `Run.advance` finishes whatever they left.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from airflow_batch_llm.errors import Unavailable
from airflow_batch_llm.stage.generation import Generation, Pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The first round of a generation, by its shards' numbers. Later rounds are small and belong to the finish."""

    generation: Generation

    def ranges(self, most: int) -> list[list[int]]:
        """The shards in at most so many groups, of about one size, in order."""
        numbers = [shard.number for shard in self.generation.first.shards]
        count = max(1, min(most, len(numbers)))
        size, more = divmod(len(numbers), count)
        ends = [(i + 1) * size + min(i + 1, more) for i in range(count)]
        return [numbers[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]

    def submit(self, numbers: Collection[int], share: int) -> None:
        """Send the first of these shards, as many as their share of the places."""
        part = self._part(numbers)
        replace(part, pace=replace(part.pace, max_active_batches=share)).drive()

    def drive(self) -> Pause | None:
        """Send further shards as places become free. None: all batches have ended."""
        return self.generation.drive()

    def collect(self, numbers: Collection[int]) -> None:
        """Stage these shards. Raises `Unavailable` if batches of theirs are still running, or had to be sent again."""
        if (pause := self._part(numbers).collect()) is not None:
            raise Unavailable(f"Not all shards of this group can be staged yet: {pause.waiting}.")

    def _part(self, numbers: Collection[int]) -> Generation:
        first = self.generation.first
        shards = tuple(shard for shard in first.shards if shard.number in numbers)
        return replace(self.generation, first=replace(first, shards=shards))
