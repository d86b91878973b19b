"""One run in parts that an executor spreads over its workers: submit some shards, drive all, collect some.

The parts share the run folder and may run in any order, twice, or not at all; `Run.advance` finishes whatever they left.
"""

from dataclasses import dataclass, replace

from airflow_batch_llm.errors import Unavailable
from airflow_batch_llm.stage.generation import Generation, Pause
from airflow_batch_llm.stage.records.standings import read_judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """Shards that one worker takes, by their first and last number, and its share of the places at the provider."""

    first: int
    last: int
    places: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The first round of a generation, by its shards' numbers. Later rounds are small and belong to the finish.

    The canary is in no portion: it is asked when the run is planned, or driven. No portion sends anything before its verdict.
    """

    generation: Generation

    def portions(self, most: int) -> list[Portion]:
        """Split the shards into at most `limit` portions of similar size. Returns none if nothing is sent."""
        plan = read_judged(self.generation.folder, self.generation.first)
        numbers = [shard.number for shard in plan.shards if shard not in plan.canary]
        places = self.generation.pace.max_active_batches
        count = min(most, places, len(numbers))
        ends = [len(numbers) * (i + 1) // count for i in range(count)]
        return [
            Portion(
                first=numbers[start],
                last=numbers[end - 1],
                places=places * (i + 1) // count - places * i // count,
            )
            for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        ]

    def submit(self, portion: Portion) -> None:
        """Send the first of these shards, as many as there are places for them."""
        replace(self._part(portion), places=portion.places).drive()

    def drive(self) -> Pause | None:
        """Send further shards as places become free. None: all batches have ended."""
        return self.generation.drive()

    def collect(self, portion: Portion) -> None:
        """Stage these shards. Raises `Unavailable` if batches of theirs are still running, or had to be sent again."""
        if (pause := self._part(portion).collect()) is not None:
            raise Unavailable(f"Not all shards of this portion can be staged yet: {pause.waiting}.")

    def _part(self, portion: Portion) -> Generation:
        first = self.generation.sendable()
        shards = tuple(shard for shard in first.shards if portion.first <= shard.number <= portion.last)
        return replace(self.generation, first=replace(first, shards=shards))
