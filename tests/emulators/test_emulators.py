"""The real clients of Google against the emulators, through environment variables alone."""

import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.emulators import setup
from tests.emulators.servers import PROJECT, Emulators


@pytest.fixture(autouse=True)
def _environ(emulators: Emulators, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in emulators.environ.items():
        monkeypatch.setenv(name, value)


def test_bigquery_merges_rows_and_streams_them_back_as_arrow(emulators: Emulators) -> None:
    import grpc
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient
    from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

    client = bigquery.Client(project=PROJECT, credentials=AnonymousCredentials())
    client.create_dataset("shop")
    client.query_and_wait("CREATE TABLE shop.labels AS SELECT 1 AS id, 'old' AS label")
    client.query_and_wait("""
        MERGE shop.labels t
        USING (SELECT 1 AS id, 'new' AS label UNION ALL SELECT 2, 'two') s
        ON t.id = s.id
        WHEN MATCHED THEN UPDATE SET label = s.label
        WHEN NOT MATCHED THEN INSERT (id, label) VALUES (s.id, s.label)
    """)
    channel = grpc.insecure_channel(emulators.bigquery_storage)
    reader = BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))
    batches = client.list_rows("shop.labels").to_arrow_iterable(bqstorage_client=reader)

    rows = [row for batch in batches for row in batch.to_pylist()]

    assert sorted(rows, key=lambda row: row["id"]) == [{"id": 1, "label": "new"}, {"id": 2, "label": "two"}]
    channel.close()
    client.close()


def test_cloud_storage_creates_an_object_once_only() -> None:
    from google.api_core.exceptions import PreconditionFailed
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(project=PROJECT, credentials=AnonymousCredentials())
    blob = client.create_bucket("runs").blob("plan.json")
    blob.upload_from_string(b"{}", if_generation_match=0)

    with pytest.raises(PreconditionFailed):
        blob.upload_from_string(b"other", if_generation_match=0)

    assert blob.download_as_bytes() == b"{}"
    client.close()


def test_bigquery_loads_what_lies_in_cloud_storage() -> None:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery, storage

    files = storage.Client(project=PROJECT, credentials=AnonymousCredentials())
    files.create_bucket("stage").blob("a/1.jsonl").upload_from_string(b'{"id": 1}\n{"id": 2}\n')
    client = bigquery.Client(project=PROJECT, credentials=AnonymousCredentials())
    client.create_dataset("loaded")
    config = bigquery.LoadJobConfig(
        source_format="NEWLINE_DELIMITED_JSON", schema=[bigquery.SchemaField("id", "INT64")]
    )

    client.load_table_from_uri("gs://stage/a/*.jsonl", "loaded.rows", job_config=config).result()

    assert client.get_table("loaded.rows").num_rows == 2
    files.close()
    client.close()


def test_no_server_outlives_a_session_that_is_killed() -> None:
    program = (
        "from tests.emulators.servers import running\n"
        "with running() as pair:\n"
        "    print(pair.bigquery, pair.storage, flush=True)\n"
        "    input()\n"
    )
    session = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=setup.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert session.stdout is not None
    addresses = session.stdout.readline().split()
    assert len(addresses) == 2
    assert all(_answers(address) for address in addresses)

    session.kill()
    session.communicate()

    deadline = time.monotonic() + 30
    while any(_answers(address) for address in addresses):
        assert time.monotonic() < deadline, "a server is still there"
        time.sleep(0.1)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
