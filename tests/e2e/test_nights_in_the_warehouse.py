"""Nights of a stage that runs in the warehouse: what fails is left to the next one, and what is known is copied."""

from tests.stage.test_in_warehouse import bench, simulator, world_of
from tests.stage.world import Bench

__all__ = ["bench", "simulator"]


def test_failed_rows_are_left_to_the_next_run_and_known_inputs_are_copied(bench: Bench) -> None:
    world = bench.world
    world.make_tickets(9, 6)
    bench.fault(kind="errored", every=3, times=1)
    first = bench.complete("dag/task/one", execution="warehouse", min_success_ratio=0)
    failed = world.failures()
    assert (first.report.requests, world.charged()) == (6, 4)
    assert set(failed.values()) == {("errored", 1, False)}
    assert first.report.final == {"succeeded": 9 - len(failed), "errored": len(failed)}

    world.ask("INSERT INTO tickets SELECT id + 100, subject, body FROM tickets")
    second = bench.complete("dag/task/two", execution="warehouse")
    assert (second.report.requests, world.charged(), world.failures()) == (2, 6, {})
    assert second.report.why == {
        "answered": 9 - len(failed),
        "new": 2 * len(failed),
        "reused": 9 - len(failed),
    }
    rows = world_of(bench).rows("SELECT id, label, _llm_reused_run AS copied FROM labels")
    labels = {row["id"]: row["label"] for row in rows}
    assert len(labels) == 18
    assert all(labels[key] == labels[key + 100] for key in range(9))
    assert sum(row["copied"] is not None for row in rows) == 9 - len(failed)
