"""With `delete_at_vendor` nothing of a run stays at the vendor once it has landed."""

from typing import Any

from airflow_batch_llm.errors import ProviderError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.records.folder import RunFolder
from tests.stage.test_sweeping import frozen_before_its_creation
from tests.stage.world import Bench


def stored_objects(bench: Bench) -> list[str]:
    """The files in the bucket of a Vertex world."""
    from google.cloud.storage import Client

    client: Any = Client(project="test-project")
    return [blob.name for blob in client.list_blobs("bucket", prefix="staging/")]


def files(bench: Bench) -> list[str]:
    """The files that OpenAI holds."""
    provider: Any = bench.world.provider()
    try:
        return [file.id for file in provider._clients.sync.files.list()]
    finally:
        provider.close()


def answers(provider: Provider, batch_id: str) -> int:
    """The result lines that the vendor still gives."""
    try:
        return sum(1 for _ in provider.results(batch_id))
    except ProviderError:
        return 0


def held(bench: Bench, batch_ids: list[str]) -> list[str]:
    """The batches of which the vendor has answers."""
    provider = bench.world.provider()
    try:
        return [batch_id for batch_id in batch_ids if answers(provider, batch_id)]
    finally:
        provider.close()


def recorded(bench: Bench, run: str = "dag/task/run") -> list[str]:
    folder = RunFolder(workspace=bench.world.workspace(), run=run)
    return [
        entry.batch_id
        for number in (1, 2, 3)
        for entry in folder.journal(number)
        if entry.kind == "submitted"
    ]


def test_the_vendor_holds_nothing_any_more_and_the_answers_are_kept(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.complete(rows_per_batch=10)
    kept = recorded(bench)
    assert held(bench, kept) == kept, "without the setting everything stays"
    before = (
        stored_objects(bench)
        if bench.world.environ
        else files(bench)
        if bench.world.provider_name == "openai"
        else []
    )
    bench.world.ask("DROP TABLE labels")

    bench.complete("dag/task/next", rows_per_batch=10, delete_at_vendor=True)

    batches = recorded(bench, "dag/task/next")
    assert len(batches) >= 2
    assert held(bench, [*kept, *batches]) == kept
    assert len(bench.world.answers()) == 20
    if bench.world.environ:
        assert stored_objects(bench) == before
    if bench.world.provider_name == "openai":
        assert files(bench) == before
    assert bench.complete("dag/task/next", delete_at_vendor=True).report.passed


def test_a_vendor_that_refuses_fails_no_run_and_the_next_run_tries_again(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.fault(kind="status", endpoint="delete_file", status=400, times=20)

    done = openai.complete(delete_at_vendor=True)

    batches = recorded(openai)
    assert done.report.passed
    assert len([line for line in openai.said if line.startswith("delete_at_vendor: 1 of the batches")]) == 1
    assert held(openai, batches) == batches
    openai.world.simulator.clear_faults()
    openai.world.make_tickets(21)
    openai.complete("dag/task/next")
    assert held(openai, batches) == []
    assert files(openai) != []


def test_a_stray_batch_is_deleted_by_the_next_run_once_its_cost_is_recorded(bench: Bench) -> None:
    bench.world.make_tickets(20)
    frozen = frozen_before_its_creation(bench, delete_at_vendor=True)
    bench.complete(delete_at_vendor=True)
    stray = frozen.thaw()
    bench.world.sleep(120)
    assert held(bench, [stray]) == [stray]
    bench.world.make_tickets(21)

    bench.complete("dag/task/next")

    folder = RunFolder(workspace=bench.world.workspace(), run="dag/task/run")
    assert held(bench, [stray]) == []
    assert folder.read_stray(stray) is not None
    assert folder.read_deleted(stray) is not None
