"""A stage in a YAML file: its fields, and what is said when they do not fit.

Words and defaults of the sections `shape`, `guards` and `pace` are those of the settings in Python. A secret never
stands in the file: it is named by the environment variable that holds it.
"""

from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.stage.settings import Guards, Pace, Shape
from airflow_batch_llm.warehouses.files import FileFormat

_SECRETS = {"api_key": "api_key_env", "dsn": "dsn_env", "password": "dsn_env"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def _exactly_one(self, *names: str) -> Self:
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"it has {' and '.join(given)}" if given else "it has none"
            raise ValueError(f"exactly one of {', '.join(names)} is needed, and {found}")
        return self


class ProviderSection(_Section):
    """How the provider is reached."""

    base_url: str | None = None  # None: the vendor's own
    allow_insecure_base_url: bool = (
        False  # also http:// on another machine, where keys and prompts travel in clear
    )
    api_key_env: str | None = None  # None: the variable that the vendor's SDK reads
    options: dict[str, Any] = Field(
        default_factory=dict
    )  # of the SDK's client; for Vertex project, location, staging

    @field_validator("base_url")
    @classmethod
    def _is_a_url(cls, given: str | None) -> str | None:
        if given is not None and "://" not in given:
            raise ValueError("a URL begins with https:// or http://")
        return given


class PostgresSection(_Section):
    """A PostgreSQL database."""

    dsn_env: str  # the variable that holds its DSN or URI


class BigQuerySection(_Section):
    """A BigQuery project, with the environment's credentials."""

    project: str
    dataset: str | None = None  # of tables that are named without one
    location: str | None = None


class WarehouseSection(_Section):
    """One database: exactly one of these."""

    duckdb: str | None = None  # the file
    sqlite: str | None = None  # the file
    postgres: PostgresSection | None = None
    bigquery: BigQuerySection | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        return self._exactly_one("duckdb", "sqlite", "postgres", "bigquery")


class SourceSection(_Section):
    """The rows: exactly one of `sql`, `table` and `uri`."""

    sql: str | None = None
    table: str | None = None
    uri: str | list[str] | None = None  # files, or patterns of files
    format: FileFormat | None = None  # None: told by the files' names
    delimiter: str | None = None  # of CSV
    warehouse: WarehouseSection | None = None  # None: the one that the answers go to

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        return self._exactly_one("sql", "table", "uri")


def _only_fields_of(settings: type) -> BeforeValidator:
    """Refuse names that the settings do not have; a dataclass alone would ignore them."""
    known = [field.name for field in fields(settings)]

    def check(given: object) -> object:
        unknown = [name for name in given if name not in known] if isinstance(given, dict) else []
        if unknown:
            raise ValueError(_unknown(unknown[0], known))
        return given

    return BeforeValidator(check)


class Spec(_Section):
    """The whole file."""

    model_id: str  # `<provider>:<model>`
    provider: ProviderSection = ProviderSection()
    warehouse: WarehouseSection
    source: SourceSection
    key: str | list[str]
    prompt: str | None = None  # exactly one of `prompt` and `prompt_file`
    prompt_file: str | None = None
    system_prompt: str | None = None
    prompt_params: dict[str, Any] = Field(default_factory=dict)
    output_type: str | list[Any] | dict[str, Any] = "str"
    max_tokens: int | None = 1024
    request_params: dict[str, Any] = Field(default_factory=dict)
    endpoint: str | None = None
    cache_system_prompt: bool = False
    target: str
    shape: Annotated[Shape, _only_fields_of(Shape)]
    guards: Annotated[Guards, _only_fields_of(Guards)] = Guards()
    pace: Annotated[Pace, _only_fields_of(Pace)] = Pace()
    keep_days: float | None = 30.0  # how long the workspace keeps prompts and raw answers; None: for good
    workspace: str  # a folder or a URI that is kept
    run: str | None = None  # the run's name; None: made of the file's name and of what is asked

    @model_validator(mode="before")
    @classmethod
    def _target_in_shape(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("shape", {}), dict):
            return given
        if "target" in given.get("shape", {}):
            raise ValueError("target stands beside shape, not in it")
        return {**given, "shape": {**given.get("shape", {}), "target": given.get("target", "")}}

    @field_validator("model_id")
    @classmethod
    def _names_provider_and_model(cls, given: str) -> str:
        provider, _, model = given.partition(":")
        if not (provider and model):
            raise ValueError("it reads '<provider>:<model>', such as anthropic:claude-haiku-4-5")
        return given

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        return self._exactly_one("prompt", "prompt_file")

    @model_validator(mode="after")
    def _labels_are_texts(self) -> Self:
        if isinstance(self.output_type, list) and not all(isinstance(one, str) for one in self.output_type):
            raise ValueError(
                "a label of output_type is no text: YAML reads yes, no, on, off and numbers as such; quote them"
            )
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)


def read_spec(path: Path) -> Spec:
    """The file, checked. `InputError` names every field that does not fit, and no value."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path} is not valid YAML{line}: {error.problem}.") from None
    if not isinstance(given, dict):
        raise InputError(
            f"{path} holds no fields. It begins like this: 'model_id: anthropic:claude-haiku-4-5'."
        )
    try:
        return Spec.model_validate(given)
    except ValidationError as error:
        said = "\n".join(
            f"  {_said(detail)}" for detail in error.errors(include_url=False, include_input=False)
        )
        raise InputError(f"{path} does not describe a stage:\n{said}") from None


def _said(detail: ErrorDetails) -> str:
    names = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        return f"{'.'.join(names)}: {_unknown(names[-1], _names_at(names[:-1]))}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{'.'.join(names)}: {message}" if names else message


def _unknown(name: str, known: list[str]) -> str:
    if name in _SECRETS:
        return f"a secret does not stand in the file; name the environment variable that holds it with {_SECRETS[name]}"
    close = get_close_matches(name, known, n=1)
    return f"{name} is unknown; " + (f"is it {close[0]}?" if close else f"there are {', '.join(known)}")


def _names_at(path: list[str]) -> list[str]:
    """The field names of the section at this path."""
    section: type[BaseModel] = Spec
    for part in path:
        kinds = [section.model_fields[part].annotation] if part in section.model_fields else []
        options = [kind for one in kinds for kind in (one, *getattr(one, "__args__", ()))]
        section = next(
            (one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), section
        )
    return list(section.model_fields)
