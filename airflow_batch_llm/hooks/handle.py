"""A run, small enough for XCom: where its folder lies, and how its provider and its target are reached.

It stands in the run folder too, so that a run can be collected by another Dag, from its folder or by its target.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import orjson

from airflow_batch_llm.core.settings import Pace
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.store import Workspace

#: Fields of `Pace` by the names that earlier handles hold.
_EARLIER_NAMES = {"timeout_seconds": "timeout", "min_round_seconds": "min_round_time"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHandle:
    """Identifiers only: no key, no row, no prompt."""

    workspace: str | None  # None: the configured one
    run: str
    max_tries: int
    model_id: str
    target: str
    target_conn_id: str
    llm_conn_id: str | None = None
    llm_hook_params: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`model_id` and `llm_conn_id` of the routes that have connections of their own, by name. Default: none."""
    target_hook_params: Mapping[str, Any] = field(default_factory=dict)
    pace: Mapping[str, Any] = field(default_factory=dict)
    usage_table: str | None = None
    """The ledger that the run is written to. None: the configured one, if there is one."""
    batch_ids: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()  # URIs of what was read, for lineage; none: not known
    waiter: Mapping[str, Any] | None = None
    """The task instance that waits for the run, and its successors. None: not known, or its end cancels nothing."""

    def to_json(self) -> dict[str, Any]:
        """For XCom."""
        return {**asdict(self), "batch_ids": list(self.batch_ids), "inputs": list(self.inputs)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "RunHandle":
        """From XCom. What a later release has added is not known here and left out."""
        known = {item.name for item in fields(cls)}
        try:
            return cls(
                **{
                    **{name: value for name, value in stored.items() if name in known},
                    "batch_ids": tuple(stored.get("batch_ids", ())),
                    "inputs": tuple(stored.get("inputs", ())),
                }
            )
        except (AttributeError, TypeError):
            raise InputError(
                "This is not a run's handle. Give what SubmitLLMBatchOperator returned: handle=submit.output."
            ) from None

    def pace_settings(self) -> Pace:
        """Return the pace that the run was started with, also where an earlier release has written it."""
        known = {item.name for item in fields(Pace)}
        given = {_EARLIER_NAMES.get(name, name): value for name, value in self.pace.items()}
        return Pace(**{name: value for name, value in given.items() if name in known})

    def store(self, workspace: Workspace) -> None:
        """Leave the handle in the run folder, once for each clear."""
        data = replace(self, workspace=None, batch_ids=()).to_json()
        workspace.create(_path(self.run, self.max_tries), orjson.dumps(data))

    @classmethod
    def of_run(cls, workspace: Workspace, run: str, max_tries: int) -> "RunHandle | None":
        """The handle that stands in a run folder; None: no operator has planned the run."""
        data = workspace.read(_path(run, max_tries))
        return None if data is None else cls.from_json(orjson.loads(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Departures:
    """Notes in a run folder that its task failed by itself, and that a later try came back.

    Batches that a failed task leaves behind are for a clear to land. So they are told apart from those of a task that a
    user has marked as failed while no process held it.
    """

    workspace: Workspace
    run: str

    def is_left(self) -> bool:
        """Return whether the last try failed by itself."""
        notes = [orjson.loads(data) for _, data in self.workspace.records(self._folder)]
        return bool(notes) and bool(notes[-1]["left"])

    def leave(self) -> None:
        """Note that this try fails by itself."""
        self._note(left=True)

    def come_back(self) -> None:
        """Note that a try has begun, if the one before had failed by itself."""
        if self.is_left():
            self._note(left=False)

    def _note(self, *, left: bool) -> None:
        # Two notes at once come from two tries that live at once. Either of them is true.
        self.workspace.append(self._folder, orjson.dumps({"left": left}))

    @property
    def _folder(self) -> str:
        return f"{self.run}/departures"


def _path(run: str, max_tries: int) -> str:
    return f"{run}/handles/{max_tries}.json"
