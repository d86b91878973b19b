"""A table of the rows that are sent, over all that can be known of a row."""

import pytest

from airflow_batch_llm.core.selection import SENT, Reason, Seen, select, table
from airflow_batch_llm.core.settings import Only

NEW = Seen(answered=False, same_input=False, same_spec=False, dead=False)
CHANGED = Seen(answered=True, same_input=False, same_spec=True, dead=False)
BOTH = Seen(answered=True, same_input=False, same_spec=False, dead=False)
OLDER = Seen(answered=True, same_input=True, same_spec=False, dead=False)
SAME = Seen(answered=True, same_input=True, same_spec=True, dead=False)
DEAD = Seen(answered=False, same_input=False, same_spec=False, dead=True)
DEAD_CHANGE = Seen(answered=True, same_input=False, same_spec=True, dead=True)


@pytest.mark.parametrize(
    ("seen", "changed", "outdated", "new", "everything"),
    [
        (NEW, Reason.NEW, Reason.NEW, Reason.NEW, Reason.NEW),
        (CHANGED, Reason.CHANGED, Reason.CHANGED, Reason.ANSWERED, Reason.AGAIN),
        (BOTH, Reason.CHANGED, Reason.CHANGED, Reason.ANSWERED, Reason.AGAIN),
        (OLDER, Reason.OLDER_SPEC, Reason.OUTDATED, Reason.ANSWERED, Reason.AGAIN),
        (SAME, Reason.ANSWERED, Reason.ANSWERED, Reason.ANSWERED, Reason.AGAIN),
        (DEAD, Reason.DEAD, Reason.DEAD, Reason.DEAD, Reason.RETRIED),
        (DEAD_CHANGE, Reason.DEAD, Reason.DEAD, Reason.DEAD, Reason.AGAIN),
    ],
)
def test_a_row_is_sent_or_not_for_a_reason(
    seen: Seen, changed: Reason, outdated: Reason, new: Reason, everything: Reason
) -> None:
    assert [select(seen, only, retry_dead=False) for only in Only] == [changed, outdated, new, everything]


@pytest.mark.parametrize("only", Only)
def test_dead_rows_that_are_tried_again_are_told_apart_from_new_ones(only: Only) -> None:
    assert select(DEAD, only, retry_dead=True) is Reason.RETRIED


@pytest.mark.parametrize("only", Only)
def test_the_table_answers_for_each_code_of_facts(only: Only) -> None:
    facts = [
        Seen(answered=bool(a), same_input=bool(i), same_spec=bool(s), dead=bool(d))
        for d in (0, 1) for s in (0, 1) for i in (0, 1) for a in (0, 1)
    ]  # fmt: skip

    assert [Seen.from_code(code) for code in range(16)] == facts
    assert table(only, retry_dead=False) == tuple(select(seen, only, retry_dead=False) for seen in facts)


def test_the_reasons_to_send_are_those_that_cost() -> None:
    assert {reason for reason in Reason if reason in SENT} == {
        Reason.NEW, Reason.CHANGED, Reason.OUTDATED, Reason.AGAIN, Reason.RETRIED,
    }  # fmt: skip
