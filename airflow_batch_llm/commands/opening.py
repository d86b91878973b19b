"""A spec turned into a run: its stage, and the parts that it works with. Nothing is connected to yet.

Paths in a spec are relative to the file that holds it.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from airflow_batch_llm.commands.spec import (
    ProviderSection,
    SourceSection,
    StageFile,
    WarehouseSection,
)
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
from airflow_batch_llm.stage.plan.planning import read_prompt
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.files.source import FileSource, read_files
from airflow_batch_llm.warehouses.registration import SpecFile, secret

#: The fields of a spec that identify its run. Its pace and its budget do not.
_ASKED = ("model_id", "key", "system_prompt", "prompt_params", "target")


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
        """The provider, and those of the routes, with the keys that the environment holds."""
        own = open_provider(self.spec.stage.provider, self.spec.provider, self.file.environment)
        return routed(own, open_others(self._others(), self.spec.providers, self.file.environment))

    def keyless_provider(self) -> Provider:
        """The provider, and those of the routes, without keys: to make requests that are not sent."""
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
        """The database that a section names."""
        kind, field = section.chosen
        assert kind.open_section is not None, "the section has a field for it"
        return kind.open_section(field, self.file)

    def usage(self, target: Warehouse) -> UsageTable | None:
        """The ledger, in a database of its own or in the target's. None: the spec names none."""
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
        """The workspace. Without a probe it is only looked at."""
        uri = self.spec.workspace
        return Workspace.open(uri if "://" in uri else str(self.file.path(uri)), probe=probe)

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
