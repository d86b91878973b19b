"""One kind of warehouse as it is registered: how a connection of Airflow and a spec lead to it.

An adapter below Airflow's edge sees a connection as plain fields, and Airflow's own hook as a function that builds it.

The place of a table is said in words that are the same for every connection that leads to it. Places are compared, stored
in plans and hashed into registers, so they hold no part of a connection that is secret or that changes while the table
stays: no user, no password, no options.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batch_llm.errors import InputError

if TYPE_CHECKING:
    from airflow_batch_llm.warehouses.base import Warehouse
    from airflow_batch_llm.warehouses.dialect import Dialect


#: In a URI, everything from here on is a connection's options.
_OPTIONS = re.compile(r"[?;#].*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One table of one database."""

    database: str
    """URI of the database, such as ``postgres://warehouse:5432/support``."""
    table: str
    """Full name of the table in its database, such as ``public.labels``."""

    @classmethod
    def of(cls, uri: str, *parts: str) -> "Place":
        """Return the place of a table by its database's URI and the parts of its name. Empty parts are left out."""
        return cls(database=_without_credentials(uri), table=".".join(filter(None, parts)))

    def __str__(self) -> str:
        return f"{self.table} in {self.database}"


def _without_credentials(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    plain = _OPTIONS.sub("", rest)
    if "@" in rest[len(plain) :]:  # either may be a password's: it cannot be told where the host is
        return f"{scheme}{separator}{hashlib.blake2b(rest.encode(), digest_size=8).hexdigest()}"
    # A password may hold a slash, so everything before the last @ goes.
    authority, slash, path = plain.rpartition("@")[2].partition("/")
    return f"{scheme}{separator}{authority.lower()}{slash}{path}".rstrip("/")


class UriForm(StrEnum):
    """The parts of a database's URI before its tables."""

    SERVER = "scheme://host:port/database"
    PROJECT = "scheme://project"
    FILE = "scheme:///path/of/file"


#: Parameters of hooks that most databases take, and that hold no secret.
COMMON_HOOK_PARAMS = frozenset(
    {"catalog", "database", "http_path", "location", "log_sql", "role", "schema", "warehouse"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AirflowConnection:
    """A connection of Airflow: its fields, and the hook that opens it."""

    conn_id: str
    conn_type: str
    hook: Callable[..., Any]
    """Builds the hook that the registration names. Its arguments are the hook's own."""
    hook_params: Mapping[str, Any] = field(default_factory=dict)
    """The hook params of the user's task, checked against the registration."""
    host: str | None = None
    port: int | None = None
    schema: str | None = None
    login: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def called(self) -> str:
        """The connection as messages call it."""
        return f"the connection {self.conn_id!r}"

    @property
    def uri(self) -> str:
        """The database's URI without a login, for assets and lineage."""
        port = f":{self.port}" if self.port else ""
        return f"{self.conn_type}://{self.host or ''}{port}/{self.schema or ''}".rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFile:
    """The surroundings of a spec: the folder of its file, and the environment that holds its secrets."""

    folder: Path
    environment: Mapping[str, str] = field(repr=False)

    def path(self, given: str | Path) -> Path:
        """Return a path of the spec, which is relative to the spec's folder."""
        return self.folder / Path(given).expanduser()

    def secret(self, variable: str) -> str:
        """Return the value of an environment variable. Raises `InputError` if it is not set."""
        return secret(variable, self.environment)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarehouseType:
    """A kind of warehouse. A registration holds it under the name `WAREHOUSE`."""

    name: str
    """The kind's name, which is also its field in the `warehouse` section of a spec."""
    dialect: "Dialect | None" = None
    """Its SQL dialect. Default: no adapter is found by the name of its dialect."""
    uri_scheme: str = ""
    """Scheme of its URIs in assets and lineage. Default: the kind's name."""
    uri_form: UriForm = UriForm.SERVER
    """The part of a database that such a URI names."""
    connection_types: frozenset[str] = frozenset()
    """Types of Airflow's connections that lead to it. Default: none."""
    open_connection: "Callable[[AirflowConnection], Warehouse] | None" = None
    """Build the warehouse of a connection. It connects to nothing yet. Needed if there are connection types."""
    requirement: str = ""
    """Argument of `pip install` that brings the hook and the driver. Default: nothing is needed."""
    hook: str = ""
    """Import path of the hook's class. Default: the hook that Airflow knows for the connection's type."""
    hook_params: frozenset[str] = COMMON_HOOK_PARAMS
    """Names that hook params may have. None may hold a secret: others can read them in XCom."""
    section: Any = None
    """Type of the field in a spec, for Pydantic: `str`, or a model. Default: no spec leads to it."""
    open_section: "Callable[[Any, SpecFile], Warehouse] | None" = None
    """Build the warehouse of a spec's field. It connects to nothing yet. Needed if there is a section."""


def secret(variable: str, environment: Mapping[str, str]) -> str:
    """Return the value of an environment variable. Raises `InputError` if it is not set."""
    value = environment.get(variable)
    if not value:
        raise InputError(f"The environment variable {variable} is not set. The spec names it for a secret.")
    return value
