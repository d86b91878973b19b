"""A spec: a stage in a YAML file, checked whole, and the run that it becomes. Nothing is connected to yet.

The fields of `Stage` stand at the top of the file, with the sections `request`, `shape`, `guards` and `pace`: names and
defaults are those of Python and of operators. A secret never stands in the file: it is named by the environment variable
that holds it. Paths are relative to the file.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import pyarrow as pa
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from airflow_batch_llm.core.checked import explanation
from airflow_batch_llm.core.evaluation import Evaluation
from airflow_batch_llm.core.output_type import Embedding, OutputType
from airflow_batch_llm.core.prompt import identity_of_examples
from airflow_batch_llm.core.request import canonical, digest
from airflow_batch_llm.core.settings import Source, Stage
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers import check_name, connect
from airflow_batch_llm.providers.base import Access, Provider, is_sendable
from airflow_batch_llm.providers.routed import routed
from airflow_batch_llm.stage.parts import ReadsSource, UsageTable
from airflow_batch_llm.stage.plan.resolved import read_prompt
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses import all_types
from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.files.source import FileFormat, FileSource, read_files
from airflow_batch_llm.warehouses.registration import SpecFile, WarehouseType, secret

#: The fields of a spec that identify its run. Its pace and its budget do not.
_ASKED = ("model_id", "key", "system_prompt", "prompt_params", "target")

_SECRETS = {"api_key": "api_key_env", "dsn": "dsn_env", "password": "dsn_env"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def _exactly_one(self, *names: str) -> Self:
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"it has {' and '.join(given)}" if given else "it has none"
            raise ValueError(f"needs exactly one of {', '.join(names)}, and {found}")
        return self


class ProviderSection(_Section):
    """The provider's connection settings."""

    base_url: str | None = None  # None: the vendor's own
    allow_insecure_base_url: bool = (
        False  # also http:// on another machine, where keys and prompts travel in clear
    )
    api_key_env: str | None = None  # None: the variable that the vendor's SDK reads
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the SDK's client; for Vertex `project`, `location` and `staging`."""

    @field_validator("base_url")
    @classmethod
    def _is_a_url(cls, given: str | None) -> str | None:
        if given is not None and "://" not in given:
            raise ValueError("must begin with https:// or http://")
        return given


class _OneWarehouse(_Section):
    """One database: exactly one of the registered kinds, by its name."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        return self._exactly_one(*type(self).model_fields)

    @property
    def chosen(self) -> tuple[WarehouseType, Any]:
        """The kind, and what the spec says of it."""
        given = {name: field for name, field in self if field is not None}
        return next((kind, given[kind.name]) for kind in all_types() if kind.name in given)


if TYPE_CHECKING:
    WarehouseSection = _OneWarehouse
else:
    #: One field for each kind that a spec may name, those of installed plug-ins included.
    WarehouseSection = create_model(
        "WarehouseSection",
        __base__=_OneWarehouse,
        **{kind.name: (kind.section | None, None) for kind in all_types() if kind.section is not None},
    )


class SourceSection(_Section):
    """The rows: exactly one of `sql`, `table` and `uri`."""

    sql: str | None = None
    table: str | None = None
    uri: str | list[str] | None = None  # files, or patterns of files
    format: FileFormat | None = None  # None: by the files' names
    delimiter: str | None = None  # of CSV
    warehouse: WarehouseSection | None = None  # None: the one that the answers go to

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        return self._exactly_one("sql", "table", "uri")


class StageFile(_Section):
    """The whole file: the fields of the stage, and what the command needs besides."""

    provider: ProviderSection = ProviderSection()
    providers: dict[str, ProviderSection] = Field(default_factory=dict)
    """The settings of vendors that routes lead to, by the vendor's name."""
    warehouse: WarehouseSection
    source: SourceSection
    golden: SourceSection | None = None  # the rows that `evaluate` asks about, with the expected columns
    evaluation: Evaluation = Evaluation()  # how `evaluate` compares and judges
    workspace: str  # a folder or a URI that is kept
    deployment: str = (
        ""  # the name of this deployment among those that share the workspace; empty: it is the only one
    )
    usage_table: str | None = None  # the ledger; None: none is kept
    usage_warehouse: WarehouseSection | None = None  # the database of the ledger; None: the target's
    team: str = ""  # who pays, for the ledger
    run: str | None = None  # the run's name; None: made of the file's name and of what is asked
    stage: Stage  # its fields stand at the top of the file, and its source is in the section of that name

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, given: Any) -> Any:
        """Keep apart what belongs to the stage."""
        own = {name: value for name, value in given.items() if name in cls.model_fields and name != "stage"}
        stage = {name: value for name, value in given.items() if name not in own}
        return {**own, "stage": {**stage, "source": Source()}}

    @field_validator("stage")
    @classmethod
    def _labels_are_texts(cls, stage: Stage) -> Stage:
        labels = stage.output_type
        if isinstance(labels, list) and not all(isinstance(one, str) for one in labels):
            raise ValueError(
                "has a label in output_type that is not a text: YAML reads yes, no, on, off and numbers as such; quote them"
            )
        return stage


class LedgerFile(BaseModel):
    """The fields of a ledger's file. It may be a stage's file, whose other fields do not matter here."""

    model_config = ConfigDict(frozen=True)

    usage_table: str
    usage_warehouse: WarehouseSection | None = None  # None: the stage's own database
    warehouse: WarehouseSection | None = None
    workspace: str | None = None  # only to rebuild the ledger from run folders
    deployment: str = ""

    @property
    def database(self) -> WarehouseSection:
        """The section of the ledger's database."""
        section = self.usage_warehouse or self.warehouse
        if section is None:
            raise InputError(
                "The file names no database. Give usage_warehouse, as in `duckdb: warehouse.duckdb`."
            )
        return section


def read_ledger_file(path: Path) -> LedgerFile:
    """Return what the file says about the ledger."""
    try:
        return LedgerFile.model_validate(_read_fields(path))
    except ValidationError as error:
        said = "\n".join(f"  {_said(detail)}" for detail in error.errors(include_url=False))
        raise InputError(f"{path} does not describe a ledger:\n{said}") from None


def read_spec(path: Path) -> StageFile:
    """Read and check the file. `InputError` names every wrong field, and no value."""
    given = _read_fields(path)
    try:
        return StageFile.model_validate(given)
    except InputError as error:
        raise InputError(f"{path} does not describe a stage: {error}") from None
    except ValidationError as error:
        said = "\n".join(f"  {_said(detail)}" for detail in error.errors(include_url=False))
        raise InputError(f"{path} does not describe a stage:\n{said}") from None


def read_provider(path: Path) -> ProviderSection:
    """Return the `provider` section of the file. It may be the only section."""
    try:
        return ProviderSection.model_validate(_read_fields(path).get("provider") or {})
    except ValidationError as error:
        details = (
            {**detail, "loc": ("provider", *detail["loc"])} for detail in error.errors(include_url=False)
        )
        said = "\n".join(f"  {_said(cast('ErrorDetails', detail))}" for detail in details)
        raise InputError(f"{path} does not describe how to reach the provider:\n{said}") from None


def read_providers(path: Path) -> dict[str, ProviderSection]:
    """Return the `providers` section of the file, for the routes that lead to other vendors."""
    given = _read_fields(path).get("providers") or {}
    try:
        return {name: ProviderSection.model_validate(section) for name, section in given.items()}
    except (AttributeError, ValidationError):
        raise InputError(
            f"{path}: providers must hold a section like `provider` for each vendor, by its name."
        ) from None


def _read_fields(path: Path) -> dict[str, Any]:
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
    return given


def _said(detail: ErrorDetails) -> str:
    name = str(detail["loc"][-1]) if detail["loc"] else ""
    if name in _SECRETS and detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{name}: a secret does not stand in the file; name the environment variable that holds it with {_SECRETS[name]}"
    return explanation(detail, StageFile).removeprefix("stage.")


class SpecFiles:
    """Files as a source."""

    def __init__(self, files: FileSource) -> None:
        self._files = files

    def read(self, source: Source) -> pa.RecordBatchReader:
        return read_files(self._files, columns=source.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Opens what a spec names."""

    spec: StageFile
    file: SpecFile

    @classmethod
    def of(cls, spec: StageFile, path: Path) -> "Opening":
        """The spec that was read from this file, in this process's environment."""
        return cls(spec=spec, file=SpecFile(folder=path.absolute().parent, environment=os.environ))

    def stage(self, *, plan_only: bool = False) -> Stage:
        """Build the stage from the spec."""
        section, stage = self.spec.source, self.spec.stage
        return replace(
            stage,
            source=Source(sql=section.sql, table=section.table, key=tuple(stage.key)),
            prompt_file=None if stage.prompt_file is None else self.file.path(stage.prompt_file),
            output_type=self._output_type(),
            plan_only=plan_only or stage.plan_only,
        )

    def provider(self) -> Provider:
        """Return the provider, and those of the routes, with the keys that the environment holds."""
        own = open_provider(self.spec.stage.provider, self.spec.provider, self.file.environment)
        return routed(own, open_others(self._others(), self.spec.providers, self.file.environment))

    def keyless_provider(self) -> Provider:
        """Return the provider, and those of the routes, without keys: to make requests that are not sent."""
        others = {
            via: connect(name, self._keyless(self.spec.providers.get(name, ProviderSection())))
            for via, name in self._others().items()
        }
        own = connect(self.spec.stage.provider, self._keyless(self.spec.provider))
        return routed(own, others)

    def _keyless(self, section: ProviderSection) -> Access:
        return Access(
            api_key="none",
            base_url=section.base_url,
            options=section.options,
            allow_insecure=section.allow_insecure_base_url,
        )

    def _others(self) -> dict[str, str]:
        stage = self.spec.stage
        return {via: stage.under(route).provider for via, route in stage.others().items()}

    def source(self, target: Warehouse) -> ReadsSource:
        """Return the source of the rows: the target's own database if no other is named."""
        section = self.spec.source
        if section.uri is not None:
            return SpecFiles(self._files(section))
        return target if section.warehouse is None else self.warehouse(section.warehouse)

    def warehouse(self, section: WarehouseSection) -> Warehouse:
        """Return the database that a section names."""
        kind, field = section.chosen
        assert kind.open_section is not None, "the section has a field for it"
        return kind.open_section(field, self.file)

    def usage(self, target: Warehouse) -> UsageTable | None:
        """Return the ledger, in a database of its own or in the target's. Returns None if the spec names none."""
        name, section = self.spec.usage_table, self.spec.usage_warehouse
        if name is None:
            return None
        kind, field = (section or self.spec.warehouse).chosen
        book = f"{self.spec.deployment}\n{kind.name} {plain(field)}\n{name}"
        opened = (
            (lambda: nullcontext(target)) if section is None else (lambda: closing(self.warehouse(section)))
        )
        return UsageTable(name=name, book=book, opened=opened)

    def workspace(self, *, probe: bool = True) -> Workspace:
        """Return the workspace. Without a probe it may only be read."""
        uri = self.spec.workspace
        return Workspace.open(uri if "://" in uri else str(self.file.path(uri)), probe=probe)

    def run_name(self, stem: str) -> str:
        """Return the run's name: the given one, or one that follows from the question and the tables, and not from the pace."""
        if self.spec.run is not None:
            return self.spec.run
        stage = self.stage()
        asked: dict[str, Any] = self.spec.model_dump(
            mode="json", include={"warehouse", "source"}, exclude_none=True
        )
        asked |= {name: getattr(stage, name) for name in _ASKED}
        asked["request"] = asdict(stage.request)
        # These change how the rows are asked, not what is asked. An older release did not know the first; the second was false.
        del asked["request"]["rows_per_request"], asked["request"]["upload_attachments"]
        asked["request"]["cache_system_prompt"] = False
        if stage.attachments:
            asked["attachments"] = stage.attachments
        if stage.examples:
            asked["examples"] = identity_of_examples(stage.examples)
        if stage.routes:
            asked["routes"] = {name: asdict(route) for name, route in stage.routes.items()}
        asked["base_url"] = self.spec.provider.base_url
        asked["prompt"] = read_prompt(stage)
        asked["output_type"] = OutputType.of(stage.output_type).schema or str(stage.output_type)
        return f"{stem}-{digest(canonical(plain(asked)))[:12]}"

    def _output_type(self) -> object:
        wanted = self.spec.stage.output_type
        if not isinstance(wanted, str):
            return wanted
        if wanted in _WORDS:
            return _WORDS[wanted]
        module, colon, name = wanted.partition(":")
        if not colon:
            raise InputError(
                f"output_type: {wanted!r} is neither of {', '.join(_WORDS)}, nor a list of labels, a JSON Schema, or"
                " the name of a class, 'module:Class'."
            )
        if str(self.file.folder) not in sys.path:
            sys.path.insert(0, str(self.file.folder))
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"output_type: {wanted!r} cannot be imported from {self.file.folder}: {error}."
            ) from None

    def _files(self, section: SourceSection) -> FileSource:
        uris = [section.uri] if isinstance(section.uri, str) else section.uri or []
        return FileSource(
            uris=tuple(uri if "://" in uri else str(self.file.path(uri)) for uri in uris),
            format=section.format,
            delimiter=section.delimiter,
        )


def open_others(
    others: Mapping[str, str], sections: Mapping[str, ProviderSection], environment: Mapping[str, str]
) -> dict[str, Provider]:
    """Return the providers of routes that lead to other vendors. `others` has the vendors by the connection's name."""
    return {
        via: open_provider(name, sections.get(name, ProviderSection()), environment)
        for via, name in others.items()
    }


def open_provider(name: str, section: ProviderSection, environment: Mapping[str, str]) -> Provider:
    """Return the provider of this name, with the key that the environment holds."""
    check_name(name)
    key = secret(section.api_key_env, environment) if section.api_key_env is not None else None
    if key is not None and not is_sendable(key):
        raise InputError(
            f"The environment variable {section.api_key_env} holds a control character, white space at an end, or a"
            " letter that HTTP does not allow. Set it to the key alone."
        )
    access = Access(
        api_key=key,
        base_url=section.base_url,
        options=section.options,
        allow_insecure=section.allow_insecure_base_url,
    )
    return connect(name, access)


_WORDS: Mapping[str, object] = {"str": str, "embedding": Embedding}
