"""Measure a prompt or a model on golden rows, and fail where it is not good enough."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from airflow_batch_llm.core.checked import unknown_field
from airflow_batch_llm.core.evaluation import Evaluation, Expected
from airflow_batch_llm.core.settings import Stage
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.handle import RunHandle, place_of
from airflow_batch_llm.hooks.object_storage import open_workspace
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.operators.reporting import gauge_evaluation
from airflow_batch_llm.operators.run import Ended

if TYPE_CHECKING:
    from airflow_batch_llm.core.evaluation_result import EvaluationResult
    from airflow_batch_llm.stage.evaluating import Evaluator
    from airflow_batch_llm.stage.land.finishing import Finished
    from airflow_batch_llm.stage.run import Pause, Run

#: The arguments that a second candidate may have of its own.
AGAINST = (
    "examples", "llm_conn_id", "model_id", "output_type", "prompt", "prompt_params", "request", "system_prompt",
)  # fmt: skip


class LLMEvaluateOperator(LLMTransformOperator):
    """Ask a model about golden rows, compare its answers with the expected ones, and fail if they are not good enough.

    It takes the arguments of `LLMTransformOperator`. The source is the golden table: the key, the columns that the prompt
    uses, and the expected columns. The target is a table of the evaluation's own. Rows that the same question has answered
    there are not asked again.

    :param expected: golden columns by answer column: ``{"topic": "expected_topic"}``, or with an `Expected` that says how
        the two are compared; by default ``expected_<column>`` for each column
    :param baseline: a table with the key and the answers to compare with, such as the production target, or a SELECT
    :param against: instead, a second candidate that is asked about the same rows: its own arguments, such as
        ``{"model_id": …}`` or ``{"prompt": …}``
    :param min_accuracy: the least share of right rows in each column; None for no such gate
    :param max_regression: the most by which the accuracy may fall below the baseline's: 0.02 is two points. The task fails
        if a larger fall is certain with `confidence`; None for no such gate
    :param confidence: the confidence of intervals and of `max_regression`
    :param fail_when_unclear: fail also where there are too few rows to tell
    """

    template_fields: Sequence[str] = (*LLMTransformOperator.template_fields, "baseline")

    def __init__(
        self,
        *,
        expected: Mapping[str, str | Expected | Mapping[str, Any]] | None = None,
        baseline: str | None = None,
        against: Mapping[str, Any] | None = None,
        min_accuracy: float | None = None,
        max_regression: float | None = None,
        confidence: float = 0.95,
        fail_when_unclear: bool = False,
        **kwargs: Any,
    ) -> None:
        self.expected = expected
        self.baseline = baseline
        self.against = against
        self.min_accuracy = min_accuracy
        self.max_regression = max_regression
        self.confidence = confidence
        self.fail_when_unclear = fail_when_unclear
        super().__init__(**kwargs)

    def _check(self) -> None:
        super()._check()
        self._evaluation()
        if unknown := sorted(set(self.against or ()) - set(AGAINST)):
            raise InputError(f"against: {unknown_field(unknown[0], AGAINST)}")
        if self.max_regression is not None and self.baseline is None and self.against is None:
            raise InputError("max_regression needs something to compare with. Give baseline or against.")
        if self.baseline is not None and self.against is not None:
            raise InputError("Both baseline and against are given. Leave out one of them.")

    def _evaluation(self) -> Evaluation:
        return Evaluation(
            expected=self.expected or {},  # type: ignore[arg-type]  # the settings read names and mappings
            baseline=self.baseline if isinstance(self.baseline, str) and self.baseline else None,
            min_accuracy=self.min_accuracy,
            max_regression=self.max_regression,
            confidence=self.confidence,
            fail_when_unclear=self.fail_when_unclear,
        )

    def stage(self, context: Context) -> Stage:
        """Return the candidate, as an evaluation runs it."""
        from airflow_batch_llm.stage.evaluating import evaluated_stage

        return evaluated_stage(super().stage(context))

    def stage_of(self, context: Context, handle: RunHandle) -> Stage:
        """Return the candidate, or the second one."""
        from airflow_batch_llm.stage.evaluating import second_stage

        stage = self.stage(context)
        if handle.target == stage.target:
            return stage
        changes = {name: value for name, value in (self.against or {}).items() if name != "llm_conn_id"}
        return second_stage(stage, changes)

    def handles(self, context: Context) -> Sequence[RunHandle]:
        """Return the run of the candidate, and that of the second one if there is one."""
        from airflow_batch_llm.stage.evaluating import SECOND
        from airflow_batch_llm.stage.run import own_name

        (handle,) = super().handles(context)
        if self.against is None:
            return [handle]
        workspace = open_workspace(self.workspace)
        second = self._second(handle)
        name = own_name(workspace, f"{handle.run}{SECOND}", lambda: place_of(second))
        second = replace(second, run=name)
        second.store(workspace)
        return [handle, second]

    def _second(self, handle: RunHandle) -> RunHandle:
        from airflow_batch_llm.stage.evaluating import second_table

        given = self.against or {}
        model_id = given.get("model_id", handle.model_id)
        is_same = model_id.partition(":")[0] == handle.model_id.partition(":")[0]
        return replace(
            handle,
            target=second_table(handle.target),
            model_id=model_id,
            llm_conn_id=given.get("llm_conn_id", handle.llm_conn_id if is_same else None),
            llm_hook_params=handle.llm_hook_params if is_same else {},
        )

    def step(self, run: "Run") -> "Pause | Finished | None":
        """Check the golden table before a run over it is planned, then move the run."""
        if not run.is_planned():
            self._evaluator().check(run)
        return super().step(run)

    def _evaluator(self) -> "Evaluator":
        from airflow_batch_llm.stage.evaluating import Evaluator

        return Evaluator(evaluation=self._evaluation())

    def returned(self, context: Context, ended: Sequence[Ended]) -> Any:
        """Return the evaluation and the reports, if no gate has failed."""
        from airflow_batch_llm.stage.evaluating import Candidate, raise_for_evaluation

        for one in ended:
            one.finished.raise_for_verdict()
        if self.plan_only:
            return ended[0].report
        with ExitStack() as opened:
            runs = [opened.enter_context(self.opened(context, handle)) for handle in self._handles]
            candidates = [
                Candidate(run=run, finished=one.finished) for run, one in zip(runs, ended, strict=True)
            ]
            result = self._evaluator().result(*candidates)
            folder = runs[0].generation().folder
        gauge_evaluation(result, dag_id=self.dag_id, task_id=self.task_id)
        told = self._told(result, folder.evaluation_page_uri, ended)
        if not result.passed and self.do_xcom_push:
            context["ti"].xcom_push(key="evaluation", value=told)  # a task that fails returns nothing
        raise_for_evaluation(result, folder)
        self.log.info("%s The report is %s.", result.verdict, folder.evaluation_page_uri)
        return told

    def _told(self, result: "EvaluationResult", uri: str, ended: Sequence[Ended]) -> dict[str, Any]:
        reports = dict(zip(("report", "against"), (one.report for one in ended), strict=False))
        return {**result.to_xcom(), "page_uri": uri, **reports}
