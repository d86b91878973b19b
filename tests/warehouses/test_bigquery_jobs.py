"""BigQuery's jobs under faults: what fails in passing is tried again, and no work is begun twice."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import TargetError, WarehouseBusy, WarehouseError
from airflow_batch_llm.testing.staged_rows import at, labels, part, rows_of, stage
from airflow_batch_llm.warehouses.bigquery.jobs import JobPatience, digest, job_labels
from airflow_batch_llm.warehouses.bigquery.warehouse import BigQueryWarehouse
from tests.emulators.servers import Emulators
from tests.warehouses.bigquery_dataset import LOCATION, BigQueryDataset, open_warehouse
from tests.warehouses.hop import Fault, Hop, Request, hopping


@pytest.fixture
def database(emulators: Emulators) -> Iterator[BigQueryDataset]:
    dataset = BigQueryDataset(emulators.bigquery, emulators.bigquery_storage)
    yield dataset
    dataset.close()


@pytest.fixture
def hop(emulators: Emulators) -> Iterator[Hop]:
    with hopping(emulators.bigquery) as standing:
        yield standing


@pytest.fixture
def warehouse(database: BigQueryDataset, hop: Hop) -> Iterator[BigQueryWarehouse]:
    """An adapter whose every call goes through the hop."""
    opened = open_warehouse(**{**database.address, "rest": hop.url, "storage": None})
    yield opened
    opened.close()


def is_load(request: Request) -> bool:
    return request.method == "POST" and request.path.startswith("/upload/")


def is_script(request: Request) -> bool:
    return is_job(request) and b"BEGIN TRANSACTION" in request.body


def is_job(request: Request) -> bool:
    return request.method == "POST" and request.path.split("?")[0].endswith("/jobs")


def any_call(_: Request) -> bool:
    return True


def staged_jobs(database: BigQueryDataset, word: str) -> list[Any]:
    """The jobs of one verb that wrote to this dataset."""
    jobs = database.client.list_jobs(max_results=1_000, all_users=True)
    return [
        job
        for job in jobs
        if job.job_id.startswith(f"llm-{word}-") and database.name in str(job.to_api_repr())
    ]


@pytest.mark.parametrize("status", [429, 503, None], ids=["429", "503", "lost connection"])
def test_calls_that_fail_in_passing_are_made_again(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop, status: int | None
) -> None:
    target = labels()
    every_other = iter(range(10_000))
    hop.faults = [Fault(to=lambda r: not is_load(r) and next(every_other) % 2 == 0, status=status, times=40)]
    warehouse.prepare(target)
    stage(warehouse, target, part(), [{"id": 1, "label": "billing"}], [{"id": 2}])
    warehouse.publish(target, [part()])
    known = warehouse.known(target, pa.record_batch({"id": pa.array([1, 2, 3], pa.int64())})).to_pylist()
    assert [row["_llm_known_input_hash"] for row in known] == ["input", None, None]
    warehouse.drop_loaded(target, [part()])
    assert [row["label"] for row in rows_of(database, "labels")] == ["billing"]
    assert hop.faults[0].times < 30


@pytest.mark.parametrize("status", [429, 503])
def test_an_upload_that_is_refused_in_passing_is_made_again(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop, status: int
) -> None:
    target = labels()
    warehouse.prepare(target)
    hop.faults = [Fault(to=is_load, status=status)]
    stage(warehouse, target, part(), [{"id": 1, "label": "billing"}])
    warehouse.publish(target, [part()])
    assert len(rows_of(database, "labels")) == 1
    assert hop.count(is_load) == 2


def test_a_load_whose_answer_is_lost_is_found_and_not_made_again(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop
) -> None:
    target = labels()
    warehouse.prepare(target)
    hop.faults = [Fault(to=is_load, status=503, after=True)]
    stage(warehouse, target, part(), [{"id": 1, "label": "billing"}])
    assert len(staged_jobs(database, "stage")) == 1
    warehouse.publish(target, [part()])
    assert len(rows_of(database, "labels")) == 1


@pytest.mark.parametrize("status", [503, None], ids=["503", "lost connection"])
def test_a_publish_whose_answer_is_lost_is_found_and_not_made_again(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop, status: int | None
) -> None:
    target = labels()
    warehouse.prepare(target)
    stage(warehouse, target, part(), [{"id": 1, "label": "billing"}], [{"id": 2}])
    hop.faults = [Fault(to=is_script, status=status, after=True)]
    warehouse.publish(target, [part()])
    assert len(staged_jobs(database, "publish")) == 1
    assert len(rows_of(database, "labels")) == len(rows_of(database, "labels__failures")) == 1


def test_what_never_passes_is_given_up_as_busy(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop
) -> None:
    hasty = open_warehouse(
        **{**database.address, "rest": hop.url, "storage": None},
        patience=JobPatience(first_wait=0.01, longest_wait=0.02, per_call=0.3),
    )
    target = labels()
    hasty.prepare(target)
    hop.faults = [Fault(to=any_call, status=503, times=1_000_000)]
    with pytest.raises(WarehouseBusy, match="try later"):
        hasty.publish(target, [part()])
    hop.faults.clear()
    hasty.close()


def test_a_wait_that_breaks_off_starts_no_second_job(
    database: BigQueryDataset, hop: Hop, emulators: Emulators
) -> None:
    hasty = open_warehouse(
        **{**database.address, "rest": hop.url, "storage": None},
        patience=JobPatience(first_wait=0.01, longest_wait=0.02, per_call=0.3),
    )
    target = labels()
    hasty.prepare(target)
    stage(hasty, target, part(), [{"id": 1, "label": "billing"}])
    begun = threading.Event()

    def later(request: Request) -> bool:
        if is_script(request):
            begun.set()
            return False
        return begun.is_set()

    hop.faults = [Fault(to=later, status=503, times=1_000_000)]
    with pytest.raises(WarehouseBusy):
        hasty.publish(target, [part()])
    hop.faults.clear()
    hasty.publish(target, [part()])
    assert len(rows_of(database, "labels")) == 1
    assert len(staged_jobs(database, "publish")) == 1
    hasty.close()


def test_publishing_again_reads_the_job_that_has_done_it(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop
) -> None:
    target = labels()
    warehouse.prepare(target)
    stage(warehouse, target, part(), [{"id": 1, "label": "billing"}])
    warehouse.publish(target, [part()])
    before = hop.count(is_job)
    warehouse.publish(target, [part()])
    assert hop.count(is_job) == before


def test_staging_the_same_again_loads_nothing(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop
) -> None:
    target = labels()
    warehouse.prepare(target)
    for _ in range(3):
        stage(warehouse, target, part(), [{"id": 1, "label": "billing"}])
    assert hop.count(is_load) == 1


def test_the_last_of_several_contents_is_what_is_staged(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    target = labels()
    warehouse.prepare(target)
    for label in ("billing", "sales", "billing"):
        stage(warehouse, target, part(), [{"id": 1, "label": label}])
    warehouse.publish(target, [part()])
    assert [row["label"] for row in rows_of(database, "labels")] == ["billing"]
    assert len(staged_jobs(database, "stage")) == 3


def test_what_was_dropped_is_staged_anew(database: BigQueryDataset, warehouse: BigQueryWarehouse) -> None:
    target = labels()
    warehouse.prepare(target)
    for _ in range(2):
        stage(warehouse, target, part(), [{"id": 1, "label": "billing"}])
        warehouse.publish(target, [part()])
        assert len(rows_of(database, "labels")) == 1
        warehouse.drop_loaded(target, [part()])
    assert database.tables() == {"labels", "labels__failures"}


def test_a_failed_publish_is_followed_by_the_next_number(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    target = labels(answer=pa.schema([("data", pa.json_(pa.string()))]))
    warehouse.prepare(target)
    stage(warehouse, target, part(), [{"id": 1, "data": '{"s3cret'}])
    with pytest.raises(WarehouseError, match="holds the full message") as caught:
        warehouse.publish(target, [part()])
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.raises(WarehouseError):
        warehouse.publish(target, [part()])
    numbers = sorted(job.job_id.rpartition("-")[2] for job in staged_jobs(database, "publish"))
    assert numbers == ["0", "1"]


def test_a_publish_that_breaks_in_the_middle_changes_neither_table(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    target = labels()
    warehouse.prepare(target)
    stage(warehouse, target, part(), [{"id": 1, "label": "billing"}], [{"id": 2}])
    database.run("DROP TABLE {d}.labels__failures")
    database.run(
        "CREATE TABLE {d}.labels__failures (id INT64, _llm_planned_at TIMESTAMP, _llm_outcome INT64)"
    )
    with pytest.raises(WarehouseError):
        warehouse.publish(target, [part()])
    assert rows_of(database, "labels") == []


def test_two_that_publish_at_once_share_one_job(database: BigQueryDataset, emulators: Emulators) -> None:
    target = labels()
    warehouses = [database.open() for _ in range(2)]
    warehouses[0].prepare(target)
    stage(warehouses[0], target, part(), [{"id": n, "label": "billing"} for n in range(1_000)])
    start = threading.Barrier(2)

    def publish(opened: BigQueryWarehouse) -> None:
        start.wait()
        opened.publish(target, [part()])

    threads = [threading.Thread(target=publish, args=(opened,)) for opened in warehouses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(staged_jobs(database, "publish")) == 1
    assert len(rows_of(database, "labels")) == 1_000


def test_jobs_bear_the_labels_of_the_target_and_of_the_connection(database: BigQueryDataset) -> None:
    target = labels(labels={"Dag": "support/Tickets", "1task": "x" * 80})
    opened = open_warehouse(**database.address, labels={"team": "data"})
    opened.prepare(target)
    stage(opened, target, part(), [{"id": 1}])
    opened.publish(target, [part()])
    opened.close()
    wanted = {"dag": "support_tickets", "l1task": "x" * 63, "team": "data"}
    [load], [script] = staged_jobs(database, "stage"), staged_jobs(database, "publish")
    for job in (load, script):
        assert {name: job.labels[name] for name in wanted} == wanted


def test_staging_tables_vanish_by_themselves(database: BigQueryDataset, warehouse: BigQueryWarehouse) -> None:
    target = labels()
    warehouse.prepare(target)
    stage(warehouse, target, part(), [{"id": 1}])
    [name] = database.tables() - {"labels", "labels__failures"}
    table = database.client.get_table(database.full(name))
    assert table.expires is not None
    assert timedelta(days=6) < table.expires - table.created < timedelta(days=8)


def test_staging_may_live_in_a_dataset_of_its_own(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    staging = f"{database.name}_staging"
    target = labels(staging_schema=staging)
    with pytest.raises(TargetError, match=f"no dataset .*{staging}"):
        warehouse.prepare(target)
    database.client.create_dataset(staging)
    warehouse.prepare(target)
    stage(warehouse, target, part(), [{"id": 1, "label": "billing"}])
    assert database.tables() == {"labels", "labels__failures"}
    warehouse.publish(target, [part()])
    assert len(rows_of(database, "labels")) == 1
    database.client.delete_dataset(staging, delete_contents=True)


def test_a_dataset_that_is_missing_is_refused_with_what_to_do(warehouse: BigQueryWarehouse) -> None:
    with pytest.raises(TargetError, match=r"CREATE SCHEMA `test-project\.nowhere`"):
        warehouse.prepare(labels(table="nowhere.labels"))


def test_writing_without_the_right_is_refused_before_anything_is_sent(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop
) -> None:
    hop.faults = [Fault(to=lambda r: is_job(r) and b'"dryRun": true' in r.body, status=403)]
    with pytest.raises(TargetError, match=r"bigquery\.tables\.updateData"):
        warehouse.prepare(labels())


def test_staging_without_the_right_is_refused_before_anything_is_sent(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop
) -> None:
    hop.faults = [Fault(to=lambda r: b"llm_probe_" in r.body, status=403)]
    with pytest.raises(TargetError, match=r"bigquery\.tables\.create"):
        warehouse.prepare(labels())


def test_a_reading_that_fails_in_passing_goes_on(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop
) -> None:
    database.seed("numbers", pa.table({"n": pa.array(range(1_000), pa.int64())}))
    hop.faults = [Fault(to=any_call, status=503, times=3)]
    found = warehouse.read(Source(sql="SELECT n FROM numbers")).read_all()
    assert sorted(found.column("n").to_pylist()) == list(range(1_000))


def test_a_denied_reading_says_so(database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop) -> None:
    hop.faults = [Fault(to=is_job, status=403, times=5)]
    with pytest.raises(WarehouseError, match="accessDenied"):
        warehouse.read(Source(sql="SELECT 1 AS n"))


def test_every_job_runs_where_the_dataset_is(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, hop: Hop
) -> None:
    target = labels()
    warehouse.prepare(target)
    stage(warehouse, target, part(), [{"id": 1, "_llm_planned_at": at(0)}])
    warehouse.publish(target, [part()])
    jobs = [request for request in hop.seen if is_job(request)]
    assert jobs
    assert all(f'"location": "{LOCATION}"'.encode() in request.body for request in jobs)


def test_labels_take_only_the_letters_that_bigquery_knows() -> None:
    assert job_labels({"Run Id": "manual__2026-11-21T00:00:00+00:00", "_x": "É"}) == {
        "run_id": "manual__2026-11-21t00_00_00_00_00",
        "l_x": "_",
    }


def test_digests_tell_facts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(1, 2) == digest(1, 2)
