"""A job as a state, a reason and a sighting; and the words by which it is found."""

import pytest
from google.cloud.aiplatform_v1.types import BatchPredictionJob, JobState

from airflow_batch_llm.core.model import BatchState, BatchStatus, Outcome, Search, Sighting
from airflow_batch_llm.providers.vertex.clients import _job
from airflow_batch_llm.providers.vertex.jobs import (
    Job,
    console_url,
    labels,
    model_path,
    search_filter,
    sighting,
    status,
)

NAME = "projects/123/locations/europe-west4/batchPredictionJobs/456"
FOLDER = "gs://b/out/prediction-model-2026-11-20T00:00:01.000000Z"


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ("JOB_STATE_UNSPECIFIED", BatchState.RUNNING),
        ("JOB_STATE_QUEUED", BatchState.RUNNING),
        ("JOB_STATE_PENDING", BatchState.RUNNING),
        ("JOB_STATE_RUNNING", BatchState.RUNNING),
        ("JOB_STATE_CANCELLING", BatchState.RUNNING),
        ("JOB_STATE_PAUSED", BatchState.RUNNING),
        ("JOB_STATE_UPDATING", BatchState.RUNNING),
        ("A_STATE_OF_NEXT_YEAR", BatchState.RUNNING),
        ("JOB_STATE_SUCCEEDED", BatchState.ENDED),
        ("JOB_STATE_PARTIALLY_SUCCEEDED", BatchState.ENDED),
        ("JOB_STATE_CANCELLED", BatchState.ENDED),
        ("JOB_STATE_EXPIRED", BatchState.ENDED),
        ("JOB_STATE_FAILED", BatchState.REJECTED),
    ],
)
def test_every_state_is_one_of_ours(told: str, state: BatchState) -> None:
    assert status(Job(name=NAME, state=told)).state is state


@pytest.mark.parametrize(
    ("told", "hours", "outcome"),
    [
        ("JOB_STATE_SUCCEEDED", 1, Outcome.MISSING),
        ("JOB_STATE_PARTIALLY_SUCCEEDED", 1, Outcome.MISSING),
        ("JOB_STATE_EXPIRED", 0, Outcome.EXPIRED),
        ("JOB_STATE_CANCELLED", 0, Outcome.CANCELED),
        ("JOB_STATE_CANCELLED", 23, Outcome.CANCELED),
        ("JOB_STATE_CANCELLED", 24, Outcome.EXPIRED),  # Vertex itself cancels what has run for a day
    ],
)
def test_rows_that_an_output_leaves_out_share_the_fate_of_their_job(
    told: str, hours: int, outcome: Outcome
) -> None:
    assert status(Job(name=NAME, state=told, ran_seconds=hours * 3600)).unmentioned is outcome


def test_counts_are_told_as_far_as_they_are_known() -> None:
    running = Job(name=NAME, state="JOB_STATE_RUNNING", succeeded=3, failed=1, incomplete=6)
    assert status(running) == BatchStatus(state=BatchState.RUNNING, total=10, finished=4)
    uncounted = Job(name=NAME, state="JOB_STATE_RUNNING", succeeded=3, failed=1, incomplete=-1)
    assert status(uncounted) == BatchStatus(state=BatchState.RUNNING, total=None, finished=4)
    assert status(Job(name=NAME, state="JOB_STATE_PENDING")).finished is None


@pytest.mark.parametrize(
    ("code", "later"), [(3, False), (5, False), (7, False), (9, False), (8, True), (13, True), (14, True)]
)
def test_a_failed_job_is_sent_again_later_only_where_resources_lacked(code: int, later: bool) -> None:
    told = status(Job(name=NAME, state="JOB_STATE_FAILED", error_code=code, error_message="why"))
    assert (told.state, told.later) == (BatchState.REJECTED, later)
    assert told.reason is not None
    assert told.reason.startswith(f"code {code}.")
    assert told.detail == "why"


def test_a_failed_job_says_what_to_do_about_rights() -> None:
    told = status(Job(name=NAME, state="JOB_STATE_FAILED", error_code=7, error_message="denied"))
    assert "storage.objects.create" in str(told.reason)


def test_the_importers_quotations_of_rows_are_left_out_of_the_reason() -> None:
    message = "Failed to import data. Could not parse 'Dear Sir, my card' as INT64 for field \"age\"."
    told = status(Job(name=NAME, state="JOB_STATE_FAILED", error_code=3, error_message=message))
    assert "card" not in f"{told.reason} {told.detail}"
    assert "Failed to import data. Could not parse" in told.detail


def test_a_job_that_failed_after_it_had_written_rows_has_ended() -> None:
    wrote = Job(name=NAME, state="JOB_STATE_FAILED", error_code=13, succeeded=2, failed=0, output=FOLDER)
    assert status(wrote) == BatchStatus(state=BatchState.ENDED, finished=2)
    nothing = Job(name=NAME, state="JOB_STATE_FAILED", error_code=13, succeeded=0, failed=0, output=FOLDER)
    assert status(nothing).state is BatchState.REJECTED


def test_a_job_is_labelled_with_run_and_shard_in_what_google_takes_for_labels() -> None:
    told = labels("r0123456789abcdef-0042")
    assert told == {
        "airflow_batch_llm_run": "r0123456789abcdef",
        "airflow_batch_llm_shard": "r0123456789abcdef-0042",
    }
    assert all(len(word) <= 63 and word == word.lower() for pair in told.items() for word in pair)


def test_the_search_is_by_run_and_time() -> None:
    search = Search(run_tokens=frozenset({"r01"}), since=1_800_000_000.9, requests={"r01-0001": 5})
    assert search_filter(search) == (
        '(labels.airflow_batch_llm_run="r01") AND create_time>="2027-01-15T08:00:00Z"'
    )


def test_a_sighting_bears_the_shard_that_its_label_names() -> None:
    job = Job(name=NAME, state="JOB_STATE_RUNNING", labels=labels("r01-0042"))
    assert sighting(job) == Sighting(batch_id=NAME, state=BatchState.RUNNING, token="r01-0042")


def test_the_console_page_is_that_of_the_job() -> None:
    assert console_url(NAME) == (
        "https://console.cloud.google.com/vertex-ai/locations/europe-west4/batch-predictions/456?project=123"
    )


def test_a_bare_model_name_is_one_of_googles_own() -> None:
    assert model_path("gemini-2.5-flash") == "publishers/google/models/gemini-2.5-flash"
    assert model_path("publishers/google/models/x") == "publishers/google/models/x"


def test_a_table_of_answers_is_found_by_what_the_job_says_and_else_by_what_it_was_told() -> None:
    job = BatchPredictionJob(name=NAME, state=JobState.JOB_STATE_SUCCEEDED)
    job.input_config.bigquery_source.input_uri = "bq://p.d.llm_requests_1"
    job.output_config.bigquery_destination.output_uri = "bq://p.d.llm_answers_1"
    unsaid = _job(job)
    job.output_info.bigquery_output_dataset, job.output_info.bigquery_output_table = "bq://p.d", "other"
    assert (unsaid.output, unsaid.destination) == (None, "bq://p.d.llm_answers_1")
    assert (_job(job).output, unsaid.upload) == ("bq://p.d.other", "bq://p.d.llm_requests_1")
