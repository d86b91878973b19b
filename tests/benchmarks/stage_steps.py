"""One step of the stage's benchmark, in a process of its own: ours, or by hand."""

import cProfile
import json
import pstats
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa

from airflow_batch_llm.core.settings import Pace, Source, Stage
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse
from tests.vendors import VENDORS

LABELS = ["billing", "bug", "other"]
PER_BATCH = 10_000
PROMPT = "Which label fits this ticket? {{ body }}"


class Ours:
    """The stage, step by step."""

    def __init__(self, folder: Path, name: str, provider: str, url: str) -> None:
        warehouse = DuckDBWarehouse(folder / "bench.duckdb")
        base_url = VENDORS[provider].base_url(url)
        self._run = Run(
            stage=Stage(
                source=Source(table="tickets"),
                key=("id",),
                model_id=f"{provider}:{VENDORS[provider].model}",
                prompt=PROMPT,
                output_type=LABELS,
                target="ours",
                max_cost_usd=None,
                pace=Pace(rows_per_batch=PER_BATCH, max_active_batches=100_000),
            ),
            parts=Parts(
                provider=connect(provider, Access(api_key="any", base_url=base_url)),
                source=warehouse,
                target=warehouse,
                workspace=Workspace.open(str(folder / "workspace")),
                spool=folder / "spool",
            ),
            name=name,
        )

    def plan(self) -> None:
        self._run.generation()

    def submit(self) -> None:
        self._run.advance()

    def land(self) -> None:
        self._run.advance()


class ByHand:
    """A script that an engineer writes in an afternoon."""

    def __init__(self, folder: Path, name: str, provider: str, url: str) -> None:
        self._folder, self._name, self._provider = folder, name, provider
        self._batches = folder / f"by-hand-{name}.json"
        self._client = _client(provider, url)

    def plan(self) -> None:
        changed = "LEFT JOIN seen USING (id) WHERE seen.hash IS DISTINCT FROM md5(body)"
        with duckdb.connect(str(self._folder / "bench.duckdb")) as connection:
            rows = connection.sql(
                f"SELECT id, body FROM tickets {'' if self._name == 'all' else changed}"
            ).to_arrow_reader(PER_BATCH)
            for number, batch in enumerate(rows):
                with (self._folder / f"{self._name}-{number:04d}.jsonl").open("wb") as file:
                    pairs = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
                    file.writelines(orjson.dumps(self._line(key, body)) + b"\n" for key, body in pairs)

    def _line(self, key: int, body: str) -> dict[str, object]:
        prompt = f"Which label fits this ticket? {body}"
        schema = {
            "type": "object",
            "properties": {"label": {"type": "string", "enum": LABELS}},
            "required": ["label"],
            "additionalProperties": False,
        }
        if self._provider == "anthropic":
            params = {
                "model": VENDORS["anthropic"].model,
                "max_tokens": 1024,
                "messages": [{"role": "user", "content": prompt}],
                "output_config": {"format": {"type": "json_schema", "schema": schema}},
            }
            return {"custom_id": f"row-{key}", "params": params}
        body_ = {
            "model": VENDORS["openai"].model,
            "max_output_tokens": 1024,
            "input": prompt,
            "text": {"format": {"type": "json_schema", "name": "answer", "strict": True, "schema": schema}},
        }
        return {"custom_id": f"row-{key}", "method": "POST", "url": "/v1/responses", "body": body_}

    def submit(self) -> None:
        ids = [self._send(path) for path in sorted(self._folder.glob(f"{self._name}-*.jsonl"))]
        self._batches.write_text(json.dumps(ids))

    def _send(self, path: Path) -> str:
        if self._provider == "anthropic":
            requests = [orjson.loads(line) for line in path.read_bytes().splitlines()]
            return str(self._client.messages.batches.create(requests=requests).id)
        with path.open("rb") as file:
            uploaded = self._client.files.create(file=file, purpose="batch")
        batch = self._client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/responses", completion_window="24h"
        )
        return str(batch.id)

    def land(self) -> None:
        with duckdb.connect(str(self._folder / "bench.duckdb")) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS by_hand (id BIGINT, label VARCHAR)")
            for batch_id in json.loads(self._batches.read_text()):
                keys, labels = zip(*self._answers(batch_id), strict=True)
                answers = pa.table({"id": pa.array(keys, pa.int64()), "label": labels})
                connection.register("answers", answers)
                connection.execute("DELETE FROM by_hand WHERE id IN (SELECT id FROM answers)")
                connection.execute("INSERT INTO by_hand SELECT * FROM answers")
                connection.unregister("answers")
            # All sent rows are taken for answered: this script does not check.
            connection.execute("CREATE OR REPLACE TABLE seen AS SELECT id, md5(body) AS hash FROM tickets")

    def _answers(self, batch_id: str) -> Iterator[tuple[int, str]]:
        for line in self._lines(batch_id):
            result = orjson.loads(line)
            key = int(result["custom_id"].removeprefix("row-"))
            if self._provider == "anthropic":
                text = result["result"]["message"]["content"][0]["text"]
            else:
                text = result["response"]["body"]["output"][-1]["content"][0]["text"]
            yield key, orjson.loads(text)["label"]

    def _lines(self, batch_id: str) -> list[bytes]:
        if self._provider == "anthropic":
            url = self._client.messages.batches.retrieve(batch_id).results_url
            return list(self._client.get(url, cast_to=bytes).splitlines())
        file_id = self._client.batches.retrieve(batch_id).output_file_id
        return list(self._client.files.content(file_id).read().splitlines())


def _client(provider: str, url: str):  # type: ignore[no-untyped-def]
    if provider == "anthropic":
        import anthropic

        return anthropic.Anthropic(api_key="any", base_url=url)
    import openai

    return openai.OpenAI(api_key="any", base_url=f"{url}/v1")


def main(arguments: list[str]) -> None:
    folder, who, step, name, provider, url, *options = arguments
    before = cpu_seconds()  # what a step imports is part of it, for both
    kind = Ours if who == "ours" else ByHand
    perform: Callable[[], None] = getattr(kind(Path(folder), name, provider, url), step)
    if options and who == "ours":
        profile = cProfile.Profile()
        profile.runcall(perform)
        pstats.Stats(profile).sort_stats("tottime").print_stats(24)
    else:
        perform()
    print(json.dumps({"cpu": cpu_seconds() - before, "mb": peak_mb()}))


def peak_mb() -> float:
    """Resident megabytes at the most. The kernel's other figure for it begins with that of the parent process."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
