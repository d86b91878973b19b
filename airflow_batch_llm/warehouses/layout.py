"""How a new table is laid out: the clause that partitions or clusters it, in the database's words.

Asked for where there is no such thing, it is refused: a table that was to be cut by day and is not costs its
owner later. A table that is there keeps the layout that it has.
"""

import pyarrow as pa

from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.dialect import Dialect


def layout(target: Target, columns: pa.Schema, dialect: Dialect) -> str:
    """What follows the column list of the target's CREATE TABLE; empty where nothing is asked for."""
    partition = (target.partition_by,) if target.partition_by is not None else ()
    _refuse_missing(partition + target.cluster_by, columns)
    if partition and target.cluster_by and dialect.partitioned:
        raise TargetError(
            f"{dialect.title} partitions a table or clusters it, not both. "
            f"Leave partition_by out and let cluster_by begin with {target.partition_by!r}."
        )
    if partition and dialect.partitioned:
        return " " + dialect.partitioned.format(dialect.quote(*partition))
    names = tuple(dict.fromkeys(partition + target.cluster_by))
    if not names:
        return ""
    if not dialect.clustered:
        asked = " and ".join(
            word for word, value in (("partition_by", partition), ("cluster_by", target.cluster_by)) if value
        )
        raise TargetError(
            f"{asked} cannot be had: the package creates no partitioned or clustered tables in {dialect.title}. "
            f"Leave it out, or create {target.table} yourself as it should be."
        )
    return " " + dialect.clustered.format(dialect.quote(*names))


def _refuse_missing(names: tuple[str, ...], columns: pa.Schema) -> None:
    missing = [name for name in names if name not in columns.names]
    if missing:
        raise TargetError(
            f"partition_by and cluster_by name {', '.join(missing)}, which the target does not get. "
            f"Carry it from the source; there are: {', '.join(columns.names)}."
        )
