"""Tasks that wait and change nothing: a sensor never sends, and never cancels.

Each looks once, and then gives its worker slot away until its trigger says that it should look again.
"""

import time
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import AirflowSensorTimeout, BaseSensorOperator
from airflow.sdk import Context
from airflow.triggers.base import BaseTrigger

from airflow_batch_llm.hooks.arguments import is_deferrable
from airflow_batch_llm.hooks.monitoring import rendering, tell_of_triggerer


class DeferrableSensor(BaseSensorOperator):
    """The base of our sensors: `poke` looks once, and `trigger` says when to look again.

    :param deferrable: whether the task gives its worker slot away while it waits
    """

    def __init__(self, *, deferrable: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.deferrable = is_deferrable(deferrable)
        self._until: float | None = None

    @property
    def seconds_left(self) -> float:
        """The time until the sensor's timeout, as far as this process knows when the waiting began."""
        return self.timeout if self._until is None else self._until - time.time()

    def render_template(
        self, content: Any, context: Context, jinja_env: Any = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render a template, and name the field if that fails."""
        with rendering(self, content, context):
            return super().render_template(content, context, jinja_env, seen_oids)

    def trigger(self, until: float) -> BaseTrigger:
        """Return the trigger that fires when another look is worthwhile. The task does not wait for it after `until`."""
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        """Look, and wait in the triggerer if that is wanted."""
        if not self.deferrable:
            self._until = time.time() + self.timeout
            return super().execute(context)
        return self.look(context)

    def look(self, context: Context, event: Any = None, until: float | None = None) -> None:  # noqa: ARG002 - it says only that one should look
        """Look, also after a deferral, and wait (again) where there is nothing yet. The timeout is that of all waits."""
        first = until is None
        self._until = until = time.time() + self.timeout if until is None else until
        if self.poke(context):
            return
        now = time.time()
        if until <= now:
            raise AirflowSensorTimeout(
                f"What is waited for has not come within the timeout of {self.timeout:g} s."
            )
        tell_of_triggerer(self.log, first=first)
        self.defer(
            trigger=self.trigger(until),
            method_name="look",
            kwargs={"until": until},
            timeout=timedelta(seconds=until - now),
        )
