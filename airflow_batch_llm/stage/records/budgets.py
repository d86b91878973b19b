"""The periods of shared budgets in a workspace: numbered states, the last of which counts.

.registers/budgets/<budget>/<period>/000000/0001.json … 0999.json  000001/0000.json …
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from airflow_batch_llm.core.budget import BudgetState
from airflow_batch_llm.stage.records.folder import safe_name
from airflow_batch_llm.store import Workspace

_ROOT = ".registers/budgets"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetBook:
    """One budget in one period."""

    workspace: Workspace
    name: str
    period: str
    per_folder: int = 1000
    """States in one folder, so that a list of names stays short. Default: 1,000."""

    def state(self, usd: float | None) -> BudgetState:
        """Return the state as it is now, with this limit. None: the limit that stands in it."""
        return self._last(usd)[1]

    def change(self, usd: float | None, change: Callable[[BudgetState], BudgetState | None]) -> bool:
        """Make the next state of the last one. False: the change is refused. Others may be faster, then it is tried again."""
        while True:
            number, state = self._last(usd)
            after = change(state)
            if after is None:
                return False
            if after == state:
                return True
            if self.workspace.create(self._path(number + 1), after.to_json(secrets.token_hex(6))):
                return True

    def _last(self, usd: float | None) -> tuple[int, BudgetState]:
        """Return the last state and its number. A list of names may be old, so the way goes on from its end."""
        number = self._listed()
        data = self.workspace.read(self._path(number)) if number else None
        while (later := self.workspace.read(self._path(number + 1))) is not None:
            number, data = number + 1, later
        state = BudgetState(usd=usd or 0.0) if data is None else BudgetState.from_json(data)
        return number, state if usd is None else replace(state, usd=usd)

    def _listed(self) -> int:
        """Return the highest number that a list shows. 0: it shows none."""
        last = max(self.workspace.folders(self._folder), default=None)
        if last is None:
            return 0
        places = [int(name.partition(".")[0]) for name in self.workspace.names(f"{self._folder}/{last}")]
        return int(last) * self.per_folder + max(places, default=0)

    def _path(self, number: int) -> str:
        folder, place = divmod(number, self.per_folder)
        return f"{self._folder}/{folder:06d}/{place:04d}.json"

    @property
    def _folder(self) -> str:
        return f"{_ROOT}/{safe_name(self.name)}/{self.period}"


def budget_books(workspace: Workspace) -> Iterator[BudgetBook]:
    """Yield every period of every budget that runs have used, the last period first."""
    for name in sorted(workspace.folders(_ROOT)):
        for period in sorted(workspace.folders(f"{_ROOT}/{name}"), reverse=True):
            yield BudgetBook(workspace=workspace, name=name, period=period)
