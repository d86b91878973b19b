"""The contract's cases about what is known of a key before it is sent."""

from typing import Any

import pyarrow as pa

from airflow_batch_llm.core.settings import Source, WriteMode
from airflow_batch_llm.testing.database import Database
from airflow_batch_llm.testing.staged_rows import at, batch, labels, land, part
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS, JoinsKnown, Warehouse

_NOTHING: dict[str, Any] = dict.fromkeys(KNOWN_COLUMNS.names)


def known(**values: Any) -> dict[str, Any]:
    """A row of `KNOWN_COLUMNS`, NULL where nothing is said."""
    return {**_NOTHING, **{f"_llm_{name}": value for name, value in values.items()}}


class KnowsKeys:
    """`known`, and `read_known` where the adapter has it."""

    def test_known_answers_in_the_order_of_the_keys(self, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        answers = [
            {"id": 1, "_llm_input_hash": "i1", "_llm_spec_hash": "s1"},
            {"id": 2, "_llm_input_hash": "i2"},
        ]
        land(warehouse, target, part(), answers, [{"id": 3, "_llm_attempts": 2, "_llm_dead": True}])
        found = warehouse.known(target, batch(target.key, [{"id": n} for n in (9, 3, 1, 2, 1)]))
        first = known(known_input_hash="i1", known_spec_hash="s1")
        failed = known(
            failed_input_hash="input", failed_spec_hash="spec", failed_attempts=2, failed_dead=True
        )
        assert found.schema.equals(KNOWN_COLUMNS)
        second = known(known_input_hash="i2", known_spec_hash="spec")
        assert found.to_pylist() == [_NOTHING, failed, first, second, first]

    def test_known_of_no_keys_is_empty(self, warehouse: Warehouse) -> None:
        target = labels()
        warehouse.prepare(target)
        assert warehouse.known(target, batch(target.key, [])).num_rows == 0

    def test_known_takes_keys_of_several_columns_and_many_rows(self, warehouse: Warehouse) -> None:
        target = labels(key=pa.schema([("region", pa.string()), ("id", pa.int64())]))
        warehouse.prepare(target)
        land(
            warehouse,
            target,
            part(),
            [{"region": "b", "id": n, "_llm_input_hash": f"{n}"} for n in range(2000)],
        )
        asked = [{"region": "ab"[n % 2], "id": n // 2} for n in range(4000)]
        found = warehouse.known(target, batch(target.key, asked)).column("_llm_known_input_hash").to_pylist()
        assert found == [None if n % 2 == 0 else f"{n // 2}" for n in range(4000)]

    def test_known_tells_of_the_answer_planned_last(self, warehouse: Warehouse) -> None:
        target = labels(write_mode=WriteMode.APPEND)
        warehouse.prepare(target)
        for n in (1, 3, 2):
            row = {"id": 1, "_llm_input_hash": f"plan {n}", "_llm_planned_at": at(n)}
            land(warehouse, target, part(run=f"run-{n}"), [row])
        (found,) = warehouse.known(target, batch(target.key, [{"id": 1}])).to_pylist()
        assert found["_llm_known_input_hash"] == "plan 3"

    def test_read_known_is_the_source_with_what_is_known_beside_it(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        if not isinstance(warehouse, JoinsKnown):
            return
        target = labels()
        ids = pa.array([1, 2, 3], pa.int64())
        database.seed("tickets", pa.table({"id": ids, "body": ["a", "b", "c"]}))
        source = Source(sql="SELECT id, body FROM tickets ORDER BY id; ", key=("id",))
        before = warehouse.read_known(source, target).read_all()
        assert [before.schema.field(n).type for n in KNOWN_COLUMNS.names] == KNOWN_COLUMNS.types
        assert before.num_rows == 3
        release(warehouse)
        warehouse.prepare(target)
        land(warehouse, target, part(), [{"id": 1, "_llm_input_hash": "i1"}], [{"id": 2}])
        found = sorted(warehouse.read_known(source, target).read_all().to_pylist(), key=lambda row: row["id"])
        assert found == [
            {"id": 1, "body": "a", **known(known_input_hash="i1", known_spec_hash="spec")},
            {
                "id": 2,
                "body": "b",
                **known(
                    failed_input_hash="input", failed_spec_hash="spec", failed_attempts=1, failed_dead=False
                ),
            },
            {"id": 3, "body": "c", **_NOTHING},
        ]


def release(warehouse: Warehouse) -> None:
    """Let go of a shared file, as the stage does between reading and writing."""
    if hasattr(warehouse, "release"):
        warehouse.release()
