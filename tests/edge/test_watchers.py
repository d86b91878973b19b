"""Triggers that watch an asset, so that files or rows start a Dag."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetWatcher

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.triggers.new_files import NewFilesTrigger, new_uris
from airflow_batch_llm.triggers.pending_rows import EnoughRowsTrigger
from airflow_batch_llm.triggers.watching import Arrivals, LastEvent, PendingRows, Waiting, WatcherTrigger
from tests.edge.conftest import World
from tests.edge.dag_runs import states
from tests.edge.logs import told
from tests.edge.serialization import DagSerialization, deserialize, serialize
from tests.edge.tasks import transform
from tests.store.servers import BUCKET, s3_filesystem, s3_server

Run = Callable[..., Any]


def files(folder: Path, **changes: Any) -> NewFilesTrigger:
    return NewFilesTrigger(uri=f"file://{folder}/*.jsonl", poll_interval=0.05, **changes)


def rows(**changes: Any) -> EnoughRowsTrigger:
    return EnoughRowsTrigger(
        **{"conn_id": "warehouse", "table": "tickets", "min_rows": 12, "poll_interval": 0.05, **changes}
    )


def sent(trigger: WatcherTrigger) -> Any:
    """The trigger as the triggerer makes it from what Airflow has stored."""
    _, kwargs = trigger.serialize()
    return type(trigger)(**deserialize(serialize(kwargs)))


class Watching:
    """A trigger that runs, and the payloads of its events."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events

    async def event(self) -> Mapping[str, Any]:
        return dict((await asyncio.wait_for(anext(self._events), 60)).payload)

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Let the trigger look on until something is true. It must fire no event meanwhile."""
        event = asyncio.ensure_future(anext(self._events))
        for _ in range(1200):
            if is_true():
                break
            assert not event.done(), event.result()
            await asyncio.sleep(0.05)
        assert is_true()
        event.cancel()
        await asyncio.gather(event, return_exceptions=True)


def watching(trigger: WatcherTrigger) -> aclosing[Any]:
    return aclosing(sent(trigger).run())


def watermarks(world: World) -> list[dict[str, Any]]:
    folder = world.folder / "workspace" / ".registers" / "watchers"
    return [json.loads(path.read_text()) for path in folder.glob("*.json")]


async def test_new_and_replaced_files_are_reported_once_over_restarts(world: World, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    uris = {name: (inbox / f"{name}.jsonl").as_uri() for name in "abc"}
    for name in "ab":
        (inbox / f"{name}.jsonl").write_text("{}\n")

    async with watching(files(inbox)) as events:
        assert await Watching(events).event() == {"uris": [uris["a"], uris["b"]]}
    # The triggerer was killed before the watermark was written: the files come once more, and are not lost.
    async with watching(files(inbox)) as events:
        watched = Watching(events)
        assert await watched.event() == {"uris": [uris["a"], uris["b"]]}
        await watched.until(lambda: any(len(mark["reported"]) == 2 for mark in watermarks(world)))
    (inbox / "c.jsonl").write_text("{}\n")
    (inbox / "b.jsonl").write_text('{"longer": 1}\n')
    async with watching(files(inbox)) as events:
        assert await Watching(events).event() == {"uris": [uris["b"], uris["c"]]}


async def test_many_files_make_several_events(world: World, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jsonl").write_text("{}\n")

    async with watching(files(tmp_path, max_files=2)) as events:
        watched = Watching(events)
        counts = [len((await watched.event())["uris"]) for _ in range(3)]

    assert counts == [2, 2, 1]


async def test_files_in_a_bucket_are_named_with_the_connection_that_reads_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("airflow.providers.amazon.aws.fs.s3", reason="Airflow's provider for S3")
    with s3_server() as endpoint:
        extra = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        pond = {"conn_type": "aws", "login": "key", "password": "secret", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_POND", json.dumps(pond))
        s3_filesystem(endpoint, "s3").pipe_file(f"{BUCKET}/in/a.jsonl", b"{}\n")
        trigger = NewFilesTrigger(uri=f"s3://pond@{BUCKET}/in/*.jsonl", poll_interval=0.05)

        async with watching(trigger) as events:
            assert await Watching(events).event() == {"uris": [f"s3://pond@{BUCKET}/in/a.jsonl"]}


async def test_a_look_that_fails_is_told_without_values_and_tried_again(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "in.jsonl"
    folder.mkdir()
    trigger = NewFilesTrigger(uri=folder.as_uri(), poll_interval=0.05)
    with told() as log:
        async with watching(trigger) as events:
            await Watching(events).until(lambda: log.warns("is a folder. Name its files by a pattern"))


def test_a_file_is_new_once_it_has_stopped_to_grow() -> None:
    grows, grown = {"1": "uri"}, {"2": "uri"}
    known, reported = Arrivals(), []
    for files in (grows, grown, grown, grown, {}, grown, grown):
        new, known = known.after(files)
        reported.append(new)

    assert reported == [[], [], ["uri"], [], [], [], ["uri"]]


def test_a_password_is_no_argument_of_a_watcher() -> None:
    with pytest.raises(InputError, match="Put them into a connection"):
        NewFilesTrigger(uri="s3://key:secret@bucket/in/*.csv")
    with pytest.raises(InputError, match="hook_params has 'password'"):
        rows(hook_params={"password": "x"})


async def test_enough_rows_start_a_dag_once_and_again_when_as_many_have_come(world: World) -> None:
    async with watching(rows()) as events:
        watched = Watching(events)
        assert await watched.event() == {"rows": 12}
        await watched.until(lambda: any(mark.get("least") == 12 for mark in watermarks(world)))
    # The look that was cut off may still read the database in its thread.
    await asyncio.get_running_loop().shutdown_default_executor()
    (mark,) = watermarks(world)
    restarted = sent(rows())
    restarted.recall(mark)
    assert restarted.look() == []
    world.execute("INSERT INTO tickets SELECT * FROM tickets LIMIT 11")
    assert restarted.look() == []
    world.execute("INSERT INTO tickets VALUES (99, 'x', 'y')")
    assert restarted.look() == [{"rows": 24}]


@pytest.mark.parametrize(
    ("count", "last", "due", "least"),
    [
        (9, None, False, None),
        (10, None, True, None),
        (19, LastEvent(at=0, least=10), False, 10),
        (20, LastEvent(at=0, least=10), True, None),
        (12, LastEvent(at=0, least=30), False, 12),  # some were dealt with: the next ones count from here
        (9, LastEvent(at=0, least=10), False, None),
        (10, LastEvent(at=-100, least=10), True, None),
    ],
)
def test_the_next_event_waits_for_as_many_rows_or_for_a_time(
    count: int, last: LastEvent | None, due: bool, least: int | None
) -> None:
    pending = PendingRows(conn_id="warehouse", query="tickets", min_rows=10)
    waiting = Waiting(rows=count, oldest=None)

    assert pending.is_due(waiting, 0.0, last, repeat_after=60) is due
    if not due:
        after = pending.after(waiting, 0.0, last)
        assert (None if after is None else after.least) == least


def test_a_watcher_goes_to_the_database_with_its_dag_and_holds_no_row() -> None:
    watched = Asset(
        "watched",
        watchers=[
            AssetWatcher(name="files", trigger=NewFilesTrigger(uri="s3://bucket/in/*.csv", conn_id="lake")),
            AssetWatcher(name="rows", trigger=rows(since="day", max_age=timedelta(days=1))),
        ],
    )
    with DAG("watched", schedule=watched) as dag:
        transform()

    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))

    assert DagSerialization.from_dict(stored).task_ids == ["label"]
    assert '"max_age", 86400.0' in json.dumps(stored) or '"max_age": 86400.0' in json.dumps(stored)


def test_the_uris_of_the_events_are_the_source(world: World, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"ticket_id": 1, "subject": "Help", "body": "It crashes"}\n')
    with DAG("uris", schedule=None) as dag:
        transform(source_table=None, source_conn_id=None, source_uri=new_uris, target_conn_id="warehouse")

    assert states(run(dag, run_conf={"uris": [path.as_uri()]})) == {"label": "success"}
    assert world.query("SELECT ticket_id FROM labels") == [(1,)]
    assert states(run(dag)) == {"label": "failed"}
    assert world.rows_charged() == 1


def test_the_uris_of_several_events_are_joined() -> None:
    def event(extra: Any) -> Any:
        return SimpleNamespace(extra=extra)

    events = {
        "inbox": [event({"payload": {"uris": ["a", "b"]}}), event({"payload": {"uris": ["b", "c"]}})],
        "table": [event({}), event({"payload": True})],
    }
    context: Any = {"dag_run": SimpleNamespace(conf={}), "triggering_asset_events": events}

    assert new_uris(context) == ["a", "b", "c"]
