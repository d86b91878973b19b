"""Wait for batches: those of a run, or any batches by their ids."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from airflow.sdk import Context
from airflow.triggers.base import BaseTrigger

from airflow_batch_llm.core.checked import names
from airflow_batch_llm.core.printing import share
from airflow_batch_llm.core.waiting import LAST_LOOK_SECONDS, Outage, Watch
from airflow_batch_llm.errors import InputError, Unavailable
from airflow_batch_llm.hooks.arguments import check_params, one_of, settling_seconds
from airflow_batch_llm.hooks.handle import RunHandle
from airflow_batch_llm.hooks.llm import llm_provider
from airflow_batch_llm.hooks.monitoring import quiet_sdks, translated_errors
from airflow_batch_llm.links import BatchConsoleLink, RunPageLink
from airflow_batch_llm.providers.steps import no_longer_than
from airflow_batch_llm.sensors import DeferrableSensor
from airflow_batch_llm.triggers.llm_batch import LLMBatchTrigger


class LLMBatchSensor(DeferrableSensor):
    """Succeeds when the batches have ended, in any state.

    :param handle: the return value of `SubmitLLMBatchOperator`; the sensor waits for the batches that it had sent
    :param batch_ids: instead, the ids of any batches at the provider
    :param model_id: with `batch_ids`: ``<provider>:<model>``, of which only the provider counts
    :param llm_conn_id: with `batch_ids`: the provider's connection
    :param llm_hook_params: with `batch_ids`: parameters of the provider's connection
    :param deferrable: whether the task gives its worker slot away while it waits
    """

    template_fields: Sequence[str] = ("handle", "batch_ids", "model_id", "llm_conn_id")
    operator_extra_links = (BatchConsoleLink(), RunPageLink())
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        handle: Mapping[str, Any] | None = None,
        batch_ids: str | Sequence[str] | None = None,
        model_id: str | None = None,
        llm_conn_id: str | None = None,
        llm_hook_params: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of(handle=handle, batch_ids=batch_ids)
        check_params(llm_hook_params=llm_hook_params)
        if batch_ids is not None and model_id is None:
            raise InputError(
                "model_id is missing: it names the provider of the batches, as '<provider>:<model>'."
            )
        self.handle = handle
        self.batch_ids = batch_ids
        self.model_id = model_id
        self.llm_conn_id = llm_conn_id
        self.llm_hook_params = llm_hook_params
        self.console_url: str | None = None
        self._outage = Outage()

    @property
    def page_run(self) -> str | None:
        """Return the run that the page in Airflow's UI shows for this task, or None if it or its workspace is not known."""
        if not isinstance(self.handle, Mapping):
            return None
        handle = RunHandle.from_json(self.handle)
        return handle.run if handle.workspace is None else None

    def look(self, context: Context, event: Any = None, until: float | None = None) -> None:
        """Look, also after a deferral. The event says no more than how long the provider has not been reached."""
        self._outage = Outage(**(event or {}).get("outage", {}))
        super().look(context, event, until)

    def poke(self, context: Context) -> bool:  # noqa: ARG002 - Airflow's signature
        """Look once."""
        quiet_sdks()
        with translated_errors():
            asked = self._asked()
            if not asked["batch_ids"]:
                return True
            provider = llm_provider(
                asked["llm_conn_id"], asked["model_id"], asked["llm_hook_params"], asked["others"]
            )
            try:
                with no_longer_than(max(LAST_LOOK_SECONDS, self.seconds_left)):
                    found = provider.check(asked["batch_ids"])
                self.console_url = provider.console_url(asked["batch_ids"][-1])
            except (
                Unavailable
            ) as error:  # it says nothing about the batches, and the timeout ends the waiting
                self._note(error)
                return False
            finally:
                provider.close()
        self._note(None)
        running = sum(not status.state.is_over for status in found.values())
        self.log.info("Running: %s.", share(running, len(asked["batch_ids"]), "batch"))
        return running == 0

    def _note(self, error: Unavailable | None) -> None:
        tell = self._outage.after(error, time.time())
        self._outage = tell.outage
        if tell.message:
            (self.log.info if error is None else self.log.warning)("%s", tell.message)
        elif error is not None:
            self.log.info("The provider could not be reached, and is asked again: %s", error.in_full)

    def trigger(self, until: float) -> BaseTrigger:
        """The one that looks at all of them at once."""
        asked = self._asked()
        now = time.time()
        watch = Watch(
            batch_ids=asked.pop("batch_ids"),
            since=now,
            not_before=now + max(self.poke_interval, settling_seconds()),  # it has just been looked
            deadline=2 * until - now,  # Airflow's own comes first, and is a sensor's timeout
            poll_interval=self.poke_interval,
            outage=self._outage,
        )
        return LLMBatchTrigger(**asked, watch=asdict(watch))

    def _asked(self) -> dict[str, Any]:
        if self.handle is not None:
            handle = RunHandle.from_json(self.handle)
            return {name: getattr(handle, name) for name in _ASKED}
        return {
            "batch_ids": names(self.batch_ids or ()),
            "model_id": self.model_id,
            "llm_conn_id": self.llm_conn_id,
            "llm_hook_params": self.llm_hook_params,
            "others": {},
        }


_ASKED = ("batch_ids", "model_id", "llm_conn_id", "llm_hook_params", "others")
