"""Start a Dag when files arrive: a watcher of an asset, and the files of its events as a stage's source."""

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Context

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.triggers.watching import Arrivals, WatcherTrigger, list_files, refuse_password


class NewFilesTrigger(WatcherTrigger):
    """Fire an event with the URIs of files that are new or were replaced: `{"uris": […]}`.

    For an `AssetWatcher`. A file is reported once two looks in a row have found it unchanged. The first event has all files
    that are there already.

    :param uri: a pattern, such as ``s3://bucket/inbox/*.parquet``, of any store that Airflow opens
    :param conn_id: the connection of the store; None for the credentials of the triggerer
    :param max_files: the most files of one event; more lead to more events
    :param poll_interval: seconds between two looks
    :param workspace: URI of the folder that keeps the watermark; None for the configured one
    """

    def __init__(
        self,
        *,
        uri: str,
        conn_id: str | None = None,
        max_files: int = 1000,
        poll_interval: float = 60.0,
        workspace: str | None = None,
    ) -> None:
        super().__init__(poll_interval=poll_interval, workspace=workspace)
        refuse_password(uri)
        if max_files < 1:
            raise InputError(f"max_files must be at least 1, got {max_files}.")
        self.uri = uri
        self.conn_id = conn_id
        self.max_files = max_files
        self._arrivals = Arrivals()

    def arguments(self) -> dict[str, Any]:
        return {"uri": self.uri, "conn_id": self.conn_id, "max_files": self.max_files}

    def recall(self, memory: Mapping[str, Any]) -> None:
        self._arrivals = Arrivals(reported=frozenset(memory.get("reported", ())))

    def memory(self) -> dict[str, Any]:
        return {"uri": self.uri, "reported": sorted(self._arrivals.reported)}

    def look(self) -> Sequence[Mapping[str, Any]]:
        uris, self._arrivals = self._arrivals.after(list_files(self.uri, self.conn_id))
        size = self.max_files
        return [{"uris": uris[start : start + size]} for start in range(0, len(uris), size)]


def new_uris(context: Context, jinja_env: Any = None) -> list[str]:  # noqa: ARG001 - Airflow's signature
    """Return the URIs of the events that started the run. Write `source_uri=new_uris`.

    A run that was started by hand may have them in its configuration instead: `{"uris": […]}`.
    """
    dag_run: Any = context["dag_run"]
    given = (dag_run.conf or {}).get("uris")
    payloads = [_payload(event) for events in _events(context) for event in events]
    uris = given or [uri for payload in payloads for uri in payload.get("uris", ())]
    if not uris:
        raise InputError(
            "No event of a NewFilesTrigger has started this run, so there are no new files. Let the watcher start it, or"
            ' start it with the configuration {"uris": […]}.'
        )
    return list(dict.fromkeys(uris))


def _payload(event: Any) -> Mapping[str, Any]:
    """Return the payload of a trigger's event. Returns an empty mapping for the event of a task."""
    payload = (event.extra or {}).get("payload")
    return payload if isinstance(payload, Mapping) else {}


def _events(context: Context) -> Sequence[Sequence[Any]]:
    found: Any = context.get("triggering_asset_events") or {}
    return list(found.values())
