"""Refusals before anything is sent. Each costs nothing and leaves no run behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_batch_llm.core.output_type import Embedding
from airflow_batch_llm.errors import BatchLLMError, InputError, SourceError, TargetError
from tests.stage.world import Bench


@contextmanager
def refused(bench: Bench, kind: type[BatchLLMError], match: str) -> Iterator[None]:
    """Check that the stage is refused in these words, and that the provider's ledger stays empty."""
    with pytest.raises(kind, match=match):
        yield
    assert bench.batches() == []
    assert bench.world.unfinished() == []


@pytest.mark.parametrize("key", [("id",), ("id", "subject")], ids=["one column", "two columns"])
def test_keys_that_stand_twice_in_the_source_are_named(openai: Bench, key: tuple[str, ...]) -> None:
    openai.world.make_tickets(20)
    openai.world.ask(
        "INSERT INTO tickets SELECT * REPLACE ('again' AS body) FROM tickets WHERE id IN (7, 13)"
    )

    with refused(openai, SourceError, r"not unique in the source: (?=.*7)(?=.*13).* Nothing was sent"):
        openai.complete(key=key)


def test_a_key_that_is_null_is_refused_by_its_column(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.world.ask("INSERT INTO tickets VALUES (NULL, 'subject', 'body')")

    with refused(openai, SourceError, "'id' is NULL in some rows"):
        openai.complete()


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"key": ("ticket",)}, SourceError, "no column 'ticket'.*id, subject, body"),
        ({"carry": ("day",)}, SourceError, "no column 'day'"),
        ({"prompt": "{{ subjekt }}"}, InputError, "subjekt"),
        ({"create_target": False}, TargetError, "labels does not exist"),
    ],
    ids=["key", "carried", "prompt", "target"],
)
def test_what_is_not_there_is_named(
    openai: Bench, changes: dict[str, Any], kind: type[BatchLLMError], match: str
) -> None:
    openai.world.make_tickets(20)

    with refused(openai, kind, match):
        openai.complete(**changes)


def test_a_column_of_another_type_is_named_with_both(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.world.ask("CREATE TABLE labels (id BIGINT, label INTEGER)")

    with refused(openai, TargetError, "label is INTEGER and would have to hold string"):
        openai.complete()


def test_a_target_that_is_a_view_is_noticed(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.world.ask("CREATE VIEW labels AS SELECT 1::BIGINT AS id")

    with refused(openai, TargetError, "labels is a view"):
        openai.complete()


def test_an_embedding_is_not_asked_of_an_endpoint_that_answers_in_text(openai: Bench) -> None:
    openai.world.make_tickets(3)

    with refused(openai, InputError, "gives no embeddings: set endpoint='/v1/embeddings'"):
        openai.complete(output_type=Embedding())


def test_a_target_that_the_source_reads_is_refused_unless_the_user_insists(openai: Bench) -> None:
    openai.world.make_tickets(5)

    with refused(
        openai, TargetError, r"target \S*TICKETS is a table that the source reads.*allow_source_as_target"
    ):
        openai.complete(target="main.TICKETS")
    with refused(openai, TargetError, r"failures_target tickets is a table that the source reads"):
        openai.complete(failures_target="tickets")
    assert not [name for name, *_ in openai.world.ask("DESCRIBE tickets") if name.startswith("_llm_")]

    assert openai.complete(target="tickets", allow_source_as_target=True)
