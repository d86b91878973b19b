"""The periods of shared budgets in a workspace: numbered states, the last of which counts.

.registers/budgets/<budget>/<period>/0001.json …
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
            if (
                self.workspace.append(self._folder, after.to_json(secrets.token_hex(6)), after=number)
                is not None
            ):
                return True

    def _last(self, usd: float | None) -> tuple[int, BudgetState]:
        """Return the last state and its number. A list of names may be old, so the way goes on from its end."""
        names = self.workspace.names(self._folder)
        number = max((int(name.partition(".")[0]) for name in names), default=0)
        data = self._read(number) if number else None
        while (later := self._read(number + 1)) is not None:
            number, data = number + 1, later
        state = BudgetState(usd=usd or 0.0) if data is None else BudgetState.from_json(data)
        return number, state if usd is None else replace(state, usd=usd)

    def _read(self, number: int) -> bytes | None:
        return self.workspace.read(f"{self._folder}/{number:04d}.json")

    @property
    def _folder(self) -> str:
        return f"{_ROOT}/{safe_name(self.name)}/{self.period}"


def budget_books(workspace: Workspace) -> Iterator[BudgetBook]:
    """Yield every period of every budget that runs have used, the last period first."""
    for name in sorted(workspace.folders(_ROOT)):
        for period in sorted(workspace.folders(f"{_ROOT}/{name}"), reverse=True):
            yield BudgetBook(workspace=workspace, name=name, period=period)
