"""The Dag from BigQuery to BigQuery through Vertex, on emulators of Google's services."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery, storage

from airflow_batch_llm.simulator.handle import Simulator
from tests.dags.conftest import run_example
from tests.emulators.servers import PROJECT, Emulators


@pytest.fixture
def warehouse(emulators: Emulators) -> Iterator[bigquery.Client]:
    """A dataset `shop` with four reviews, one of which is empty."""
    client = bigquery.Client(
        project=PROJECT,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": emulators.bigquery},
    )
    client.delete_dataset("shop", delete_contents=True, not_found_ok=True)
    client.create_dataset("shop")
    client.query_and_wait(
        "CREATE TABLE shop.reviews AS SELECT 1 AS review_id, DATE '2026-11-20' AS day, 'Lovely!' AS text"
        " UNION ALL SELECT 2, DATE '2026-11-20', 'It broke.' UNION ALL SELECT 3, DATE '2026-11-21', 'It is a lamp.'"
        " UNION ALL SELECT 4, DATE '2026-11-21', NULL"
    )
    yield client
    client.delete_dataset("shop", delete_contents=True)
    client.close()


@pytest.fixture
def staging(emulators: Emulators) -> str:
    client = storage.Client(
        project=PROJECT,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": emulators.storage},
    )
    name = f"staging-{uuid.uuid4().hex[:8]}"
    client.create_bucket(name)
    client.close()
    return f"gs://{name}/batch-llm"


def test_reviews_in_bigquery_get_their_sentiments_from_vertex(
    emulators: Emulators,
    warehouse: bigquery.Client,
    staging: str,
    airflow_database: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in emulators.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__WORKSPACE", str(tmp_path))
    with Simulator(batch_seconds=0.2, storage_url=emulators.storage) as simulator:
        extra = {"project": PROJECT, "is_anonymous": True, "base_url": simulator.url, "staging": staging}
        connection = {"conn_type": "google_cloud_platform", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT", json.dumps(connection))

        run_example("bigquery_vertex")

        assert simulator.ledger()["vertex"]["rows"]["charged"] == 3
    rows = warehouse.query_and_wait("SELECT review_id, sentiment FROM shop.review_sentiments ORDER BY 1")
    found = {row["review_id"]: row["sentiment"] for row in rows}
    assert found.keys() == {1, 2, 3}
    assert set(found.values()) <= {"positive", "neutral", "negative"}
