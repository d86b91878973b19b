"""A sensor that looks once, and then gives its worker slot away until its trigger says that it should look again."""

from typing import Any, NoReturn

from airflow.providers.common.compat.sdk import BaseSensorOperator
from airflow.sdk import Context

from airflow_batch_llm.hooks.arguments import is_deferrable


class DeferrableSensor(BaseSensorOperator):
    """What a sensor adds: `poke`, a look; and `wait`, which defers to a trigger that fires `look`.

    :param deferrable: whether the task gives its worker slot away while it waits
    """

    def __init__(self, *, deferrable: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.deferrable = is_deferrable(deferrable)

    def wait(self) -> NoReturn:
        """Defer until it is worth looking again."""
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        """Look, and wait in the triggerer if that is wanted."""
        if not self.deferrable:
            return super().execute(context)
        return self.look(context)

    def look(self, context: Context, event: Any = None) -> None:  # noqa: ARG002 - it says only that one should look
        """Look, also after a deferral, and wait (again) where there is nothing yet."""
        if not self.poke(context):
            self.wait()
