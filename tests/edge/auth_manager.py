"""Airflow's simple auth manager, with users who may read some Dags only: it has no permissions for one Dag itself."""

from collections.abc import Mapping
from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

#: The Dags that a user may read. A user who is not named reads all of them.
READABLE: Mapping[str, tuple[str, ...]] = {"anna": ("page_a", "one_task"), "bert": ("page_b", "by_hand")}


class DagByDagAuthManager(SimpleAuthManager):
    """Grants a user the Dags that are listed for the user."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, **asked: Any) -> bool:
        """Return whether the user may do that with the Dag; without a Dag, with any."""
        readable = READABLE.get(user.get_id())
        if readable is not None and details is not None and details.id and details.id not in readable:
            return False
        return bool(super().is_authorized_dag(user=user, details=details, **asked))
