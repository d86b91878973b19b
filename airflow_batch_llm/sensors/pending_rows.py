"""Waiting until a table or a query has enough rows, so that a Dag runs on volume instead of on time."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import Context
from airflow.triggers.base import BaseTrigger

from airflow_batch_llm.core.checked import seconds
from airflow_batch_llm.core.printing import share
from airflow_batch_llm.hooks.arguments import number
from airflow_batch_llm.hooks.monitoring import quiet_sdks, translated_errors
from airflow_batch_llm.sensors import DeferrableSensor
from airflow_batch_llm.triggers.pending_rows import PendingRowsTrigger
from airflow_batch_llm.triggers.watching import PendingRows, check_pending


class PendingRowsSensor(DeferrableSensor):
    """Succeeds when `min_rows` rows wait, or the oldest has waited for `max_age`.

    :param conn_id: the database's connection
    :param sql: a SELECT of the rows that wait
    :param table: instead, a table of which every row waits
    :param min_rows: the number of rows that is enough
    :param max_age: the time after which a waiting row is enough by itself
    :param since: with `max_age`: the column, or expression, that says since when a row waits
    :param hook_params: parameters of the connection's hook
    :param deferrable: whether the task gives its worker slot away while it waits
    """

    template_fields: Sequence[str] = ("conn_id", "sql", "table", "min_rows")
    template_fields_renderers = {"sql": "sql"}  # noqa: RUF012
    template_ext: Sequence[str] = (".sql",)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        conn_id: str,
        sql: str | None = None,
        table: str | None = None,
        min_rows: int = 1,
        max_age: timedelta | float | None = None,
        since: str | None = None,
        hook_params: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_pending(sql=sql, table=table, since=since, max_age=max_age, hook_params=hook_params)
        self.conn_id = conn_id
        self.sql = sql
        self.table = table
        self.min_rows = min_rows
        self.max_age = max_age
        self.since = since
        self.hook_params = hook_params

    def poke(self, context: Context) -> bool:  # noqa: ARG002 - Airflow's signature
        """Count once."""
        quiet_sdks()
        pending = self._pending()
        with translated_errors():
            waiting = pending.count()
        self.log.info("Waiting: %s.", share(waiting.rows, pending.min_rows, "row"))
        return pending.is_enough(waiting, time.time())

    def trigger(self, until: float) -> BaseTrigger:  # noqa: ARG002 - it counts until it is stopped
        """The one that counts now and then."""
        return PendingRowsTrigger(pending=self._pending().to_json(), poll_interval=self.poke_interval)

    def _pending(self) -> PendingRows:
        return PendingRows(
            conn_id=self.conn_id,
            query=PendingRows.query_of(self.sql, self.table),
            min_rows=number("min_rows", self.min_rows, int),
            since=self.since,
            max_age=seconds(self.max_age),
            hook_params=dict(self.hook_params or {}),
        )
