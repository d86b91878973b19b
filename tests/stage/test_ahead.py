"""Two sorted streams, merged without holding either."""

from itertools import pairwise

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.warehouses.arrow import SortedReader

SCHEMA = pa.schema([("n", pa.int64())])


@given(
    numbers=st.lists(st.integers(0, 50)).map(sorted),
    cuts=st.lists(st.integers(0, 50)),
    steps=st.lists(st.integers(0, 60)).map(sorted),
)
def test_each_row_is_taken_once_and_as_soon_as_its_number_is_passed(
    numbers: list[int], cuts: list[int], steps: list[int]
) -> None:
    edges = sorted({0, len(numbers), *(cut for cut in cuts if cut < len(numbers))})
    batches = [pa.record_batch({"n": pa.array(numbers[a:b], pa.int64())}) for a, b in pairwise(edges)]
    stream = SortedReader(batches, "n", SCHEMA)

    taken = [stream.below(step).column("n").to_pylist() for step in steps]

    before = 0
    for step, rows in zip(steps, taken, strict=True):
        assert rows == [number for number in numbers if before <= number < step]
        before = step
