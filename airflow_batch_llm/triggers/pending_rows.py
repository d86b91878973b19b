"""Waiting for rows in the triggerer: a count now and then, in a thread."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_batch_llm.core.printing import share
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.arguments import settling_seconds
from airflow_batch_llm.hooks.failures import quiet_sdks_here
from airflow_batch_llm.hooks.pending import PendingRows


class PendingRowsTrigger(BaseTrigger):
    """Fires when enough rows wait, or one has waited for long enough.

    :param pending: what is counted, as the fields of `PendingRows`
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
