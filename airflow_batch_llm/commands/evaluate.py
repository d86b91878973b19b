"""`evaluate`: the stage of a file on golden rows, compared column by column, and judged.

The same command after a crash goes on where the run folder says that it was, and after its end reads the result.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say
from airflow_batch_llm.commands.run import driven, open_run, ready
from airflow_batch_llm.commands.spec import Opening, SourceSection, read_spec
from airflow_batch_llm.core.evaluation import Evaluation
from airflow_batch_llm.core.evaluation_result import EvaluationResult
from airflow_batch_llm.core.request import canonical, digest
from airflow_batch_llm.core.settings import suffixed
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import BatchLLMError, InputError
from airflow_batch_llm.stage.evaluating import (
    SECOND,
    Candidate,
    Evaluator,
    evaluated_stage,
    raise_for_evaluation,
    second_stage,
)
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.stage.tidying import private_spool

_YAML = (".yaml", ".yml")


def evaluate(
    spec_file: Annotated[
        Path, typer.Argument(metavar="SPEC.YAML", help="The candidate: see how-to/evaluate in the docs.")
    ],
    golden: Annotated[
        str | None,
        typer.Option("--golden", help="The golden table, or a Parquet, CSV or JSON Lines file."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="A second spec (.yaml) to ask too, or a table with stored answers."),
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option("--min-accuracy", help="Fail below this share of right rows.")
    ] = None,
    max_regression: Annotated[
        float | None, typer.Option("--max-regression", help="Fail if the accuracy surely falls by more.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Read the golden rows again, after an evaluation has ended.")
    ] = False,
    progress: Annotated[bool, typer.Option("--progress", help="Show a progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Ask a model about golden rows, compare its answers with the expected ones, and judge them.

    Exit codes: 0 good enough, 1 a gate has failed or the run has, 2 something must be changed first, 3 the same command may
    succeed later.
    """
    with ends_with_a_code(), private_spool() as spool:
        gates = {"min_accuracy": min_accuracy, "max_regression": max_regression}
        bench = _Bench.of(spec_file, golden, against, gates)
        result, folder = bench.evaluated(spool, again=again, progress=progress)
        say(_as_json(result) if as_json else f"{result.verdict}\nReport: {folder.evaluation_page_uri}")
        raise_for_evaluation(result, folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """The candidate on its golden rows, and the comparison."""

    opening: Opening
    stem: str
    evaluation: Evaluation
    second: Opening | None = None

    @classmethod
    def of(
        cls, spec_file: Path, golden: str | None, against: str | None, gates: dict[str, float | None]
    ) -> "_Bench":
        """Read the spec, and let the options replace what it says."""
        spec = read_spec(spec_file)
        section = spec.golden if golden is None else _golden(golden)
        if section is None:
            raise InputError(
                "There are no golden rows. Name them with --golden, or with golden: in the file."
            )
        second = None
        changes: dict[str, Any] = {name: value for name, value in gates.items() if value is not None}
        if against is not None and against.endswith(_YAML):
            second = Opening.of(read_spec(Path(against)), Path(against))
            changes["baseline"] = None
        elif against is not None:
            changes["baseline"] = against
        evaluation = replace(spec.evaluation, **changes)
        if evaluation.max_regression is not None and second is None and evaluation.baseline is None:
            raise InputError("max_regression needs something to compare with. Name it with --against.")
        stage = evaluated_stage(replace(spec.stage, target=suffixed(spec.stage.target, "__evaluation")))
        opening = Opening.of(spec.model_copy(update={"source": section, "stage": stage}), spec_file)
        return cls(opening=opening, stem=spec_file.stem, evaluation=evaluation, second=second)

    def evaluated(self, spool: Path, *, again: bool, progress: bool) -> tuple[EvaluationResult, RunFolder]:
        """Ask, compare and judge."""
        planned = open_run(self.opening, self.stem, spool, plan_only=False)
        planned = replace(planned, name=f"{planned.name}-{self._asked()}")
        evaluator = Evaluator(evaluation=self.evaluation)
        wanted = [planned] if self.second is None else [planned, self._second(planned, self.second)]
        runs = [ready(run, again=again) for run in wanted]
        try:
            for run in runs:
                if not run.is_planned():
                    evaluator.check(run)
            ended = [Candidate(run=run, finished=driven(run, progress=progress)) for run in runs]
            for one in ended:
                one.finished.raise_for_verdict()
            return evaluator.result(*ended), runs[0].generation().folder
        finally:
            for part in (planned.parts.target, planned.parts.source):
                with suppress(BatchLLMError):  # what was done is done
                    if hasattr(part, "close"):  # files hold nothing open
                        part.close()

    def _second(self, planned: Run, theirs: Opening) -> Run:
        """Return the run of the second spec, on the golden rows and in the database of the first."""
        mine, asked = planned.stage, evaluated_stage(theirs.stage())
        assert mine is not None, "a spec has a stage"
        if tuple(asked.key) != tuple(mine.key):
            raise InputError(
                f"The two specs have the keys {', '.join(mine.key)} and {', '.join(asked.key)}. Golden rows have one key."
            )
        stage = second_stage(replace(asked, source=mine.source, target=mine.target), {})
        parts = replace(planned.parts, provider=theirs.provider())
        return replace(planned, stage=stage, parts=parts, name=f"{planned.name}{SECOND}")

    def _asked(self) -> str:
        """Return a text that tells this comparison from others of the same candidate."""
        expected = {
            name: (one.column, one.metric, one.tolerance, one.min_overlap)
            for name, one in self.evaluation.expected.items()
        }
        asked: dict[str, Any] = {**asdict(replace(self.evaluation, expected={})), "expected": expected}
        asked["second"] = None if self.second is None else self.second.run_name("")
        return digest(canonical(plain(asked)))[:8]


def _golden(given: str) -> SourceSection:
    """Return a file as files, and any other name as a table."""
    is_file = "://" in given or Path(given).is_file()
    if is_file:
        return SourceSection(uri=given if "://" in given else str(Path(given).absolute()))
    return SourceSection(table=given)


def _as_json(result: EvaluationResult) -> str:
    return orjson.dumps(result.to_json(), option=orjson.OPT_INDENT_2).decode()
