"""Choose the route of each row, by a column of the source or by a function of the row."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.settings import RouteFunction
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.stage.land.landing import SAMPLES, sample_keys
from airflow_batch_llm.warehouses.arrow import int64_array, string_array
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS

#: Types of a column that can hold the names of routes. A database's enumeration comes as a dictionary of one of them.
_TEXTS = frozenset({pa.string(), pa.large_string(), pa.string_view(), pa.null()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """Knows the routes by name; the first is the stage's own. Without a column and a function, every row takes it."""

    names: tuple[str, ...]
    key: tuple[str, ...]
    column: str | None = None
    function: RouteFunction | None = None

    def routes(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the number of each row's route. Raises `InputError` for a name that is no route."""
        if self.column is None and self.function is None:
            return int64_array([0] * batch.num_rows)
        found = pc.index_in(self._chosen(batch), string_array(self.names[1:]), skip_nulls=True)
        unknown = pc.and_(pc.is_null(found), pc.is_valid(self._chosen(batch)))
        if pc.any(unknown).as_py():
            self._refuse(batch.filter(unknown))
        return pc.fill_null(pc.add(found.cast(pa.int64()), 1), 0)

    def _chosen(self, batch: pa.RecordBatch) -> pa.Array:
        if self.function is None:
            column = batch.column(self.column)
            type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            if type_ not in _TEXTS:
                raise InputError(
                    f"route_column {self.column} has the type {type_}, and must hold text: the name of a route, or NULL."
                )
            return column.cast(pa.string())
        columns = [name for name in batch.schema.names if name not in KNOWN_COLUMNS.names]
        return string_array([self._called(row) for row in batch.select(columns).to_pylist()])

    def _called(self, row: dict[str, object]) -> str | None:
        assert self.function is not None, "there is a function, or a column"
        try:
            name = self.function(row)
        except Exception as error:  # noqa: BLE001 - it is the user's code, whose message may hold the row's values
            key = "/".join(str(row[part]) for part in self.key)
            raise InputError(
                f"route raised {type(error).__name__} for the row {key}. Nothing was sent."
            ) from None
        if name is not None and not isinstance(name, str):
            raise InputError(
                f"route must return the name of a route or None, and returned a {type(name).__name__}."
            )
        return name

    def _refuse(self, rows: pa.RecordBatch) -> None:
        chooser = "route" if self.function is not None else f"route_column {self.column}"
        keys = ", ".join(sample_keys(rows.select(list(self.key)).slice(0, SAMPLES)))
        raise InputError(
            f"{chooser} names no route in {counted(rows.num_rows, 'row')}, for example {keys}. The routes are"
            f" {', '.join(self.names[1:])}, and NULL for the stage's own. Nothing was sent."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """Knows, for each route, the specs whose answers are the answers of today."""

    specs: tuple[frozenset[str], ...]

    def holds(self, hashes: pa.Array, routes: pa.Array) -> pa.Array:
        """Tell for each row if a spec hash is current for its route."""
        found: pa.Array | None = None
        for number, specs in enumerate(self.specs):
            known = pc.is_in(hashes, string_array(sorted(specs)))
            if len(self.specs) > 1:
                known = pc.and_(known, pc.equal(routes, number))
            found = known if found is None else pc.or_(found, known)
        return found

    def routes_of(self, spec_hash: str) -> Sequence[int]:
        """Return the routes for which answers by this spec are current."""
        return [number for number, specs in enumerate(self.specs) if spec_hash in specs]
