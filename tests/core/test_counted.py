"""Numbers with their noun."""

import pytest

from airflow_batch_llm.core.printing import counted, share, verb


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 batches"), (1, "1 batch"), (2, "2 batches"), (1200, "1,200 batches")]
)
def test_one_has_no_plural(count: int, words: str) -> None:
    assert counted(count, "batch") == words


def test_a_share_agrees_with_the_whole() -> None:
    assert f"{share(1, 1, 'request')} {verb(1, 'is', 'are')} done" == "1 of 1 request is done"
    assert f"{share(1, 2, 'request')} {verb(2, 'is', 'are')} done" == "1 of 2 requests are done"
