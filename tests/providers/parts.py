"""A case for providers that read their list in parts, side by side."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from airflow_batch_llm.core.model import BatchState, BatchStatus
from airflow_batch_llm.testing.provider_bench import Bench, asynchronously

_PAGE, _BATCHES = 3, 12


class ReadsItsListInParts:
    """Lists of few batches are long lists here: the provider asks for short pages."""

    page_sizes: ClassVar[tuple[str, ...]]
    """The numbers that say how many batches or files a page holds, each by its place."""

    def test_parts_of_the_list_show_all_batches_also_when_one_that_marks_a_part_is_gone(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for place in self.page_sizes:
            monkeypatch.setattr(place, _PAGE)
        provider: Any = bench.provider
        simulator: Any = bench.simulator
        created = {}
        for number in range(_BATCHES):
            moment = simulator.clock(advance_seconds=2.0)
            created[bench.submit(bench.shard(1, number=number))] = moment
        ours, others = list(created)[::2], list(created)[1::2]

        def calls_of(check: Callable[[Sequence[str]], Mapping[str, BatchStatus]]) -> Counter[str]:
            before = Counter(bench.bill()["calls"])
            seen = check(ours)
            assert [seen[batch_id].state for batch_id in ours] == [BatchState.ENDED] * len(ours)
            return Counter(bench.bill()["calls"]) - before

        for batch_id in created:
            bench.ended(batch_id)
        provider.note_created({batch_id: created[batch_id] for batch_id in ours})
        with asynchronously(provider) as trigger:
            calls_of(trigger.check)
            # That has shown what of others lies between ours, so each part is one page.
            assert calls_of(trigger.check) == calls_of(provider.check) == {"list": 5}
        for batch_id in others:
            provider.delete_batch(batch_id, "")
        calls_of(provider.check)

    def test_files_are_found_on_all_pages(
        self, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for place in self.page_sizes:
            monkeypatch.setattr(place, _PAGE)
        provider: Any = bench.provider
        file = tmp_path / "file"
        file.write_bytes(b"%PDF-1.4")
        names = [f"{bench.run}-{number}.pdf" for number in range(2 * _PAGE + 1)]
        stored = {name: [provider.store_file(file, name, "application/pdf")] for name in names}

        assert provider.find_files(bench.run) == stored

        for (name,) in stored.values():
            provider.discard(name)
        assert provider.find_files(bench.run) == {}
