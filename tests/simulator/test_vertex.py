"""Vertex's protocol, driven by both of Google's clients, with a real object store and real tables below it."""

import urllib.request
from collections.abc import Iterator
from typing import Any, Self
from uuid import uuid4

import jsonschema
import orjson
import pytest
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud import storage as cloud_storage
from google.cloud.aiplatform_v1 import JobServiceClient, JobState
from google.genai.types import CreateBatchJobConfig, HttpOptions

from airflow_batch_llm.simulator.handle import Simulator
from tests.emulators.servers import Emulators
from tests.simulator.clients import GEMINI, SCHEMA, gemini_client, jsonl
from tests.store.servers import BUCKET

PARENT = "projects/my-project/locations/us-central1"
PREFIX = f"gs://{BUCKET}/out"
HOUR = 3600


@pytest.fixture
def bucket(storage: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage)
    client = cloud_storage.Client(project="p", credentials=AnonymousCredentials())
    yield client.bucket(BUCKET)
    client.close()


@pytest.fixture
def client(simulator: Simulator) -> Iterator[JobServiceClient]:
    options = ClientOptions(api_endpoint=simulator.url)
    with JobServiceClient(
        credentials=AnonymousCredentials(), transport="rest", client_options=options
    ) as client:
        yield client


def row(number: int, **request: Any) -> dict[str, Any]:
    contents = [{"role": "user", "parts": [{"text": f"ticket {number}"}]}]
    labels = {"row": f"r-{number}"}
    return {"custom_id": f"r-{number}", "request": {"contents": contents, "labels": labels, **request}}


def job(**fields: Any) -> dict[str, Any]:
    return {
        "display_name": "nightly",
        "model": GEMINI,
        "labels": {"run": "abc"},
        "input_config": {"instances_format": "jsonl", "gcs_source": {"uris": [f"gs://{BUCKET}/in.jsonl"]}},
        "output_config": {"predictions_format": "jsonl", "gcs_destination": {"output_uri_prefix": PREFIX}},
        **fields,
    }


def started(client: JobServiceClient, bucket: Any, rows: list[Any], **fields: Any) -> Any:
    bucket.blob("in.jsonl").upload_from_string(jsonl(rows))
    return client.create_batch_prediction_job(parent=PARENT, batch_prediction_job=job(**fields))


def finished(
    simulator: Simulator, client: JobServiceClient, bucket: Any, rows: list[Any], **fields: Any
) -> Any:
    name = started(client, bucket, rows, **fields).name
    simulator.finish(name)
    return client.get_batch_prediction_job(name=name)


def outputs(bucket: Any, directory: str) -> dict[str, list[bytes]]:
    """The lines of each output file of a job."""
    prefix = directory.removeprefix(f"gs://{BUCKET}/")
    blobs = bucket.client.list_blobs(bucket, prefix=prefix)
    return {blob.name.rpartition("/")[2]: blob.download_as_bytes().split(b"\n")[:-1] for blob in blobs}


def predictions(bucket: Any, ended: Any) -> list[dict[str, Any]]:
    files = outputs(bucket, ended.output_info.gcs_output_directory)
    return [orjson.loads(line) for lines in files.values() for line in lines]


def test_a_job_runs_from_cloud_storage_to_cloud_storage(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    simulator.turn(batch_seconds=1000)
    pending = started(client, bucket, [row(n) for n in range(3)])
    assert pending.state == JobState.JOB_STATE_PENDING
    assert pending.name.startswith("projects/")
    assert pending.name.split("/")[1].isdigit()
    simulator.finish(pending.name)
    ended = client.get_batch_prediction_job(name=pending.name)
    assert ended.state == JobState.JOB_STATE_SUCCEEDED
    assert ended.completion_stats.successful_count == 3
    directory = ended.output_info.gcs_output_directory
    assert directory.startswith(f"{PREFIX}/prediction-model-")
    assert ended.create_time.strftime("%Y-%m-%dT%H:%M:%S.%f") not in directory
    lines = predictions(bucket, ended)
    assert {line["custom_id"] for line in lines} == {"r-0", "r-1", "r-2"}
    for line in lines:
        assert line["status"] == ""
        assert line["request"]["labels"]["row"] == line["custom_id"]
        assert line["response"]["candidates"][0]["finishReason"] == "STOP"


def test_sixty_four_bit_integers_are_strings_on_the_wire(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    ended = finished(simulator, client, bucket, [row(1)])
    with urllib.request.urlopen(f"{simulator.url}/v1beta1/{ended.name}") as answer:
        wire = orjson.loads(answer.read())
    assert wire["completionStats"]["successfulCount"] == "1"
    assert wire["state"] == "JOB_STATE_SUCCEEDED"


def test_a_row_of_a_job_that_is_also_asked_in_real_time_was_bought_twice(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    (line,) = predictions(bucket, finished(simulator, client, bucket, [row(1)]))
    body = orjson.dumps(row(1, labels={"row": "another label"})["request"])
    url = f"{simulator.url}/v1/{PARENT}/{GEMINI}:generateContent"
    asked = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        assert orjson.loads(answer.read())["candidates"] == line["response"]["candidates"]
    assert simulator.ledger()["vertex"]["duplicates"] == {"contents": 1, "surplus_charges": 1}


@pytest.mark.parametrize("name", ["responseSchema", "responseJsonSchema"])
def test_an_answer_conforms_to_the_response_schema(
    simulator: Simulator, client: JobServiceClient, bucket: Any, name: str
) -> None:
    schema: dict[str, Any] = SCHEMA
    if name == "responseSchema":
        fields = {key: {**part, "type": part["type"].upper()} for key, part in SCHEMA["properties"].items()}
        schema = {"type": "OBJECT", "properties": fields, "required": SCHEMA["required"]}
    config = {"responseMimeType": "application/json", name: schema}
    ended = finished(simulator, client, bucket, [row(n, generationConfig=config) for n in range(5)])
    for line in predictions(bucket, ended):
        text = line["response"]["candidates"][0]["content"]["parts"][0]["text"]
        jsonschema.validate(orjson.loads(text), SCHEMA)


@pytest.mark.parametrize(
    "request_fields",
    [
        {"generationConfig": {"responseJsonSchema": {"$defs": {"a": {"type": "string"}}}}},
        {"tools": [{"googleSearch": {}}]},
        {"generationConfig": {"responseSchema": {"type": "STRING", "enum": ["a", None]}}},
        {"generationConfig": {"with space": 1}},
    ],
)
def test_what_the_importer_cannot_hold_fails_the_whole_job_with_code_3(
    simulator: Simulator, client: JobServiceClient, bucket: Any, request_fields: dict[str, Any]
) -> None:
    failed = finished(simulator, client, bucket, [row(1), row(2, **request_fields)])
    assert failed.state == JobState.JOB_STATE_FAILED
    assert failed.error.code == 3
    assert not failed.output_info.gcs_output_directory
    assert simulator.ledger()["vertex"]["rows"]["executed"] == 0


def test_a_key_path_has_one_type_over_the_whole_file(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    rows = [
        row(n, generationConfig={"responseSchema": {"type": kind}})
        for n, kind in enumerate(["A", ["A", "B"]])
    ]
    assert finished(simulator, client, bucket, rows).error.code == 3


def test_a_missing_input_object_fails_the_job(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    source = {"instances_format": "jsonl", "gcs_source": {"uris": [f"gs://{BUCKET}/none.jsonl"]}}
    assert finished(simulator, client, bucket, [row(1)], input_config=source).error.code == 9


def test_keys_beside_the_request_are_echoed_and_lose_their_leading_zeros(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    rows = [{**row(1), "custom_id": "000012", "kept": "r-000012"}]
    (line,) = predictions(bucket, finished(simulator, client, bucket, rows))
    assert (line["custom_id"], line["kept"]) == (12, "r-000012")


def test_a_bad_row_has_a_status_and_no_response_and_the_job_succeeds(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    simulator.fault(provider="vertex", kind="errored", rows=[1], status=429)
    bad = {"custom_id": "bad", "request": {"contents": [{"role": "system", "parts": [{"text": "x"}]}]}}
    ended = finished(simulator, client, bucket, [bad, row(1), row(2)])
    assert ended.state == JobState.JOB_STATE_SUCCEEDED
    lines = {line["custom_id"]: line for line in predictions(bucket, ended)}
    assert lines["bad"]["status"].startswith('Bad Request: {"error":{"code":400')
    assert "RESOURCE_EXHAUSTED" in lines["r-1"]["status"]
    assert "response" not in lines["bad"]
    assert (ended.completion_stats.successful_count, ended.completion_stats.failed_count) == (1, 2)


def test_a_blocked_prompt_has_no_candidates(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    simulator.fault(provider="vertex", kind="filtered", rows=[0])
    (line,) = predictions(bucket, finished(simulator, client, bucket, [row(1)]))
    assert line["response"]["promptFeedback"]["blockReason"]
    assert "candidates" not in line["response"]


def test_a_large_job_leaves_several_files(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    simulator.turn(shard_rows=10)
    ended = finished(simulator, client, bucket, [row(n) for n in range(25)])
    files = outputs(bucket, ended.output_info.gcs_output_directory)
    assert [len(lines) for _, lines in sorted(files.items())] == [10, 10, 5]
    assert len({line["custom_id"] for line in predictions(bucket, ended)}) == 25


def test_a_partial_success_is_an_end(simulator: Simulator, client: JobServiceClient, bucket: Any) -> None:
    simulator.fault(provider="vertex", kind="partial")
    simulator.fault(provider="vertex", kind="errored", rows=[0], status=500)
    ended = finished(simulator, client, bucket, [row(1), row(2)])
    assert ended.state == JobState.JOB_STATE_PARTIALLY_SUCCEEDED
    assert len(predictions(bucket, ended)) == 2


def test_a_job_may_fail_after_it_has_written_some_of_its_rows(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    simulator.fault(provider="vertex", kind="fail", share=0.5)
    failed = finished(simulator, client, bucket, [row(n) for n in range(4)])
    assert (failed.state, failed.error.code) == (JobState.JOB_STATE_FAILED, 13)
    assert failed.completion_stats.successful_count == len(predictions(bucket, failed)) == 2
    assert simulator.ledger()["vertex"]["rows"]["charged"] == 2


def test_rows_that_an_expired_job_had_no_time_for_are_not_mentioned(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    simulator.fault(provider="vertex", kind="expire", share=0.5)
    ended = finished(simulator, client, bucket, [row(n) for n in range(4)])
    assert ended.state == JobState.JOB_STATE_EXPIRED
    assert len(predictions(bucket, ended)) == 2
    assert simulator.ledger()["vertex"]["rows"]["charged"] == 2


def test_a_job_may_wait_72_hours_in_the_queue_and_then_run_for_24(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    simulator.fault(provider="vertex", kind="queue")
    queued = started(client, bucket, [row(1)])
    simulator.clock(advance_seconds=71 * HOUR)
    assert client.get_batch_prediction_job(name=queued.name).state == JobState.JOB_STATE_PENDING
    simulator.clock(advance_seconds=2 * HOUR)
    simulator.wait(queued.name)
    expired = client.get_batch_prediction_job(name=queued.name)
    assert expired.state == JobState.JOB_STATE_EXPIRED
    assert not expired.output_info.gcs_output_directory


def test_a_job_that_the_store_refuses_fails_after_it_ran(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    target = {"predictions_format": "jsonl", "gcs_destination": {"output_uri_prefix": "gs://none/out"}}
    failed = finished(simulator, client, bucket, [row(1)], output_config=target)
    assert failed.state == JobState.JOB_STATE_FAILED
    assert simulator.ledger()["vertex"]["rows"]["charged"] == 1


def test_jobs_are_filtered_and_paged(simulator: Simulator, client: JobServiceClient, bucket: Any) -> None:
    for number in range(3):
        started(client, bucket, [row(1)], display_name=f"job-{number}", labels={"run": f"run-{number % 2}"})

    def listed(text: str, size: int = 1) -> list[str]:
        jobs = client.list_batch_prediction_jobs(
            request={"parent": PARENT, "filter": text, "page_size": size}
        )
        return [each.display_name for each in jobs]

    assert listed("") == ["job-2", "job-1", "job-0"]
    assert listed('labels.run="run-0" AND create_time>"2026-01-01T00:00:00Z"') == ["job-2", "job-0"]
    assert listed('display_name="job-1" OR NOT labels.run="run-1"') == ["job-2", "job-1", "job-0"]
    assert listed("labels.run:* AND display_name:job") == ["job-2", "job-1", "job-0"]
    assert listed('create_time>"2030-01-01T00:00:00Z"') == []
    with pytest.raises(exceptions.BadRequest):
        listed("nonsense=1")


def test_a_job_is_cancelled_and_deleted(simulator: Simulator, client: JobServiceClient, bucket: Any) -> None:
    simulator.turn(batch_seconds=1000)
    name = started(client, bucket, [row(1)]).name
    with pytest.raises(exceptions.BadRequest):
        client.delete_batch_prediction_job(name=name)
    client.cancel_batch_prediction_job(name=name)
    assert client.get_batch_prediction_job(name=name).state == JobState.JOB_STATE_CANCELLING
    simulator.finish(name)
    assert client.get_batch_prediction_job(name=name).state == JobState.JOB_STATE_CANCELLED
    client.delete_batch_prediction_job(name=name).result()
    with pytest.raises(exceptions.NotFound):
        client.get_batch_prediction_job(name=name)


def test_an_unknown_model_and_a_failed_job_are_refused_at_once(
    simulator: Simulator, client: JobServiceClient, bucket: Any
) -> None:
    with pytest.raises(exceptions.NotFound):
        started(client, bucket, [row(1)], model="publishers/google/models/no-such")
    failed = finished(simulator, client, bucket, [{"nothing": 1}])
    with pytest.raises(exceptions.BadRequest):
        client.cancel_batch_prediction_job(name=failed.name)


def test_a_429_is_google_s_own(simulator: Simulator, client: JobServiceClient, bucket: Any) -> None:
    simulator.fault(provider="vertex", endpoint="create", kind="status", status=429)
    with pytest.raises(exceptions.TooManyRequests):
        started(client, bucket, [row(1)])


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_the_gemini_client_is_served_under_both_versions(
    simulator: Simulator, bucket: Any, version: str
) -> None:
    client = gemini_client(simulator, version=version)
    bucket.blob("in.jsonl").upload_from_string(jsonl([row(1)]))
    labels = HttpOptions(extra_body={"labels": {"run": "abc"}})
    config = CreateBatchJobConfig(dest=PREFIX, display_name="d", http_options=labels)
    created = client.batches.create(model="gemini-2.5-flash", src=f"gs://{BUCKET}/in.jsonl", config=config)
    simulator.finish(created.name or "")
    ended = client.batches.get(name=created.name or "")
    assert ended.state is not None
    assert ended.state.name == "JOB_STATE_SUCCEEDED"
    assert [each.name for each in client.batches.list(config={"filter": 'labels.run="abc"'})] == [
        created.name
    ]
    answer = client.models.generate_content(model="gemini-2.5-flash", contents="My invoice is wrong.")
    counted = client.models.count_tokens(model="gemini-2.5-flash", contents="My invoice is wrong.")
    assert answer.text
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.prompt_token_count == counted.total_tokens == 5


async def test_the_asynchronous_gemini_client_is_served(simulator: Simulator, bucket: Any) -> None:
    client = gemini_client(simulator)
    bucket.blob("in.jsonl").upload_from_string(jsonl([row(1)]))
    config = CreateBatchJobConfig(dest=PREFIX, display_name="d")
    created = await client.aio.batches.create(
        model="gemini-2.5-flash", src=f"gs://{BUCKET}/in.jsonl", config=config
    )
    found = await client.aio.batches.get(name=created.name or "")
    assert found.name == created.name
    await client.aio.aclose()


# -- BigQuery ------------------------------------------------------------------------------------------------------


class Tables:
    """A dataset, and jobs that read and write it."""

    def __init__(self, simulator: Simulator, url: str, location: str = "us-central1") -> None:
        options = ClientOptions(api_endpoint=simulator.url)
        anonymous = AnonymousCredentials()
        self.simulator = simulator
        self.jobs = JobServiceClient(credentials=anonymous, transport="rest", client_options=options)
        self.client = bigquery.Client(
            project="test-project", credentials=anonymous, client_options={"api_endpoint": url}
        )
        self.dataset, self.location = f"test-project.sim_{uuid4().hex[:8]}", location

    def __enter__(self) -> Self:
        dataset = bigquery.Dataset(self.dataset)
        dataset.location = self.location
        self.client.create_dataset(dataset)
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.delete_dataset(self.dataset, delete_contents=True)
        self.client.close()
        self.jobs.transport.close()

    def ask(self, select: str, output: str = ".answers", **fields: Any) -> Any:
        """Make a table of requests, run a job over it, and return the job."""
        self.client.query_and_wait(f"CREATE OR REPLACE TABLE `{self.dataset}.requests` AS {select}")
        source = {"input_uri": f"bq://{self.dataset}.requests"}
        target = {"output_uri": f"bq://{self.dataset}{output}"}
        created = self.jobs.create_batch_prediction_job(
            parent=PARENT,
            batch_prediction_job=job(
                input_config={"instances_format": "bigquery", "bigquery_source": source},
                output_config={"predictions_format": "bigquery", "bigquery_destination": target},
                **fields,
            ),
        )
        self.simulator.finish(created.name)
        return self.jobs.get_batch_prediction_job(name=created.name)

    def rows(self, table: str) -> list[dict[str, Any]]:
        return [dict(row) for row in self.client.list_rows(f"{self.dataset}.{table}")]


@pytest.fixture(scope="module")
def running_tables(emulators: Emulators) -> Iterator[Simulator]:
    with Simulator(batch_seconds=0, bigquery_url=emulators.bigquery) as simulator:
        yield simulator


@pytest.fixture
def tables(running_tables: Simulator, emulators: Emulators) -> Iterator[Tables]:
    running_tables.reset()
    with Tables(running_tables, emulators.bigquery) as tables:
        yield tables


def request_sql(kind: str = "JSON") -> str:
    text = """'{"contents": [{"role": "user", "parts": [{"text": "ticket"}]}]}'"""
    return f"SELECT {f'PARSE_JSON({text})' if kind == 'JSON' else text} AS request"


@pytest.mark.parametrize("kind", ["JSON", "STRING"])
def test_a_job_runs_from_a_table_to_a_table_and_copies_its_columns(tables: Tables, kind: str) -> None:
    columns = (
        "0012 AS number, '0012' AS text, [1] AS list, DATETIME '2026-01-01 00:00:00' AS local, 1.5 AS half"
    )
    moment = "TIMESTAMP '2026-01-01 00:00:00.25+00' AS moment, NULL AS nothing"
    ended = tables.ask(f"{request_sql(kind)}, {columns}, {moment}, 'r-1' AS custom_id")

    assert (ended.state, ended.completion_stats.successful_count) == (JobState.JOB_STATE_SUCCEEDED, 1)
    info = ended.output_info
    assert (info.bigquery_output_dataset, info.bigquery_output_table) == (f"bq://{tables.dataset}", "answers")
    (row,) = tables.rows("answers")
    assert row.keys() == {
        "request", "number", "text", "half", "moment", "nothing", "custom_id", "response", "status", "processed_time",
    }  # fmt: skip
    assert (row["number"], row["text"], row["half"], row["nothing"], row["status"]) == (
        12,
        "0012",
        1.5,
        None,
        "",
    )
    assert (row["moment"].isoformat(), row["custom_id"]) == ("2026-01-01T00:00:00.250000+00:00", "r-1")
    response = row["response"] if kind == "JSON" else orjson.loads(row["response"])
    assert response["candidates"][0]["finishReason"] == "STOP"
    assert (kind == "JSON") == isinstance(row["request"], dict)


def test_a_job_that_names_a_dataset_only_makes_a_table_in_it(tables: Tables) -> None:
    ended = tables.ask(request_sql(), output="")
    assert ended.output_info.bigquery_output_table.startswith("predictions_")
    assert len(tables.rows(ended.output_info.bigquery_output_table)) == 1


def test_a_bad_row_of_a_table_has_a_status_and_no_response(tables: Tables) -> None:
    bad = """SELECT PARSE_JSON('{"contents": [{"role": "system", "parts": [{"text": "x"}]}]}') AS request"""
    ended = tables.ask(f"{bad} UNION ALL {request_sql()}")
    assert ended.state == JobState.JOB_STATE_SUCCEEDED
    rows = sorted(tables.rows("answers"), key=lambda row: row["status"])
    assert [row["response"] is None for row in rows] == [False, True]
    assert rows[1]["status"].startswith('Bad Request: {"error":{"code":400')


@pytest.mark.parametrize(
    ("select", "code"),
    [
        pytest.param(f"{request_sql()}, 1 AS status", 3, id="reserved"),
        pytest.param("SELECT 1 AS request", 3, id="type"),
        pytest.param("SELECT 'no json' AS request", 3, id="no json"),
        pytest.param("""SELECT PARSE_JSON('{"contents": [], "a b": 1}') AS request""", 3, id="importer"),
    ],
)
def test_a_table_that_the_importer_cannot_hold_fails_the_whole_job(
    tables: Tables, select: str, code: int
) -> None:
    failed = tables.ask(select)
    assert (failed.state, failed.error.code) == (JobState.JOB_STATE_FAILED, code)
    assert not failed.output_info.bigquery_output_table
    assert tables.simulator.ledger()["vertex"]["rows"]["executed"] == 0


def test_a_dataset_in_another_region_fails_the_job(running_tables: Simulator, emulators: Emulators) -> None:
    running_tables.reset()
    with Tables(running_tables, emulators.bigquery, location="EU") as elsewhere:
        failed = elsewhere.ask(request_sql())
    assert (failed.state, failed.error.code) == (JobState.JOB_STATE_FAILED, 9)


def test_claude_s_table_has_messages_and_no_columns_of_others(tables: Tables) -> None:
    body = """PARSE_JSON('{"anthropic_version": "%s", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}')"""
    good, bad = (f"SELECT {body % version} AS request" for version in ("vertex-2023-10-16", "2023-06-01"))
    select = f"{good}, 'r-1' AS custom_id, 1 AS other UNION ALL {bad}, 'r-2', 2"
    ended = tables.ask(select, model="publishers/anthropic/models/claude-sonnet-4-6")
    assert ended.state == JobState.JOB_STATE_SUCCEEDED
    rows = {row["custom_id"]: row for row in tables.rows("answers")}
    assert rows["r-1"].keys() == {"custom_id", "request", "response", "status"}
    assert (rows["r-1"]["response"]["type"], rows["r-1"]["status"]) == ("message", "")
    assert rows["r-2"]["response"] is None
    assert rows["r-2"]["status"].startswith("Bad Request")
