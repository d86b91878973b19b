"""A spec turned into a run: its stage, and the parts that it works with. Nothing is connected to yet.

Paths in a spec are relative to the file that holds it.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from airflow_batch_llm.commands.spec import (
    BigQuerySection,
    ProviderSection,
    SourceSection,
    Spec,
    WarehouseSection,
)
from airflow_batch_llm.core.output_type import Embedding, OutputType
from airflow_batch_llm.core.request import canonical, digest
from airflow_batch_llm.core.settings import Source, Stage
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers import check_name, connect
from airflow_batch_llm.providers.base import Access, Provider, is_sendable
from airflow_batch_llm.stage.parts import Reads
from airflow_batch_llm.stage.plan.planning import read_prompt
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.files.source import FileSource, read_files

#: What decides which run a spec is; how fast it goes and how much it may cost does not.
_ASKED = ("model_id", "key", "system_prompt", "prompt_params", "target")


class Files:
    """Files as a source."""

    def __init__(self, files: FileSource) -> None:
        self._files = files

    def read(self, source: Source) -> pa.RecordBatchReader:  # noqa: ARG002 - the files are the source
        return read_files(self._files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Opens what a spec names."""

    spec: Spec
    folder: Path  # of the spec's file
    environment: Mapping[str, str]

    @classmethod
    def of(cls, spec: Spec, path: Path) -> "Opening":
        """The spec that was read from this file, in this process's environment."""
        return cls(spec=spec, folder=path.absolute().parent, environment=os.environ)

    def stage(self, *, plan_only: bool = False) -> Stage:
        """Build the stage from the spec."""
        section, stage = self.spec.source, self.spec.stage
        return replace(
            stage,
            source=Source(sql=section.sql, table=section.table, key=tuple(stage.key)),
            prompt_file=None if stage.prompt_file is None else self._path(stage.prompt_file),
            output_type=self._output_type(),
            plan_only=plan_only or stage.plan_only,
        )

    def provider(self) -> Provider:
        """The provider, with the key that the environment holds."""
        return open_provider(self.spec.stage.provider, self.spec.provider, self.environment)

    def source(self, target: Warehouse) -> Reads:
        """Where the rows come from: the target's own database, where no other is named."""
        section = self.spec.source
        if section.uri is not None:
            return Files(self._files(section))
        return target if section.warehouse is None else self.warehouse(section.warehouse)

    def warehouse(self, section: WarehouseSection) -> Warehouse:
        """The database that a section names."""
        if section.duckdb is not None:
            from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse

            return DuckDBWarehouse(self._path(section.duckdb))
        if section.sqlite is not None:
            from airflow_batch_llm.warehouses.sql.sqlite import SQLiteWarehouse

            return SQLiteWarehouse(self._path(section.sqlite))
        if section.postgres is not None:
            from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse

            return PostgresWarehouse(_secret(section.postgres.dsn_env, self.environment))
        assert section.bigquery is not None, "the spec has exactly one kind"
        return _bigquery(section.bigquery)

    def workspace(self) -> Workspace:
        """The workspace, probed."""
        uri = self.spec.workspace
        return Workspace.open(uri if "://" in uri else str(self._path(uri)))

    def run_name(self, stem: str) -> str:
        """The run's name: given, or the same for the same question, however fast it is asked."""
        if self.spec.run is not None:
            return self.spec.run
        stage = self.stage()
        asked: dict[str, Any] = self.spec.model_dump(
            mode="json", include={"warehouse", "source"}, exclude_none=True
        )
        asked |= {name: getattr(stage, name) for name in _ASKED}
        asked["request"] = asdict(stage.request)
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
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"output_type: {wanted!r} cannot be imported from {self.folder}: {error}."
            ) from None

    def _files(self, section: SourceSection) -> FileSource:
        uris = [section.uri] if isinstance(section.uri, str) else section.uri or []
        return FileSource(
            uris=tuple(uri if "://" in uri else str(self._path(uri)) for uri in uris),
            format=section.format,
            delimiter=section.delimiter,
        )

    def _path(self, path: str | Path) -> Path:
        return self.folder / Path(path).expanduser()


def open_provider(name: str, section: ProviderSection, environment: Mapping[str, str]) -> Provider:
    """Return the provider of this name, with the key that the environment holds."""
    check_name(name)
    key = _secret(section.api_key_env, environment) if section.api_key_env is not None else None
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


def _secret(variable: str, environment: Mapping[str, str]) -> str:
    value = environment.get(variable)
    if not value:
        raise InputError(f"The environment variable {variable} is not set. The spec names it for a secret.")
    return value


_WORDS: Mapping[str, object] = {"str": str, "embedding": Embedding}


def _bigquery(section: BigQuerySection) -> Warehouse:
    from airflow_batch_llm.warehouses.bigquery.warehouse import BigQuerySettings, BigQueryWarehouse

    def client() -> Any:
        from google.cloud.bigquery import Client

        return Client(project=section.project, location=section.location)

    def storage() -> Any:
        from google.cloud.bigquery_storage_v1 import BigQueryReadClient

        client_class: Any = BigQueryReadClient  # untyped
        return client_class()

    settings = BigQuerySettings(
        client=client, storage=storage, dataset=section.dataset, location=section.location
    )
    return BigQueryWarehouse(settings)
