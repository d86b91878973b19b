"""Find the rows whose input is answered already under another key: they get a copy of the answer, and no request."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from airflow_batch_llm.core.checked import REUSE_NONE
from airflow_batch_llm.core.settings import Only, Stage
from airflow_batch_llm.errors import InputError, TargetError
from airflow_batch_llm.stage.plan.resolved import Resolved
from airflow_batch_llm.stage.plan.spool import Spool
from airflow_batch_llm.warehouses.base import CopiesAnswers, Target, Warehouse

#: A few inputs are looked for by their two hashes, so many in one query. Of more it is cheaper to read every hash once.
_NAMED_AT_ONCE, _NAMED = 1_000, 8_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Looks for answers in the target, and in the other tables that the stage names."""

    warehouse: Warehouse
    target: Target
    resolved: Resolved
    donors: tuple[str, ...]
    """The tables to look into, the first one first. Empty: nothing is reused."""

    @classmethod
    def of(cls, stage: Stage, warehouse: Warehouse, target: Target, resolved: Resolved) -> "Reuse":
        """Return what the stage asks for, as far as the warehouse can copy answers."""
        reuse = stage.guards.reuse
        others = () if isinstance(reuse, str) else reuse
        donors = (stage.target, *(table for table in others if table != stage.target))
        if reuse == REUSE_NONE or stage.only is Only.ALL:
            donors = ()
        if donors and not isinstance(warehouse, CopiesAnswers):
            if len(donors) > 1:
                raise InputError(
                    f"reuse names tables, and {type(warehouse).__name__} cannot copy answers between tables. Leave out"
                    " reuse, or use another warehouse for the target. Nothing was sent."
                )
            donors = ()
        return cls(warehouse=warehouse, target=target, resolved=resolved, donors=donors)

    @property
    def specs(self) -> list[str]:
        """The specs whose answers are current for some route."""
        return list(dict.fromkeys(spec for specs in self._by_route() for spec in specs))

    def _by_route(self) -> list[list[str]]:
        """The specs whose answers are current for each route, its own first."""
        routes = zip(self.resolved.routes, self.resolved.current.specs, strict=True)
        return [[route.spec_hash, *sorted(specs - {route.spec_hash})] for route, specs in routes]

    def look(self, spool: Spool) -> None:
        """Note the inputs of the spooled rows that have answers."""
        if not self.donors or not (wanted := spool.reusable()):
            return
        for number, spec in enumerate(self.specs):
            for table in self.donors:
                try:
                    spool.note_answered(number, self._answered(spool, table, spec, wanted))
                except TargetError:
                    if table != self.target.table:
                        raise
                    # A plan that is only looked at makes no target.

    def choose(self, spool: Spool) -> int:
        """Choose the rows that get a copy, again whenever other rows are taken out. Returns their number."""
        numbers = {spec: number for number, spec in enumerate(self.specs)}
        return spool.reuse([[numbers[spec] for spec in specs] for specs in self._by_route()])

    def _answered(self, spool: Spool, table: str, spec: str, wanted: int) -> Iterator[pa.RecordBatch]:
        assert isinstance(self.warehouse, CopiesAnswers), "there are donors"
        some = spool.reusable_hashes(_NAMED_AT_ONCE) if wanted <= _NAMED else (None,)
        for among in some:
            with closing(self.warehouse.answered(self.target, table, spec, among)) as found:
                yield from found
