"""The loop of a trigger that watches an asset: look, report, and remember in the workspace what was reported.

Nothing is lost: what was reported is written down one look after its event, when Airflow has long stored the event. A
triggerer that is killed in between reports the same once more. That costs no answer: a row that has one is not sent again.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.failures import quiet_sdks_here
from airflow_batch_llm.hooks.watching import Watermark


class WatcherTrigger(BaseEventTrigger):
    """Fire an event after each look that found something new. A watcher never ends.

    :param poll_interval: seconds between two looks
    :param workspace: URI of the folder that keeps the watermark; None for the configured one
    """

    def __init__(self, *, poll_interval: float, workspace: str | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.poll_interval = poll_interval
        self.workspace = workspace

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make this trigger again."""
        raise NotImplementedError

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from what an earlier triggerer has reported. The memory is empty at the very first look."""
        raise NotImplementedError

    def memory(self) -> dict[str, Any]:
        """Return what has been reported, for `recall`."""
        raise NotImplementedError

    def look(self) -> Sequence[Mapping[str, Any]]:
        """Look once, and return the payloads of the events to fire. It blocks, so it runs in a thread."""
        raise NotImplementedError

    def serialize(self) -> tuple[str, dict[str, Any]]:
        own = {"poll_interval": self.poll_interval, "workspace": self.workspace}
        return f"{type(self).__module__}.{type(self).__qualname__}", {**self.arguments(), **own}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        quiet_sdks_here()
        watermark = Watermark.of(self.workspace, *self.serialize())
        written: dict[str, Any] | None = None
        while True:
            if written is None:
                written = await self._tried(watermark.read)
                if written is not None:
                    self.recall(written)
            payloads = None if written is None else await self._tried(self.look)
            for payload in payloads or ():
                yield TriggerEvent(payload)  # type: ignore[no-untyped-call]
            await asyncio.sleep(self.poll_interval)
            reported = self.memory()
            if written is not None and written != reported and await self._tried(watermark.write, reported):
                written = reported

    async def _tried(self, call: Any, *arguments: Any) -> Any:
        """Return what the call returns. Returns None if it failed: the next look tries it again."""
        try:
            return await sync_to_async(call, thread_sensitive=False)(*arguments)
        except BatchLLMError as error:
            self.log.warning(
                "The watcher could not look, and tries again in %g s: %s", self.poll_interval, error
            )
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the watcher goes on
            # The driver's own words may quote a value.
            kind = type(error).__name__
            self.log.warning(
                "The watcher could not look, and tries again in %g s (%s).", self.poll_interval, kind
            )
        return None
