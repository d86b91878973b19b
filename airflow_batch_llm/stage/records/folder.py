"""Name and access the files of a run folder, without reading their meaning.

<run>/g1/plan.json  plans/<nonce>/0007.requests.jsonl  plans/<nonce>/0007.keys.parquet  rounds/2.json
         journal/0007/0001.json …  results/<batch>.jsonl  landed/0007.json  strays/<batch>.json  deadline/0001.json
         plans/<nonce>/opening.json  plans/<nonce>/partition-0001.json
         answers/<batch>.json  looks/0001.json …  cancelled/0001.json  canary.json  copied.json  reviewed/0001.json  report.json
         erased/<nonce>-0007/0001.json …  deleted/<batch>.json  attachments/<sha256>  uploads/0001.json …  left_out/0007.json
         ledger/<hash>-0.json  evaluation.json  evaluation.html
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from airflow_batch_llm.core.journal import Doer, Entry
from airflow_batch_llm.store import Block, Workspace

_GENERATION = re.compile(r"g([0-9]+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.=-]")
_GENERATION = re.compile(r"g([0-9]+)")


def safe_name(text: str) -> str:
    """Return a path segment for any text: the text if it is plain and short, and otherwise a short form with a hash."""
    plain = _UNSAFE.sub("_", text)
    if plain == text and 0 < len(text) <= 100 and not text.startswith("."):
        return text
    return f"{plain[:60]}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def run_path(*parts: str, deployment: str) -> str:
    """Return the folder of a run from its names: Dag, task, run, and the mapped item if there is one.

    A named deployment has a folder of its own. No Dag can have its name, which holds an equals sign.
    """
    above = (f"deployment={deployment}",) if deployment else ()
    return "/".join(safe_name(part) for part in (*above, *parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """One generation of one run."""

    workspace: Workspace
    run: str
    generation: int = 1

    @property
    def path(self) -> str:
        return f"{self.run}/g{self.generation}"

    @property
    def run_id(self) -> str:
        """Return the value of `_llm_run_id`, which is unique among all runs of a workspace."""
        return self.path

    def _at(self, *parts: str) -> str:
        return "/".join((self.path, *parts))

    # The plan and its extensions, one a round; the first to create one decides.

    def read_plan(self, round_number: int = 1) -> bytes | None:
        return self.workspace.read(self._plan_path(round_number))

    def create_plan(self, data: bytes, round_number: int = 1) -> bool:
        return self.workspace.create(self._plan_path(round_number), data)

    def _plan_path(self, round_number: int) -> str:
        return self._at("plan.json") if round_number == 1 else self._at("rounds", f"{round_number}.json")

    def create_draft(self, nonce: str, data: bytes) -> None:
        """Store a plan below its nonce. It counts once it is frozen."""
        self.workspace.create(self._draft_path(nonce), data)

    def freeze(self, nonce: str) -> None:
        """Make a draft the plan, unless there is one."""
        if self.read_plan() is None and (draft := self.read_draft(nonce)) is not None:
            self.create_plan(draft)

    def read_draft(self, nonce: str) -> bytes | None:
        """Return a plan that was stored, whether or not it counts."""
        return self.workspace.read(self._draft_path(nonce))

    def _draft_path(self, nonce: str) -> str:
        return self._at("plans", nonce, "draft.json")

    # The files of a shard, below the nonce of the planning attempt that wrote them.

    def collect_requests(self, nonce: str, number: int, blocks: Iterable[Block], aside: Path) -> bool:
        """Write the requests, or collect them aside if the storage needs that. Returns whether the file is still to be put."""
        return self.workspace.collect(self._requests(nonce, number), blocks, aside)

    def put_keys(self, nonce: str, number: int, keys: Path) -> None:
        self.workspace.put(self._at("plans", nonce, f"{number:04d}.keys.parquet"), keys)

    def get_requests(self, nonce: str, number: int, local: Path) -> bool:
        return self.workspace.get(self._requests(nonce, number), local)

    def get_keys(self, nonce: str, number: int, local: Path) -> bool:
        return self.workspace.get(self._at("plans", nonce, f"{number:04d}.keys.parquet"), local)

    def put_requests(self, nonce: str, number: int, requests: Path) -> None:
        self.workspace.put(self._requests(nonce, number), requests)

    def add_erased_hash(self, nonce: str, number: int, sha256: str) -> None:
        """Record the hash of a file of this shard that is about to replace the planned one."""
        if sha256 not in self.erased_hashes(nonce, number):
            record = orjson.dumps({"sha256": sha256, "nonce": secrets.token_hex(6)})
            self.workspace.append(self._erased(nonce, number), record)

    def erased_hashes(self, nonce: str, number: int) -> set[str]:
        """Return the hashes that files of this shard may have since rows were erased. Empty if none were."""
        records = self.workspace.records(self._erased(nonce, number))
        return {str(orjson.loads(data)["sha256"]) for _, data in records}

    def _erased(self, nonce: str, number: int) -> str:
        return self._at("erased", f"{nonce}-{number:04d}")

    def planner_nonces(self) -> list[str]:
        """List the planning attempts that have left files, whether or not their plan counts."""
        return self.workspace.names(self._at("plans"))

    def delete_planned_by(self, nonce: str) -> None:
        """Delete the files of a planning attempt whose plan does not count."""
        self.workspace.delete_folder(self._at("plans", nonce))

    def _requests(self, nonce: str, number: int) -> str:
        return self._at("plans", nonce, f"{number:04d}.requests.jsonl")

    # The partitions of a source that other tasks read for a plan, below the nonce of their opening.

    def create_opening(self, nonce: str, data: bytes) -> None:
        self.workspace.create(self._at("plans", nonce, "opening.json"), data)

    def read_opening(self, nonce: str) -> bytes | None:
        return self.workspace.read(self._at("plans", nonce, "opening.json"))

    def create_partition(self, nonce: str, number: int, data: bytes) -> bool:
        """Record that a partition was read, and by whom. The first record counts."""
        return self.workspace.create(f"{self._partition(nonce, number)}.json", data)

    def read_partition(self, nonce: str, number: int) -> bytes | None:
        return self.workspace.read(f"{self._partition(nonce, number)}.json")

    def put_partition(self, nonce: str, number: int, name: str, local: Path) -> None:
        self.workspace.put(f"{self._partition(nonce, number)}.{name}", local)

    def get_partition(self, nonce: str, number: int, name: str, local: Path) -> bool:
        return self.workspace.get(f"{self._partition(nonce, number)}.{name}", local)

    def delete_partition(self, nonce: str, number: int, name: str) -> None:
        self.workspace.delete(f"{self._partition(nonce, number)}.{name}")

    def _partition(self, nonce: str, number: int) -> str:
        return self._at("plans", nonce, f"partition-{number + 1:04d}")

    # The attachments that are uploaded, by the hash of their bytes, and the numbered records of their uploads.

    def put_attachment(self, name: str, data: Path) -> None:
        self.workspace.put(self._at("attachments", name), data)

    def get_attachment(self, name: str, local: Path) -> bool:
        return self.workspace.get(self._at("attachments", name), local)

    def attachments(self) -> list[str]:
        return self.workspace.names(self._at("attachments"))

    def delete_attachment(self, name: str) -> None:
        self.workspace.delete(self._at("attachments", name))

    def uploads(self, *, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield the records of uploads that follow the first `after`, with their numbers."""
        return self.workspace.records(self._at("uploads"), after=after)

    def add_upload(self, data: bytes) -> None:
        while self.workspace.append(self._at("uploads"), data) is None:
            pass

    def note_left_out(self, number: int, why: Mapping[int, str]) -> None:
        """Note why requests of a shard are not sent, by their numbers. The first note counts."""
        record = {"requests": {str(request): told for request, told in why.items()}}
        self.workspace.create(self._left_out(number), orjson.dumps(record))

    def left_out(self, number: int) -> dict[int, str]:
        """Return why requests of a shard are not sent, by their numbers."""
        data = self.workspace.read(self._left_out(number))
        told = {} if data is None else orjson.loads(data)["requests"]
        return {int(request): why for request, why in told.items()}

    def _left_out(self, number: int) -> str:
        return self._at("left_out", f"{number:04d}.json")

    # The journal of a shard.

    def journal(self, number: int, *, after: int = 0) -> tuple[Entry, ...]:
        """Return the records of a shard's journal that follow the first `after`."""
        records = self.workspace.records(self._journal(number), after=after)
        return tuple(Entry.from_json(data) for _, data in records)

    def append(self, number: int, at: int, entry: Entry) -> bool:
        """Create the record with this number. Returns False if another record has it."""
        return self.workspace.append(self._journal(number), entry.to_json(), after=at - 1) is not None

    def replace_journal(self, number: int, at: int, entry: Entry, aside: Path) -> None:
        """Replace a record by one with the same meaning and less text."""
        self.workspace.write(f"{self._journal(number)}/{at:04d}.json", [entry.to_json()], aside)

    def _journal(self, number: int) -> str:
        return self._at("journal", f"{number:04d}")

    # The workers' notes on the shards, so that the next worker does not read all journals.

    def read_look(self, number: int) -> bytes | None:
        return self.workspace.read(self._look(number))

    def shown_look(self) -> int:
        """Return the number of the last record of looks that a listing shows, or 0 if it shows none. A listing may be late."""
        names = self.workspace.names(self._at("looks"))
        return max((int(name.removesuffix(".json")) for name in names), default=0)

    def create_look(self, number: int, data: bytes) -> bool:
        return self.workspace.create(self._look(number), data)

    def _look(self, number: int) -> str:
        return self._at("looks", f"{number:04d}.json")

    # Results of batches, and landed shards.

    def write_results(
        self, batch_id: str, blocks: Iterable[Block], aside: Path, *, keep: bool = False
    ) -> bool:
        """Keep the lines of a batch. With `keep`, returns whether the file aside was kept."""
        return self.workspace.write(self._results(batch_id), blocks, aside, keep=keep)

    def results(self, batch_id: str) -> Iterator[bytes] | None:
        return self.workspace.blocks(self._results(batch_id))

    def delete_results(self, batch_id: str) -> None:
        self.workspace.delete(self._results(batch_id))

    def answer_files(self) -> list[str]:
        """List the files that hold answers: kept results and segments, by their place in the run folder."""
        numbers = self.workspace.folders(self._at("asked"))
        folders = ("results", *(f"asked/{number}" for number in numbers))
        return [f"{folder}/{name}" for folder in folders for name in self.workspace.names(self._at(folder))]

    def answers_in(self, name: str) -> Iterator[bytes] | None:
        """Return the content of a file that holds answers, block by block."""
        return self.workspace.blocks(self._at(name))

    def replace_answers(self, name: str, local: Path) -> None:
        self.workspace.put(self._at(name), local)

    def _results(self, batch_id: str) -> str:
        return self._at("results", f"{safe_name(batch_id)}.jsonl")

    # The answers of a shard that is asked in real time, in segments, until all of them are its results.

    def write_segment(self, number: int, name: str, blocks: Iterable[Block], aside: Path) -> None:
        self.workspace.write(f"{self._asked(number)}/{name}.jsonl", blocks, aside)

    def segments(self, number: int) -> Iterator[Iterator[bytes]]:
        """Yield the content of each segment, block by block."""
        for name in sorted(self.workspace.names(self._asked(number))):
            blocks = self.workspace.blocks(f"{self._asked(number)}/{name}")
            if blocks is not None:
                yield blocks

    def delete_segments(self, number: int) -> None:
        self.workspace.delete_folder(self._asked(number))

    def _asked(self, number: int) -> str:
        return self._at("asked", f"{number:04d}")

    def note_answers(self, batch_id: str, table: str) -> None:
        """Note the table that holds the answers of a batch, with an empty name if there is none. The first note counts."""
        self.workspace.create(self._answers(batch_id), orjson.dumps({"table": table}))

    def read_answers(self, batch_id: str) -> str | None:
        """Return the noted table of a batch's answers, or None if none was noted."""
        data = self.workspace.read(self._answers(batch_id))
        return None if data is None else str(orjson.loads(data)["table"])

    def _answers(self, batch_id: str) -> str:
        return self._at("answers", f"{safe_name(batch_id)}.json")

    def note_short(self, batch_id: str, now: float) -> None:
        """Note that the results of an ended batch were not complete. The first note counts."""
        self.workspace.create(self._short(batch_id), orjson.dumps({"since": now}))

    def read_short(self, batch_id: str) -> float | None:
        """Return the time at which a batch's results were first found incomplete, or None if they never were."""
        data = self.workspace.read(self._short(batch_id))
        return None if data is None else float(orjson.loads(data)["since"])

    def _short(self, batch_id: str) -> str:
        return self._at("short", f"{safe_name(batch_id)}.json")

    def note_deleted(self, batch_id: str, now: float) -> None:
        """Note that the vendor has deleted its copy of a batch's requests and answers."""
        self.workspace.create(self._deleted(batch_id), orjson.dumps({"at": now}))

    def read_deleted(self, batch_id: str) -> float | None:
        """Return the time at which the vendor's copy of a batch was deleted, or None if it was not."""
        data = self.workspace.read(self._deleted(batch_id))
        return None if data is None else float(orjson.loads(data)["at"])

    def _deleted(self, batch_id: str) -> str:
        return self._at("deleted", f"{safe_name(batch_id)}.json")

    def put_landed(self, number: int, data: Path) -> None:
        self.workspace.put(self._at("landed", f"{number:04d}.json"), data)

    def read_landed(self, number: int) -> bytes | None:
        return self.workspace.read(self._at("landed", f"{number:04d}.json"))

    def read_stray(self, batch_id: str) -> bytes | None:
        return self.workspace.read(self._stray(batch_id))

    def create_stray(self, batch_id: str, data: bytes) -> bool:
        return self.workspace.create(self._stray(batch_id), data)

    def stray_names(self) -> list[str]:
        """List the files of strays whose cost is recorded."""
        return sorted(self.workspace.names(self._at("strays")))

    def read_stray_file(self, name: str) -> bytes | None:
        return self.workspace.read(self._at("strays", name))

    # Notes that the run is in a ledger, with the number of its strays.

    def is_in_ledger(self, book: str, strays: int) -> bool:
        return self.workspace.read(self._in_ledger(book, strays)) is not None

    def note_in_ledger(self, book: str, strays: int) -> None:
        self.workspace.create(self._in_ledger(book, strays), b"{}")

    def _in_ledger(self, book: str, strays: int) -> str:
        return self._at(
            "ledger", f"{hashlib.blake2b(book.encode(), digest_size=8).hexdigest()}-{strays}.json"
        )

    def _stray(self, batch_id: str) -> str:
        return self._at("strays", f"{safe_name(batch_id)}.json")

    # The batches that were cancelled on request: one record for each request.

    def cancelled(self) -> frozenset[str]:
        """Return the ids of all batches whose cancellation is recorded."""
        return frozenset(batch_id for record in self.cancellations() for batch_id in record["batches"])

    def is_cancelled(self) -> bool:
        """Return whether the run was cancelled, so that it sends nothing more."""
        return any(not record.get("late") for record in self.cancellations())

    def cancellations(self) -> Iterator[dict[str, Any]]:
        """Yield the records of cancellations: `at`, `batches`, and `by` unless an earlier release wrote it."""
        return (orjson.loads(data) for _, data in self.workspace.records(self._at("cancelled")))

    def add_cancelled(self, batch_ids: Sequence[str], at: float, by: Doer, *, late: bool = False) -> None:
        """Record a cancellation, `late` if the run's time was over.

        Another process may do the same, so it takes the next free number.
        """
        record = {"at": at, "batches": list(batch_ids), "by": by.to_json(), "nonce": secrets.token_hex(6)}
        data = orjson.dumps({**record, "late": True} if late else record)
        while self.workspace.append(self._at("cancelled"), data) is None:
            pass

    # The answers of people that the run merges: one record for each attempt, before it merges them.

    def add_reviewed(self, marks: Sequence[str]) -> None:
        """Record the rows that are about to be merged, by marks of their keys."""
        data = orjson.dumps({"rows": list(marks), "nonce": secrets.token_hex(6)})
        while self.workspace.append(self._at("reviewed"), data) is None:
            pass

    def count_reviewed(self) -> int:
        """Return the number of rows that the run has merged for people. Several attempts may have merged a row."""
        records = (orjson.loads(data) for _, data in self.workspace.records(self._at("reviewed")))
        return len({mark for record in records for mark in record["rows"]})

    def create_published(self, round_number: int, data: bytes) -> bool:
        return self.workspace.create(self._at("published", f"{round_number}.json"), data)

    def read_published(self, round_number: int) -> bytes | None:
        return self.workspace.read(self._at("published", f"{round_number}.json"))

    def create_published_early(self, round_number: int, data: bytes) -> bool:
        return self.workspace.create(self._early(round_number), data)

    def read_published_early(self, round_number: int) -> bytes | None:
        return self.workspace.read(self._early(round_number))

    def _early(self, round_number: int) -> str:
        return self._at("published", f"{round_number}.early.json")

    def create_copied(self, data: bytes) -> bool:
        """Record that rows have got copies of answers. The first record counts."""
        return self.workspace.create(self._at("copied.json"), data)

    def read_copied(self) -> bytes | None:
        return self.workspace.read(self._at("copied.json"))

    # The verdict on the canary: the first one counts.

    def create_canary(self, data: bytes) -> bool:
        return self.workspace.create(self._at("canary.json"), data)

    def read_canary(self) -> bytes | None:
        return self.workspace.read(self._at("canary.json"))

    def create_report(self, data: bytes) -> bool:
        return self.workspace.create(self._at("report.json"), data)

    def replace_report(self, data: bytes, aside: Path) -> None:
        """Replace a report by one with the same meaning that shows less."""
        self.workspace.write(self._at("report.json"), [data], aside)

    def read_report(self) -> bytes | None:
        return self.workspace.read(self._at("report.json"))

    # The comparison with golden values: the first one counts, and the page is drawn from it.

    def create_evaluation(self, data: bytes) -> bool:
        return self.workspace.create(self._at("evaluation.json"), data)

    def read_evaluation(self) -> bytes | None:
        return self.workspace.read(self._at("evaluation.json"))

    def replace_evaluation(self, data: bytes, aside: Path) -> None:
        """Replace an evaluation by one with the same meaning that shows less."""
        self.workspace.write(self._at("evaluation.json"), [data], aside)

    def write_evaluation_page(self, data: bytes, aside: Path) -> None:
        self.workspace.write(self._at("evaluation.html"), [data], aside)

    @property
    def evaluation_page_uri(self) -> str:
        """The place of the page, for people."""
        return f"{self.workspace.uri}/{self._at('evaluation.html')}"

    # The deadline: a clear sets a new one; the last record counts.

    def deadlines(self) -> Iterator[bytes]:
        return (data for _, data in self.workspace.records(self._at("deadline")))

    def add_deadline(self, data: bytes, *, after: int) -> bool:
        """Create the deadline that follows this many. Returns False if another worker has created one."""
        return self.workspace.append(self._at("deadline"), data, after=after) is not None

    def delete_payloads(self) -> None:
        """Delete the files that hold prompts and answers. The journal and the report stay."""
        for folder in ("plans", "results", "asked", "attachments"):
            self.workspace.delete_folder(self._at(folder))


def generations(workspace: Workspace, run: str) -> Iterator[RunFolder]:
    """Yield the planned generations of a run, the oldest first."""
    folder = RunFolder(workspace=workspace, run=run)
    while folder.read_plan() is not None:
        yield folder
        folder = replace(folder, generation=folder.generation + 1)


def run_folders(workspace: Workspace, within: str = "") -> Iterator[RunFolder]:
    """Find every generation of every run below a folder. The folders of mapped items are in the folder of their run."""
    for name in workspace.folders(within):
        path = f"{within}/{name}" if within else name
        generation = _GENERATION.fullmatch(name)
        if within and generation is not None:
            yield RunFolder(workspace=workspace, run=within, generation=int(generation[1]))
        elif safe_name(name) == name:
            yield from run_folders(workspace, path)
