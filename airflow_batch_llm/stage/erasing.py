"""Erase one person's rows from every run folder of a workspace.

A finished run is erased at any time. A run that is not finished is left alone, since a worker may be working on it.
Each step may be repeated, and the rows' keys are deleted last, so that a repeated erasure finds all rows again.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from airflow_batch_llm.core.journal import RecordKind
from airflow_batch_llm.core.report import without_keys
from airflow_batch_llm.core.request import LineTemplate, custom_id
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.incoming import joined_lines, parse_line, split_lines
from airflow_batch_llm.stage.evaluating import read_evaluation, write_page
from airflow_batch_llm.stage.person import ERASED, Found, Person, ShardFiles
from airflow_batch_llm.stage.records.folder import RunFolder, run_folders
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.standings import ShardResult, read_plans, read_standings
from airflow_batch_llm.store import Workspace

_ANY_CUSTOM_ID = re.compile(rb'"r[0-9a-f]{11,}-[0-9]{4,}-[0-9]{6,}"')
#: A file that a writer left unfinished is deleted if it is older than this.
_LEFTOVER_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of an erasure."""

    dry_run: bool = False
    """Look, and change nothing. Default: no."""
    even_unfinished: bool = False
    """Also erase unfinished runs that have nothing at the provider. Default: no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBatch:
    """A batch whose requests and answers the vendor may still hold."""

    provider: str
    batch_id: str
    upload: str
    """The id or URI of the uploaded requests. Empty: the creation held the requests."""
    submitted_at: float
    until: float | None
    """The time at which the vendor deletes them, in seconds since the epoch. None: it does not."""
    is_sure: bool
    """It certainly holds the row. False: the run folder no longer shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasedRun:
    """The person's rows in one generation of a run."""

    path: str
    target: str
    rows: int = 0
    prompts: int = 0
    """Requests whose text no other row uses. Default: none."""
    answers: int = 0
    """Kept result lines. Default: none."""
    examples: int = 0
    """Keys that reports show. Default: none."""
    unplanned: int = 0
    """Planning attempts that do not count, and whose files are deleted as a whole. Default: none."""
    left: str = ""
    """The reason for which nothing of this run was erased. Empty: it was."""
    batches: tuple[HeldBatch, ...] = ()
    statements: tuple[str, ...] = ()
    """SQL that deletes the rows from the run's tables. Default: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """Erases a person in one workspace."""

    workspace: Workspace
    person: Person
    scratch: Path
    options: Options = Options()

    def run(self) -> Iterator[ErasedRun]:
        """Erase run after run. Yields those that hold, or may hold, something of the person."""
        for folder in run_folders(self.workspace):
            erased = RunErasure(
                folder=folder, person=self.person, scratch=self.scratch, options=self.options
            ).run()
            if erased is not None:
                yield erased

    def leftovers(self) -> int:
        """Delete what killed writers left in the workspace. Returns the number of files."""
        before = time.time() - _LEFTOVER_SECONDS
        if self.options.dry_run:
            return len(self.workspace.leftovers(before))
        return self.workspace.delete_leftovers(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunErasure:
    """Erases a person in one generation of a run."""

    folder: RunFolder
    person: Person
    scratch: Path
    options: Options

    def run(self) -> ErasedRun | None:
        """Erase the person. Returns None if the run holds nothing of the person."""
        rounds = list(read_plans(self.folder))
        if not rounds:
            return self._unplanned()
        first = rounds[0].target
        columns = self.person.columns_in(first.key, first.carried)
        if columns is None or self.person.target not in (None, first.table):
            return None
        shards = [files for plan in rounds for files in self._shards(plan)]
        looks = [(files, files.find(self.person, columns)) for files in shards]
        found = [(files, one) for files, one in looks if one is not None and one.rows]
        samples = self._samples(rounds, found, columns)
        done = ErasedRun(
            path=self.folder.path,
            target=first.table,
            rows=sum(one.rows for _, one in found),
            prompts=sum(len(one.requests) for _, one in found),
            answers=self._rewrite_results(_custom_ids(found), change=False),
            examples=len(samples),
            unplanned=len(self._uncounted(rounds)),
            batches=tuple(self._held(looks)),
            statements=tuple(self.person.statements(first.tables, columns, first.key)),
        )
        if not (done.rows or done.examples or done.unplanned or done.batches):
            return None
        if left := self._left(rounds):
            return replace(done, left=left)
        if not self.options.dry_run:
            self._rewrite(rounds, found, samples, columns)
        return done

    def _shards(self, plan: Plan) -> list[ShardFiles]:
        numbers = [shard.number for shard in plan.shards]
        if plan.round == 1 and plan.unsendable_sha256:
            numbers.insert(0, 0)
        return [
            ShardFiles(folder=self.folder, plan=plan, number=number, scratch=self.scratch)
            for number in numbers
        ]

    def _unplanned(self) -> ErasedRun | None:
        """Delete the files of a run whose plan was never frozen, because they may hold anyone's rows."""
        nonces, attachments = self.folder.planner_nonces(), self.folder.attachments()
        if not nonces and not attachments:
            return None
        found = ErasedRun(path=self.folder.path, target="", unplanned=len(nonces))
        if not self.options.even_unfinished:
            return replace(found, left="its planning has not finished, so it may hold the row")
        if not self.options.dry_run:
            for nonce in nonces:
                self.folder.delete_planned_by(nonce)
            for name in attachments:
                self.folder.delete_attachment(name)
        return found

    def _left(self, rounds: list[Plan]) -> str:
        """Say why the run may not be changed now. Returns an empty text if it may."""
        if self.folder.read_report() is not None:
            return ""
        if not self.options.even_unfinished:
            return "it is not finished"
        if rounds[0].in_warehouse:
            return "its rows are in tables of the warehouse until it has ended"
        for plan in rounds:
            if self.folder.read_published(plan.round) is None and any(
                standing.batch
                or standing.intent
                or standing.asking
                or standing.ended
                or standing.staged
                or any(self.folder.segments(shard.number))
                for shard, standing in read_standings(self.folder, plan)
            ):
                return "it has batches at the provider, or answers that are not in the target yet"
        return ""

    def _uncounted(self, rounds: list[Plan]) -> list[str]:
        counted = {plan.nonce for plan in rounds}
        return [nonce for nonce in self.folder.planner_nonces() if nonce not in counted]

    def _held(self, looks: list[tuple[ShardFiles, Found | None]]) -> Iterator[HeldBatch]:
        """Find the batches that hold the row, and those whose rows are not known any more."""
        for files, found in looks:
            if not files.number or (found is not None and not found.rows):
                continue
            kept = connect(files.plan.provider, Access(api_key="none")).limits.kept_seconds
            for entry in self.folder.journal(files.number):
                until = None if kept is None else entry.at + kept
                is_held = entry.kind is RecordKind.SUBMITTED and (until is None or until > time.time())
                if is_held and self.folder.read_deleted(entry.batch_id) is None:
                    yield HeldBatch(
                        provider=files.plan.provider,
                        batch_id=entry.batch_id,
                        upload=entry.upload,
                        submitted_at=entry.at,
                        until=until,
                        is_sure=found is not None,
                    )

    def _samples(
        self, rounds: list[Plan], found: list[tuple[ShardFiles, Found]], columns: tuple[str, ...]
    ) -> set[str]:
        """Return the person's keys as the run's reports show them."""
        shown: set[str] = set()
        for plan in rounds:
            for shard in plan.shards:
                data = self.folder.read_landed(shard.number)
                shown.update(() if data is None else ShardResult.from_json(data).shown_keys())
        evaluation = read_evaluation(self.folder)
        if evaluation is not None:
            shown.update(evaluation.keys)
        known = set().union(*(one.samples for _, one in found))
        key = rounds[0].target.key.names
        return {one for one in shown if one in known or self.person.is_sample(one, key, columns)}

    def _rewrite(
        self,
        rounds: list[Plan],
        found: list[tuple[ShardFiles, Found]],
        samples: set[str],
        columns: tuple[str, ...],
    ) -> None:
        self._rewrite_results(_custom_ids(found), change=True)
        if found or samples:
            self._rewrite_report(samples)
            self._rewrite_evaluation(samples)
        requests = {one.number: one.requests for _, one in found}
        for plan in rounds:
            for shard in plan.shards:
                self._rewrite_landed(shard.number, samples, requests)
        for files, one in found:
            if one.number:
                self._rewrite_journal(one.number)
                files.rewrite_requests(one, self._template(files.plan, one.number))
        self._delete_attachments(rounds)
        for files, _ in found:
            files.rewrite_keys(self.person, columns)
        for nonce in self._uncounted(rounds):
            self.folder.delete_planned_by(nonce)

    def _delete_attachments(self, rounds: list[Plan]) -> None:
        """Delete the attachments that no request names any more."""
        kept = set(self.folder.attachments())
        if kept:
            named = (name for plan in rounds for files in self._shards(plan) for name in files.attachments())
            for name in kept.difference(named):
                self.folder.delete_attachment(name)

    def _template(self, plan: Plan, number: int) -> LineTemplate | None:
        """Return the template of a request's line, to write it without its prompt.

        Returns None if the run sends nothing any more.
        """
        if self.folder.read_report() is not None:
            return None
        host = plan.spec.get("host")
        access = Access(api_key="none", base_url=f"https://{host}/v1" if host else None)
        (route,) = [plan.route(shard) for shard in plan.shards if shard.number == number]
        return connect(plan.vendor(route), access).encode(route.asked)

    def _rewrite_results(self, ids: set[bytes], *, change: bool) -> int:
        """Delete the kept answers to these requests. Returns their number."""
        if not ids:
            return 0
        tokens = {identity.rpartition(b"-")[0] for identity in ids}
        named = re.compile(rb'"((?:%b)-[0-9]+)"' % b"|".join(map(re.escape, sorted(tokens))))
        found = 0
        for name in self.folder.answer_files():
            matches = sum(_is_answer(line, named, ids) for line in self._result_lines(name))
            found += matches
            if matches and change:
                kept = (line for line in self._result_lines(name) if not _is_answer(line, named, ids))
                path = self.scratch / "results.new"
                with path.open("wb") as file:
                    file.writelines(joined_lines(kept))
                self.folder.replace_answers(name, path)
                path.unlink()
        return found

    def _result_lines(self, name: str) -> Iterator[bytes]:
        return split_lines(self.folder.answers_in(name) or ())

    def _rewrite_report(self, samples: set[str]) -> None:
        """Delete the keys in the verdict, and the vendor's words, which may quote a row."""
        stored = orjson.loads(self.folder.read_report() or b"null")
        if stored is not None:
            report = stored["report"]
            report |= {"verdict": without_keys(report["verdict"], samples, ERASED), "words": ""}
            self.folder.replace_report(orjson.dumps(stored), self.scratch / "report.new")

    def _rewrite_evaluation(self, samples: set[str]) -> None:
        """Delete the keys among the examples, and draw the page again."""
        evaluation = read_evaluation(self.folder)
        if evaluation is not None and samples & evaluation.keys:
            without = evaluation.without_keys(samples)
            self.folder.replace_evaluation(orjson.dumps(without.to_json()), self.scratch / "evaluation.new")
            write_page(self.folder, without, self.scratch)

    def _rewrite_landed(self, number: int, samples: set[str], requests: dict[int, dict[int, int]]) -> None:
        data = self.folder.read_landed(number)
        if data is None:
            return
        landed = ShardResult.from_json(data)
        gone = requests.get(number, {})
        again_rows = dict(landed.again_rows)
        for request, outcome, *_ in landed.again:
            if request in gone:
                again_rows[outcome] -= gone[request]
        without = replace(
            landed.without(samples),
            again=[one for one in landed.again if one.request not in gone],
            again_rows={outcome: rows for outcome, rows in again_rows.items() if rows},
            words={} if number in requests else landed.words,
        )
        if without.to_json() != landed.to_json():
            path = self.scratch / "landed.new"
            path.write_bytes(without.to_json())
            self.folder.put_landed(number, path)
            path.unlink()

    def _rewrite_journal(self, number: int) -> None:
        """Delete the vendor's words, which may quote a row."""
        for place, entry in enumerate(self.folder.journal(number), start=1):
            if entry.detail:
                without = replace(entry, detail="")
                self.folder.replace_journal(number, place, without, self.scratch / "journal.new")


def _custom_ids(found: list[tuple[ShardFiles, Found]]) -> set[bytes]:
    return {
        custom_id(files.plan.shard_token(files.number), one.layout.request_of(item)).encode()
        for files, one in found
        for item in one.requests
    }


def _is_answer(line: bytes, named: re.Pattern[bytes], ids: set[bytes]) -> bool:
    """Return whether a line answers one of these requests, or is a torn piece whose request is unknown."""
    found = named.findall(line)
    if found:
        return not ids.isdisjoint(found)
    if _ANY_CUSTOM_ID.search(line):
        return False  # of another shard
    try:
        parse_line(line)
    except ValueError:
        return True
    return False
