"""Wait for rows in the triggerer: for a sensor, or to start a Dag. A thread counts them now and then."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_batch_llm.core.checked import seconds
from airflow_batch_llm.core.printing import share
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.arguments import settling_seconds
from airflow_batch_llm.hooks.monitoring import quiet_sdks_here
from airflow_batch_llm.triggers.watching import LastEvent, PendingRows, WatcherTrigger, check_pending


class PendingRowsTrigger(BaseTrigger):
    """Fires when enough rows wait, or one has waited for long enough.

    :param pending: the rows to count, as the fields of `PendingRows`
    :param poll_interval: seconds between two counts
    """

    def __init__(self, *, pending: Mapping[str, Any], poll_interval: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pending = PendingRows(**pending)
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"pending": self.pending.to_json(), "poll_interval": self.poll_interval},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        quiet_sdks_here()
        # The sensor has just counted, and its worker must have left before the task may be woken.
        await asyncio.sleep(max(self.poll_interval, settling_seconds()))
        while not await self._is_enough():  # noqa: ASYNC110 - it is a database that is asked
            await asyncio.sleep(self.poll_interval)
        yield TriggerEvent({"look": True})  # type: ignore[no-untyped-call]

    async def _is_enough(self) -> bool:
        try:
            waiting = await sync_to_async(self.pending.count, thread_sensitive=False)()
        except BatchLLMError as error:
            self.log.warning("The rows could not be counted, which is tried again: %s", error)
            return False
        self.log.info("Waiting: %s.", share(waiting.rows, self.pending.min_rows, "row"))
        return self.pending.is_enough(waiting, time.time())


class EnoughRowsTrigger(WatcherTrigger):
    """Fire an event when `min_rows` rows wait, or the oldest has waited for `max_age`: `{"rows": 500}`.

    For an `AssetWatcher`. While the rows of an event still wait, the next one comes when `min_rows` more have arrived, or
    after `repeat_after`.

    :param conn_id: the database's connection
    :param sql: a SELECT of the rows that wait
    :param table: instead, a table of which every row waits
    :param min_rows: the number of rows that is enough
    :param max_age: the time after which a waiting row is enough by itself
    :param since: with `max_age`: the column, or expression, that says since when a row waits
    :param repeat_after: the time after an event until the next one, if enough rows still wait
    :param hook_params: parameters of the connection's hook
    :param poll_interval: seconds between two counts
    :param workspace: URI of the folder that keeps the time of the last event; None for the configured one
    """

    def __init__(
        self,
        *,
        conn_id: str,
        sql: str | None = None,
        table: str | None = None,
        min_rows: int = 1,
        max_age: timedelta | float | None = None,
        since: str | None = None,
        repeat_after: timedelta | float = timedelta(days=1),
        hook_params: Mapping[str, Any] | None = None,
        poll_interval: float = 60.0,
        workspace: str | None = None,
    ) -> None:
        super().__init__(poll_interval=poll_interval, workspace=workspace)
        check_pending(sql=sql, table=table, since=since, max_age=max_age, hook_params=hook_params)
        self._asked = {"conn_id": conn_id, "sql": sql, "table": table}
        self.pending = PendingRows(
            conn_id=conn_id,
            query=PendingRows.query_of(sql, table),
            min_rows=min_rows,
            since=since,
            max_age=seconds(max_age),
            hook_params=dict(hook_params or {}),
        )
        self.repeat_after = seconds(repeat_after) or 0.0
        self._last: LastEvent | None = None

    def arguments(self) -> dict[str, Any]:
        named = ("min_rows", "max_age", "since", "hook_params")
        asked = {name: value for name, value in self.pending.to_json().items() if name in named}
        return {**self._asked, **asked, "repeat_after": self.repeat_after}

    def recall(self, memory: Mapping[str, Any]) -> None:
        self._last = LastEvent(at=memory["at"], least=memory["least"]) if memory else None

    def memory(self) -> dict[str, Any]:
        return {} if self._last is None else asdict(self._last)

    def look(self) -> Sequence[Mapping[str, Any]]:
        waiting, now = self.pending.count(), time.time()
        if self.pending.is_due(waiting, now, self._last, self.repeat_after):
            self._last = LastEvent(at=now, least=waiting.rows)
            return [{"rows": waiting.rows}]
        self._last = self.pending.after(waiting, now, self._last)
        return []
