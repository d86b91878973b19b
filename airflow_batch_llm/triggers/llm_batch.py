"""Wait for the batches of a task in the triggerer, and cancel them if the task is given up."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from math import isinf
from typing import Any

import orjson
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_batch_llm.core.waiting import (
    Cancel,
    Check,
    Outage,
    Reply,
    Sleep,
    Tell,
    WaitProgress,
    Watch,
    Wish,
    adrive,
    settled,
    waiting,
)
from airflow_batch_llm.errors import BatchLLMError, Unavailable
from airflow_batch_llm.hooks.arguments import settling_seconds
from airflow_batch_llm.hooks.handle import TaskKey
from airflow_batch_llm.hooks.llm import llm_provider
from airflow_batch_llm.hooks.monitoring import gauge_open_since, quiet_sdks_here
from airflow_batch_llm.providers.steps import no_longer_than
from airflow_batch_llm.stage.telemetry import span, waited
from airflow_batch_llm.triggers.polling import Poller, join, leave

_GIVEN_UP = frozenset({"failed", "success", "skipped", "removed"})


def is_given_up(key: TaskKey, successors: Sequence[str] = (), *, or_gone: bool = True) -> bool:
    """Ask Airflow whether the task and its successors in the same Dag run have all been given up.

    It blocks, and raises where Airflow does not answer. Without `or_gone`, a task that Airflow does not know counts as
    one that goes on: it may belong to another Airflow with the same workspace.
    """
    keys = (key, *(replace(key, task_id=heir, map_index=-1) for heir in successors))
    return all(_is_over(one, or_gone=or_gone) for one in keys)


def _is_over(key: TaskKey, *, or_gone: bool) -> bool:
    states = RuntimeTaskInstance.get_task_states(
        dag_id=key.dag_id, task_ids=[key.task_id], run_ids=[key.run_id], map_index=key.map_index
    )
    found = list(states.get(key.run_id, {}).values())
    if not found:
        return or_gone
    # A mapped task's state has the key `<task_id>_<map_index>`, so the name does not help.
    return len(found) == 1 and found[0] in _GIVEN_UP


#: The limit for providers without one of their own. A provider's own is shorter, and its error says more.
_AFTER_LIMIT_SECONDS = 10.0


@asynccontextmanager
async def _limited(seconds: float) -> AsyncIterator[None]:
    """End this block after `seconds`, as if the provider did not answer."""
    try:
        with no_longer_than(seconds):
            async with asyncio.timeout(None if isinf(seconds) else seconds + _AFTER_LIMIT_SECONDS):
                yield
    except TimeoutError:
        raise Unavailable("The provider did not answer before the time to look was over.") from None


#: The tasks that cancel batches, also those whose trigger has ended meanwhile.
_killing: set[asyncio.Task[None]] = set()


class LLMBatchTrigger(BaseTrigger):
    """Fire once when a worker should look at the run again. The event says no more than that.

    :param others: `model_id` and `llm_conn_id` of the routes that have connections of their own, by name
    :param watch: the batches and the times, as the fields of `Watch`
    :param cancel_on_kill: whether batches are cancelled when the task is marked failed or successful, or removed
    :param successors: tasks of the Dag run that would go on with the run: batches are cancelled only if none of them will
    """

    def __init__(
        self,
        *,
        model_id: str,
        llm_conn_id: str | None,
        watch: Mapping[str, Any],
        llm_hook_params: Mapping[str, Any] | None = None,
        others: Mapping[str, Mapping[str, Any]] | None = None,
        cancel_on_kill: bool = False,
        successors: Sequence[str] = (),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model_id = model_id
        self.llm_conn_id = llm_conn_id
        self.llm_hook_params = llm_hook_params
        self.others = others
        outage = Outage(**watch.get("outage", {}))
        given = {name: _tuple(value) for name, value in watch.items()}
        self.watch = Watch(**{**given, "outage": outage})
        self.cancel_on_kill = cancel_on_kill
        self.successors = tuple(successors)
        self._headway = WaitProgress.of(self.watch.batch_ids)
        self._outage = outage
        self._poller: Poller | None = None
        self._fired = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        watch = {name: _list(value) for name, value in asdict(self.watch).items()}
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "model_id": self.model_id,
                "llm_conn_id": self.llm_conn_id,
                "llm_hook_params": None if self.llm_hook_params is None else dict(self.llm_hook_params),
                "others": {via: dict(one) for via, one in (self.others or {}).items()},
                "watch": watch,
                "cancel_on_kill": self.cancel_on_kill,
                "successors": list(self.successors),
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        quiet_sdks_here()
        watch = settled(self.watch, settling_seconds(), time.time())
        with span("wait", **waited(self.model_id, watch)):
            wake = await adrive(waiting(watch, time.time, random.random), self._perform)
        self.log.info("The task goes on: %s.", wake.told)
        # Nothing slow may follow the event, or Airflow would treat it as a kill.
        await self.cleanup()
        self._fired = True
        # The worker continues the count of failed looks.
        found = {"outage": asdict(self._outage)} if self._outage.looks else {}
        yield TriggerEvent({"look": True, **found})  # type: ignore[no-untyped-call]

    async def _perform(self, wish: Wish) -> Reply:
        match wish:
            case Check(batch_ids=batch_ids, within=within):
                async with _limited(within):
                    seen = await self._polled().check(batch_ids, within, since=self.watch.since)
                self._headway.add(seen)
                return seen
            case Cancel(batch_id=batch_id, within=within):
                async with _limited(within):
                    await self._polled().cancel(batch_id)
            case Tell(outage=outage, message=message):
                self._outage = outage
                if message:
                    (self.log.warning if outage.looks else self.log.info)("%s", message)
            case Sleep(seconds=seconds, exact=exact):
                self.log.info("%s", self._headway.until(time.time(), seconds))
                await (asyncio.sleep(seconds) if exact else self._polled().sleep(seconds))
        return None

    def _polled(self) -> Poller:
        """Return the poller that all triggers of this connection share. It closes its client when the last of them leaves."""
        if self._poller is None:
            self._poller = self._joined()
        return self._poller

    def _joined(self) -> Poller:
        # A connection is looked up by a blocking call, so a thread does it.
        look_up = partial(
            sync_to_async(llm_provider),
            self.llm_conn_id,
            self.model_id,
            self.llm_hook_params,
            self.others,
        )
        return join(self._key(), look_up)

    def _key(self) -> str:
        """Return a key that is equal for all triggers that can share a poller."""
        vendor = self.model_id.partition(":")[0]
        parameters = [vendor, self.llm_conn_id, self.llm_hook_params, self.others or {}]
        return orjson.dumps(parameters, default=repr, option=orjson.OPT_SORT_KEYS).decode()

    async def on_kill(self) -> None:
        """Cancel the batches, if the task has been given up. Clearing it has not: its next attempt waits for them.

        Airflow cancels this call once a second until the trigger has ended. So a task of its own does the work, and goes
        on after that.
        """
        if self._fired or not self.cancel_on_kill or not self.watch.batch_ids or self.task_instance is None:
            return
        killing = asyncio.create_task(self._cancel_if_given_up(self.task_instance))
        _killing.add(killing)  # the event loop alone does not keep a task
        killing.add_done_callback(_killing.discard)
        await asyncio.shield(killing)

    async def _cancel_if_given_up(self, task_instance: Any) -> None:
        key = TaskKey.of(task_instance)
        if not await sync_to_async(is_given_up)(key, self.successors):
            return
        gauge_open_since(0.0, **key.tags)
        poller = self._joined()  # `cleanup` leaves the trigger's own before this is done
        try:
            for batch_id in self.watch.batch_ids:
                try:
                    await poller.cancel(batch_id)
                    self.log.info("Batch %s is cancelled, since its task has been given up.", batch_id)
                except BatchLLMError as error:
                    self.log.warning("Batch %s could not be cancelled: %s", batch_id, error.in_full)
        finally:
            await leave(poller)

    async def cleanup(self) -> None:
        """Close the connections. The batches are left alone: another triggerer may be waiting for them already."""
        poller, self._poller = self._poller, None
        if poller is not None:
            await leave(poller)


def _tuple(value: Any) -> Any:
    """Turn a list back into a tuple: JSON has lists only."""
    return tuple(value) if isinstance(value, list) else value


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
