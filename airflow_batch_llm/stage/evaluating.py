"""Compare a run's answers with golden values, judge them, and keep the result in the run folder.

The golden table is the run's own source, and its answers are in the run's target. So an evaluation buys its answers as
any run does, and this module only reads. A retry reads the stored result, and so has the same verdict.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from airflow_batch_llm.core.answer_schema import closed_values
from airflow_batch_llm.core.evaluation import (
    Evaluation,
    Expected,
    Golden,
    Key,
    Measure,
    Side,
    compare,
    key_of,
)
from airflow_batch_llm.core.evaluation_result import EvaluationResult, Subject, judge, page, result_rows
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.prompt import compile_prompt
from airflow_batch_llm.core.selection import Reason
from airflow_batch_llm.core.settings import (
    Exhausted,
    Only,
    OverBudget,
    Source,
    Stage,
    WriteMode,
    suffixed,
)
from airflow_batch_llm.errors import BatchLLMError, EvaluationFailed, InputError
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.land.landing import sample_keys
from airflow_batch_llm.stage.parts import ReadsSource
from airflow_batch_llm.stage.plan.resolved import output_type_of, read_prompt
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.warehouses.base import SharesFile, WritesRecords

#: The end of the name of a second candidate's run.
SECOND = "-against"

#: The columns of the table of results: one record for each evaluation and answer column.
RESULT_COLUMNS = pa.schema(
    [
        ("evaluation_id", pa.string()),
        ("run_id", pa.string()),
        ("column_name", pa.string()),
        ("evaluated_at", pa.timestamp("us", tz="UTC")),
        ("model_id", pa.string()),
        ("spec_hash", pa.string()),
        ("metric", pa.string()),
        ("golden_rows", pa.int64()),
        ("right_rows", pa.int64()),
        ("no_answer_rows", pa.int64()),
        ("accuracy", pa.float64()),
        ("accuracy_low", pa.float64()),
        ("accuracy_high", pa.float64()),
        ("confidence", pa.float64()),
        ("baseline", pa.string()),
        ("compared_rows", pa.int64()),
        ("baseline_right_rows", pa.int64()),
        ("lost_rows", pa.int64()),
        ("gained_rows", pa.int64()),
        ("p_different", pa.float64()),
        ("min_accuracy", pa.string()),
        ("max_regression", pa.string()),
        ("passed", pa.bool_()),
        ("cost_usd", pa.float64()),
    ]
)

#: The rows are compared in memory.
MOST_GOLDEN_ROWS = 200_000


def evaluated_stage(stage: Stage) -> Stage:
    """Return the stage as an evaluation runs it: each golden row has an answer to today's question, or is wrong.

    Raises `InputError` for settings that would leave rows out.
    """
    if stage.max_rows is not None:
        raise InputError("max_rows leaves golden rows out. Give a smaller golden table instead.")
    if stage.shape.write_mode is WriteMode.APPEND:
        raise InputError("write_mode='append' keeps several answers of a row. An evaluation needs 'merge'.")
    guards = replace(
        stage.guards,
        min_success_ratio=0.0,
        on_over_budget=OverBudget.FAIL,
        on_exhausted=Exhausted.RECORD,
    )
    only = Only.ALL if stage.only is Only.ALL else Only.OUTDATED
    return replace(stage, only=only, guards=guards)


def second_table(target: str) -> str:
    """Return the table of a second candidate's answers."""
    return suffixed(target, "__against")


def second_stage(stage: Stage, changes: Mapping[str, Any]) -> Stage:
    """Return the second candidate: the same rows with its own settings, into its own table."""
    own = {"prompt_file": None, **changes} if "prompt" in changes else changes
    shape = replace(stage.shape, failures_target=None)
    return replace(stage, target=second_table(stage.target), shape=shape, **own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A run over the golden rows, while its connections are open."""

    run: Run
    finished: Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Evaluates a candidate, against a second one or against stored answers if there are any."""

    evaluation: Evaluation

    def check(self, run: Run) -> None:
        """Raise `InputError` before anything is paid if the golden table cannot be compared."""
        stage = _stage(run)
        expected = self.evaluation.measured(output_type_of(stage).columns)
        columns = _columns(run.parts.source, stage.source)
        missing = {one.column for one in expected.values()} - set(columns)
        if missing:
            raise InputError(
                f"The golden table has no column {', '.join(sorted(missing))}. It has {', '.join(columns)}. Name the"
                " golden column of each answer column in expected."
            )
        used = set(compile_prompt(read_prompt(stage), stage.prompt_params).columns or ())
        if shown := used & {one.column for one in expected.values()}:
            raise InputError(
                f"The prompt shows the model the golden column {', '.join(sorted(shown))}. Take it out of the prompt."
            )
        if self.evaluation.baseline is not None:
            self._check_baseline(run, (*stage.key, *expected))
        _let_go(run)

    def _check_baseline(self, run: Run, needed: Sequence[str]) -> None:
        columns = _columns(run.parts.target, _baseline_source(self.evaluation.baseline or ""))
        if missing := [name for name in needed if name not in columns]:
            raise InputError(
                f"The baseline has no column {', '.join(missing)}. It needs the key and the answer's columns, and has"
                f" {', '.join(columns)}."
            )

    def result(self, candidate: Candidate, against: Candidate | None = None) -> EvaluationResult:
        """Return the stored result, or compare, judge and store it."""
        folder = candidate.run.generation().folder
        stored = read_evaluation(folder)
        if stored is None:
            for one in filter(None, (candidate, against)):
                self._refuse_held_back(one)
            folder.create_evaluation(orjson.dumps(self._compared(candidate, against, folder).to_json()))
            stored = read_evaluation(folder)
            assert stored is not None, "it was created here, or by another attempt"
        write_page(folder, stored, candidate.run.parts.spool)
        _write_records(candidate.run, stored)
        return stored

    def _refuse_held_back(self, candidate: Candidate) -> None:
        """Raise an error if rows were not asked because another run had them: they must not count as wrong."""
        why = candidate.finished.report.why
        if held := why.get(Reason.IN_FLIGHT, 0):
            raise EvaluationFailed(
                f"Another run is asking about {counted(held, 'golden row')}. When it is over, clear the task, or use"
                " --again."
            )
        if lost := why.get(Reason.LOST, 0):
            raise EvaluationFailed(
                f"The answers to {counted(lost, 'golden row')} were to be copied and are gone. To ask, clear the task, or"
                " use --again."
            )

    def _compared(
        self, candidate: Candidate, against: Candidate | None, folder: RunFolder
    ) -> EvaluationResult:
        run = candidate.run
        stage, plan = _stage(run), run.generation().first
        expected = self.evaluation.measured(output_type_of(stage).columns)
        names = tuple(expected)
        answers, golden = _answers(run, names, _golden(run, expected))
        baseline, golden, name = self._baseline(run, against, names, golden)
        _let_go(run)
        subject = Subject(
            run_id=folder.run_id,
            model_id=stage.model_id,
            spec_hash=plan.spec_hash,
            target=stage.target,
            evaluated_at=run.parts.clock(),
            cost_usd=sum(_cost(one) for one in (candidate, against) if one is not None),
            baseline=name,
        )
        columns = compare(
            measures(output_type_of(stage), expected), golden, answers, baseline, self.evaluation.confidence
        )
        return judge(subject, self.evaluation, columns)

    def _baseline(
        self, run: Run, against: Candidate | None, names: tuple[str, ...], golden: Golden
    ) -> tuple[Side | None, Golden, str]:
        """Return the baseline, the golden rows that both sides have read, and the baseline's name."""
        if against is not None:
            other = _stage(against.run)
            side, golden = _answers(against.run, names, golden)
            _let_go(against.run)
            return side, golden, f"{other.model_id} in {other.target}"
        if self.evaluation.baseline is None:
            return None, golden, ""
        source = _baseline_source(self.evaluation.baseline)
        rows = _rows(run.parts.target, source, (*_stage(run).key, *names))
        stored = _by_key(rows, len(_stage(run).key), golden, "The baseline")
        return Side(answers=stored, is_stored=True), golden, self.evaluation.baseline


def measures(output_type: OutputType, expected: Mapping[str, Expected]) -> list[Measure]:
    """Return the comparison of each column."""
    return [
        Measure(
            column=column,
            expected=expected[column.name],
            labels=closed_values(output_type.schema or {}, column.path),
            always_filled=column.name in output_type.never_null,
        )
        for column in output_type.columns
        if column.name in expected
    ]


def read_evaluation(folder: RunFolder) -> EvaluationResult | None:
    """Return the stored result of a run's generation, or None if there is none."""
    data = folder.read_evaluation()
    return None if data is None else EvaluationResult.from_json(orjson.loads(data))


def write_page(folder: RunFolder, result: EvaluationResult, scratch: Path) -> None:
    """Draw the page of the stored result, also if a worker died before it was written."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder.write_evaluation_page(page(result).encode(), scratch / "page.new")


def _write_records(run: Run, result: EvaluationResult) -> None:
    """Write the result to its table. A failure to write it does not fail the evaluation."""
    table, target = suffixed(_stage(run).target, "__results"), run.parts.target
    if not isinstance(target, WritesRecords):
        run.parts.warn(f"{type(target).__name__} keeps no table of results. The result is in the run folder.")
        return
    try:
        target.write_records(table, pa.RecordBatch.from_pylist(result_rows(result), schema=RESULT_COLUMNS))
    except BatchLLMError as error:
        run.parts.warn(
            f"The result could not be written to {table}, and is in the run folder: {error.in_full}"
        )


def raise_for_evaluation(result: EvaluationResult, folder: RunFolder) -> None:
    """Raise `EvaluationFailed` if a gate has failed."""
    if not result.passed:
        raise EvaluationFailed(f"{result.verdict} The report is {folder.evaluation_page_uri}.")


def _stage(run: Run) -> Stage:
    assert run.stage is not None, "an evaluation has a stage"
    return run.stage


def _cost(candidate: Candidate) -> float:
    return candidate.finished.report.spent.cost


def _columns(source: ReadsSource, wanted: Source) -> list[str]:
    reader = source.read(wanted)
    try:
        return list(reader.schema.names)
    finally:
        reader.close()


def _golden(run: Run, expected: Mapping[str, Expected]) -> Golden:
    stage = _stage(run)
    values: dict[Key, Sequence[Any]] = {}
    shown: dict[Key, str] = {}
    for batch in run.parts.source.read(stage.source):
        keys = batch.select(list(stage.key))
        wanted = _lists(batch, [one.column for one in expected.values()])
        for key, text, row in zip(_keys(keys), sample_keys(keys), zip(*wanted, strict=True), strict=True):
            values[key], shown[key] = row, text
        if len(values) > MOST_GOLDEN_ROWS:
            raise InputError(
                f"The golden table has more than {counted(MOST_GOLDEN_ROWS, 'row')}. Give fewer of them."
            )
    return Golden(values=values, shown=shown)


def _answers(run: Run, names: tuple[str, ...], golden: Golden) -> tuple[Side, Golden]:
    """Return the answers to today's question, and the golden rows that the run has read.

    Other rows were not asked. A row that was read has an answer, or is in the failures table if it failed later.
    """
    plan = run.generation().first
    target, key = plan.target, tuple(plan.target.key.names)
    asked = {plan.spec_hash, *(route.spec_hash for route in plan.routes)}
    rows = _rows(run.parts.target, Source(table=target.table), (*key, *names, "_llm_spec_hash"))
    current = (row[:-1] for row in rows if row[-1] in asked)
    found = _by_key(current, len(key), golden, target.table)
    failed = {key_of(row) for row in _rows(run.parts.target, Source(table=target.failures), key)}
    read = {one: values for one, values in golden.values.items() if one in found or one in failed}
    if late := len(golden.values) - len(read):
        run.parts.warn(
            f"{counted(late, 'golden row')} came after the golden table was read, and {verb(late, 'is', 'are')} left out."
            " To ask, clear the task, or use --again."
        )
    answers = {one: values for one, values in found.items() if one not in failed}
    return Side(answers=answers), Golden(values=read, shown=golden.shown)


def _by_key(rows: Iterable[Sequence[Any]], width: int, golden: Golden, name: str) -> dict[Key, Sequence[Any]]:
    """Return the values of the rows whose keys are golden."""
    found: dict[Key, Sequence[Any]] = {}
    for row in rows:
        key = key_of(row[:width])
        if key in found:
            raise InputError(
                f"{name} has two rows with the key {golden.shown[key]}. It needs one row per key."
            )
        if key in golden.values:
            found[key] = row[width:]
    return found


def _rows(source: ReadsSource, wanted: Source, names: Sequence[str]) -> Iterator[Sequence[Any]]:
    for batch in source.read(wanted):
        yield from zip(*_lists(batch, names), strict=True)


def _keys(keys: pa.RecordBatch) -> Iterator[Key]:
    return map(key_of, zip(*_lists(keys, keys.schema.names), strict=True))


def _lists(batch: pa.RecordBatch, names: Sequence[str]) -> list[list[Any]]:
    return [batch.column(name).to_pylist() for name in names]


def _baseline_source(baseline: str) -> Source:
    """Return the stored answers as a source: a name has no spaces outside quotes, and a SELECT has."""
    is_query = baseline.lstrip("( \n\t").lower().startswith(("select ", "select\n", "with "))
    return Source(sql=baseline) if is_query else Source(table=baseline)


def _let_go(run: Run) -> None:
    for part in (run.parts.source, run.parts.target):
        if isinstance(part, SharesFile):
            part.release()
