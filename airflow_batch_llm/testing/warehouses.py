"""The contract of a warehouse adapter, as tests to inherit.

    class TestMyWarehouse(WarehouseContract):
        @pytest.fixture
        def database(self, tmp_path) -> Database: ...

A case that an adapter cannot pass is overridden there with an `xfail` that says why.
"""

from airflow_batch_llm.testing.warehouse_copies import CopiesKnownAnswers
from airflow_batch_llm.testing.warehouse_reads import CarriesColumns, KnowsKeys, ReadsRows
from airflow_batch_llm.testing.warehouse_shapes import KeepsRules, ShapesTables
from airflow_batch_llm.testing.warehouse_side_tables import ReviewsDeadRows, WritesLedgers
from airflow_batch_llm.testing.warehouse_writes import MergesAnswers, SharesWithProcesses

__all__ = ["WarehouseContract"]


class WarehouseContract(
    ReadsRows,
    ShapesTables,
    KeepsRules,
    MergesAnswers,
    KnowsKeys,
    CarriesColumns,
    ReviewsDeadRows,
    CopiesKnownAnswers,
    WritesLedgers,
    SharesWithProcesses,
):
    """Everything that an adapter promises. Every case starts from an empty database."""
