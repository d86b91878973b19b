"""Call Vertex's clients, and keep a creation inside its lease over `requests`.

The body is sent only once a connection is open and the lease still runs. If it is not, the server has half a request,
which it never executes. The watchdog learns of each connection as it is opened.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from airflow_batch_llm.core.model import Call, Lease, Way
from airflow_batch_llm.errors import BatchLLMError, InputError, Unavailable, UnknownFate, raise_alone
from airflow_batch_llm.providers.clients import ANSWER_TIMEOUT
from airflow_batch_llm.providers.creation import Sending
from airflow_batch_llm.providers.incoming import (
    ENCODINGS,
    NotUnderstood,
    bound_client,
    bound_session,
    entries,
    fate_unknown,
    record,
    text,
    understood,
)
from airflow_batch_llm.providers.reach import keep_session, shared_context
from airflow_batch_llm.providers.steps import CALL_TIMEOUT, WORKER, call_timeout, drive, patiently
from airflow_batch_llm.providers.vertex.errors import judge, judge_creation, needing_extra
from airflow_batch_llm.providers.vertex.jobs import PAGE_SIZE, Job, JobPage, is_claude, is_name, model_path
from airflow_batch_llm.providers.vertex.lines import FLEX, FLEX_TIMEOUT, generate_content
from airflow_batch_llm.providers.vertex.storage import TABLE, StoragePlace


def _opened(client_class: Any, place: StoragePlace) -> Any:
    """Open a client of google-cloud-aiplatform over REST that keeps to its host."""
    from google.api_core.client_options import ClientOptions

    client = client_class(
        credentials=place.credentials,
        transport="rest",
        client_options=ClientOptions(api_endpoint=place.endpoint),
    )
    keep_session(client.transport._session)  # it is not public
    return client


class TokenCounter:
    """countTokens through google-cloud-aiplatform."""

    def __init__(self, client: Any, place: StoragePlace) -> None:
        self._client = client
        self._place = place

    @classmethod
    def open(cls, place: StoragePlace) -> "TokenCounter":
        with needing_extra():
            from google.cloud.aiplatform_v1 import LlmUtilityServiceClient

        return cls(_opened(LlmUtilityServiceClient, place), place)

    def count(self, call: Call, prompt: str) -> int:
        """Return the input tokens of one request, system prompt and schema included."""
        from google.cloud.aiplatform_v1.types import CountTokensRequest

        model = model_path(call.model)
        body = {
            **generate_content(call, prompt),
            "endpoint": model if model.startswith("projects/") else f"{self._place.parent}/{model}",
        }
        request = CountTokensRequest.from_json(orjson.dumps(body), ignore_unknown_fields=True)
        return drive(
            patiently(
                lambda client: client.count_tokens(request, retry=None, timeout=call_timeout()),
                judge,
                WORKER,
                lambda answer: int(answer.total_tokens),
            ),
            self._client,
        )

    def close(self) -> None:
        self._client.transport.close()


def keep_inside(session: Any, sending: Sending) -> None:
    """Make this session of `requests` send everything from now on inside the lease."""
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sending.note(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sending.note(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    class Leased(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            whole = request.body.encode() if isinstance(request.body, str) else request.body
            request.body = sending.body((), whole)
            return super().send(request, *args, **kwargs)

    for scheme in ("https://", "http://"):
        session.mount(scheme, Leased())


_FIELDS = (
    "name",
    "state",
    "labels",
    "error",
    "completion_stats",
    "output_info",
    "create_time",
    "start_time",
    "end_time",
)

_OF_A_PAGE = frozenset({"batchPredictionJobs", "nextPageToken"})

# The models of google-genai that a job is made of; older releases lack some.
_MODELS = (
    "ListBatchJobsResponse",
    "BatchJob",
    "BatchJobSource",
    "BatchJobDestination",
    "BatchJobOutputInfo",
    "CompletionStats",
    "JobError",
)


class VertexJobs:
    """Batch prediction jobs through `JobServiceClient`. Each call is sent once."""

    def __init__(self, client: Any, place: StoragePlace) -> None:
        if session := getattr(client.transport, "_session", None):
            bound_session(session)
            session.hooks["response"].append(_checked)
        self._client = client
        self._place = place

    @classmethod
    def open(cls, place: StoragePlace) -> "VertexJobs":
        with needing_extra():
            from google.cloud.aiplatform_v1 import JobServiceClient

        return cls(_opened(JobServiceClient, place), place)

    def get(self, name: str) -> Job:
        with _parsed():
            told = self._client.get_batch_prediction_job(name=name, retry=None, timeout=call_timeout())
            return _asked_for(name, _job(told))

    def page(self, listed: str, token: str) -> JobPage:
        request = {
            "parent": self._place.parent,
            "filter": listed,
            "page_size": PAGE_SIZE,
            "page_token": token,
            "read_mask": {"paths": list(_FIELDS)},
        }
        with _parsed():
            pager = self._client.list_batch_prediction_jobs(request, retry=None, timeout=call_timeout())
            page = next(iter(pager.pages))
            return JobPage(jobs=tuple(map(_job, page.batch_prediction_jobs)), next_token=page.next_page_token)

    def cancel(self, name: str) -> None:
        self._client.cancel_batch_prediction_job(name=name, retry=None, timeout=call_timeout())

    def delete(self, name: str) -> None:
        """Begin to delete an ended job, and do not wait until Vertex has done it."""
        self._client.delete_batch_prediction_job(name=name, retry=None, timeout=call_timeout())

    def create(self, job: Mapping[str, Any], lease: Lease) -> str:
        """Create a job inside the lease and return its name. To be used with a client of its own."""
        sending = Sending(lease)
        if sending.remaining <= 0:
            raise Unavailable("The lease to create this job is over. Nothing was sent.")
        session = getattr(self._client.transport, "_session", None)
        if session is None:
            raise InputError("The client for Vertex must use REST: JobServiceClient(transport='rest').")
        keep_inside(session, sending)
        try:
            with sending.watchdog():
                created = self._client.create_batch_prediction_job(
                    parent=self._place.parent,
                    batch_prediction_job=dict(job),
                    retry=None,
                    timeout=max(sending.remaining, 0.001),  # requests refuses 0
                )
        except Exception as error:
            verdict = judge_creation(error, sent=sending.whole)
            if verdict is error and (isinstance(error, BatchLLMError) or not sending.whole):
                raise
            raise_alone(fate_unknown(error) if verdict is error else verdict)
        if not is_name(created.name):
            raise UnknownFate("The answer to the creation names no job, which may exist all the same.")
        return str(created.name)

    def close(self) -> None:
        self._client.transport.close()


class AsyncJobs:
    """The same jobs through google-genai's asynchronous client. Each call is sent once."""

    def __init__(self, client: Any, http: Any = None) -> None:
        self._client = client
        self._http = http  # what it sends with, where that is ours to close

    @classmethod
    def open(cls, place: StoragePlace) -> "AsyncJobs":
        """Import the SDK and build its client, which takes a second and reads files: call it in a thread."""
        with needing_extra():
            import httpx
            from google import genai
            from google.auth.credentials import AnonymousCredentials
            from google.genai import types
            from google.oauth2.credentials import Credentials

        credentials = place.credentials
        if isinstance(credentials, AnonymousCredentials):
            # This client requires a body.
            bearer: Any = Credentials
            credentials = bearer("anonymous")
        tls = shared_context(httpx)
        http = httpx.AsyncClient(headers={"Accept-Encoding": ENCODINGS}, follow_redirects=False, verify=tls)
        bound_client(http)
        own: dict[str, Any] = {
            "httpx_async_client": http,
            # Otherwise the SDK makes a TLS context for each of its other transports, none of which is used.
            "client_args": {"verify": tls},
            "async_client_args": {"verify": tls, "ssl": tls},
        }
        if "httpx_async_client" not in types.HttpOptions.model_fields:
            own = {}  # older releases of the SDK send with their own, whatever one gives them
        options = types.HttpOptions(
            base_url=place.base_url,
            api_version="v1",
            timeout=int(CALL_TIMEOUT * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
            **own,
        )
        client = genai.Client(
            vertexai=True,
            project=place.project,
            location=place.location,
            credentials=credentials,
            http_options=options,
        )
        # Pydantic would build these at the first answer, for a tenth of a second on the event loop.
        for model in filter(None, (getattr(types, name, None) for name in _MODELS)):
            model.model_rebuild()
        return cls(client, http)

    async def get(self, name: str) -> Job:
        with _parsed():
            return _asked_for(name, _genai_job(await self._client.aio.batches.get(name=name)))

    async def page(self, listed: str, token: str) -> JobPage:
        config = {"filter": listed, "page_size": PAGE_SIZE, "page_token": token or None}
        with _parsed():
            pager = await self._client.aio.batches.list(config=config)
            jobs = tuple(map(_genai_job, pager.page))
            return JobPage(jobs=jobs, next_token=pager.config.get("page_token") or "")

    async def cancel(self, name: str) -> None:
        with _parsed():
            await self._client.aio.batches.cancel(name=name)

    async def answer(self, model: str, body: Mapping[str, Any], way: Way) -> dict[str, Any]:
        """Ask a model in real time. The SDK has no public call that sends a request unchanged."""
        send: Any = self._client.aio._api_client.async_request
        with _parsed():
            timeout = FLEX_TIMEOUT if way is Way.FLEX else ANSWER_TIMEOUT
            options = {"timeout": int(timeout * 1000), "headers": FLEX if way is Way.FLEX else {}}
            verb = "rawPredict" if is_claude(model) else "generateContent"
            answer = await send("post", f"{model}:{verb}", dict(body), options)
            return dict(record(orjson.loads(answer.body)))

    async def close(self) -> None:
        await self._client.aio.aclose()
        self._client.close()
        if self._http is not None:
            await self._http.aclose()


def _checked(response: Any, **_: Any) -> None:
    """Refuse an answer that the SDK would read as a list without jobs, because it ignores unknown fields."""
    if not response.ok:
        return
    with understood():
        answer = response.json()
        if response.request.method == "GET" and "pageSize=" in response.url:
            jobs = record(answer).get("batchPredictionJobs", [])
            list(map(record, entries(jobs)))
            if answer.keys() - _OF_A_PAGE:
                raise ValueError


@contextmanager
def _parsed() -> Iterator[None]:
    """Call an SDK that reads the answer itself in this block. An answer that it cannot read raises `NotUnderstood`."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if type(error).__module__.startswith("google.auth") or isinstance(error, UnicodeError):
            raise  # nothing was answered: the call could not be made
        raise_alone(error if isinstance(error, NotUnderstood) else NotUnderstood(type(error).__name__))
    except Exception as error:
        if type(error).__name__ == "ParseError":
            raise_alone(NotUnderstood("ParseError"))
        raise


def _asked_for(name: str, job: Job) -> Job:
    """Return the job if it has this name, and raise `ValueError` otherwise: any object would pass as a job without fields."""
    if str(job.name).rpartition("/")[2] != name.rpartition("/")[2]:
        raise ValueError("the answer is about another job")
    return job


def _job(told: Any) -> Job:
    """Return a job as google-cloud-aiplatform describes it. Its counts are 0 where none were sent."""
    counted = "completion_stats" in told
    stats = told.completion_stats
    return Job(
        name=text(told.name),
        state=told.state.name,
        labels=dict(told.labels),
        succeeded=int(stats.successful_count) if counted else None,
        failed=int(stats.failed_count) if counted else None,
        incomplete=int(stats.incomplete_count) if counted else None,
        error_code=told.error.code or None,
        error_message=told.error.message,
        output=_output(told.output_info),
        destination=told.output_config.bigquery_destination.output_uri,
        upload=next(iter(told.input_config.gcs_source.uris), told.input_config.bigquery_source.input_uri),
        created_at=told.create_time.timestamp() if told.create_time else 0.0,
        ran_seconds=_ran_seconds(told),
    )


def _output(info: Any) -> str | None:
    """Return the folder, or the table, into which a job has written."""
    dataset, table = info.bigquery_output_dataset, info.bigquery_output_table
    if dataset and table:
        return f"{TABLE}{dataset.removeprefix(TABLE)}.{table.rpartition('.')[2]}"
    return info.gcs_output_directory or None


def _genai_job(told: Any) -> Job:
    """Return a job as google-genai describes it, which leaves the labels out, and in older releases counts and output."""
    stats, output = getattr(told, "completion_stats", None), getattr(told, "output_info", None)
    error = told.error
    return Job(
        name=text(told.name),
        state=told.state.name if told.state else "",
        display_name=told.display_name or "",
        succeeded=(stats.successful_count or 0) if stats else None,
        failed=(stats.failed_count or 0) if stats else None,
        incomplete=(stats.incomplete_count or 0) if stats else None,
        error_code=error.code if error else None,
        error_message=(error.message or "") if error else "",
        # It names no dataset, because this client looks at jobs and does not read answers.
        output=(output.gcs_output_directory or output.bigquery_output_table) if output else None,
        created_at=told.create_time.timestamp() if told.create_time else 0.0,
        ran_seconds=_ran_seconds(told),
    )


def _ran_seconds(told: Any) -> float:
    if not (told.start_time and told.end_time):
        return 0.0
    return float((told.end_time - told.start_time).total_seconds())
