"""Where a stage's jobs run and with whose rights: project, location, staging folder, credentials.

Credentials are looked up when they are first needed, which may ask the metadata server: never on an event loop.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.vertex.errors import needing_extra

DEFAULT_LOCATION = "us-central1"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_MULTI_REGIONS = frozenset({"us", "eu"})


@dataclass(frozen=True, kw_only=True)
class Place:
    """The options of an `Access` in Google's terms."""

    location: str
    base_url: str | None
    chosen_project: str | None
    chosen_staging: str | None
    chosen_credentials: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, access: Access) -> "Place":
        options = access.options
        return cls(
            location=options.get("location") or DEFAULT_LOCATION,
            base_url=access.base_url,
            chosen_project=options.get("project"),
            chosen_staging=options.get("staging"),
            chosen_credentials=options.get("credentials"),
        )

    @property
    def staging(self) -> str:
        """The folder in Cloud Storage below which requests and answers lie, without a slash at its end."""
        staging = self.chosen_staging
        if not staging or not staging.startswith("gs://") or not urlsplit(staging).netloc:
            raise InputError(
                "Vertex reads batches from Cloud Storage. Name a folder that it may use: staging='gs://bucket/folder'."
            )
        return staging.rstrip("/")

    @property
    def endpoint(self) -> str:
        """The host of the API, with a scheme where the user gave one."""
        if self.base_url:
            return self.base_url.rstrip("/")
        if self.location == "global":
            return "aiplatform.googleapis.com"
        if self.location in _MULTI_REGIONS:
            return f"aiplatform.{self.location}.rep.googleapis.com"
        return f"{self.location}-aiplatform.googleapis.com"

    @property
    def host(self) -> str | None:
        """The host that answers, where it is not Google's."""
        if not self.base_url:
            return None
        host = urlsplit(self.base_url).hostname
        return None if host is None or host.endswith(".googleapis.com") else host

    @property
    def parent(self) -> str:
        """The project and location that own the jobs, as the API spells them."""
        return f"projects/{self.project}/locations/{self.location}"

    @property
    def project(self) -> str:
        if self.chosen_project:
            return self.chosen_project
        _, project = self._found
        if not project:
            raise InputError("No Google Cloud project is set. Name it: project='…', or in the connection.")
        return project

    @property
    def credentials(self) -> Any:
        """Credentials of google.auth: the user's own, none for a server that is not Google's, or the environment's."""
        if self.chosen_credentials is not None:
            return self.chosen_credentials
        credentials, _ = self._found
        return credentials

    @cached_property
    def _found(self) -> tuple[Any, str | None]:
        with needing_extra():
            import google.auth
            from google.auth.credentials import AnonymousCredentials

        if self.chosen_credentials is not None:
            return self.chosen_credentials, getattr(self.chosen_credentials, "project_id", None)
        if self.host is not None:
            anonymous: Any = AnonymousCredentials  # untyped
            return anonymous(), None
        found: tuple[Any, str | None] = google.auth.default(scopes=[_SCOPE])
        return found
