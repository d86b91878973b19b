"""Ask Airflow's auth manager which runs a user may see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from fastapi import Depends, HTTPException

from airflow_batch_llm.stage.records.run_index import IndexedRun, index_name

SomeUser = Annotated[BaseUser, Depends(get_user)]

#: Refuses whoever may not read the task instances of the Dag in the request; without a Dag, of any.
MayReadTasks: Callable[..., Any] = requires_access_dag(
    method="GET", access_entity=DagAccessEntity.TASK_INSTANCE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The runs that a user may see."""

    dag_ids: frozenset[str]
    """The Dags that the user may read."""
    commands: bool
    """Tell whether the user sees the runs of the command line, which belong to no Dag."""

    @classmethod
    def of(cls, user: BaseUser) -> "Sight":
        """Ask Airflow once for a request."""
        manager = get_auth_manager()
        return cls(
            dag_ids=frozenset(manager.get_authorized_dag_ids(user=user, method="GET")),
            commands=manager.is_authorized_connection(method="GET", user=user),
        )

    def seen(self, runs: list[IndexedRun]) -> list[IndexedRun]:
        """Return those of the runs that the user may see."""
        dags = set(map(index_name, self.dag_ids))
        return [run for run in runs if (run.dag in dags if run.dag else self.commands)]


def may_see_commands(user: SomeUser) -> None:
    """Refuse a user who may not read connections. Runs of the command line do not belong to a Dag."""
    if not get_auth_manager().is_authorized_connection(method="GET", user=user):
        raise HTTPException(403, "Runs of the command line are for those who may read Airflow's connections.")
