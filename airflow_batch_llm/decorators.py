"""`@task.llm_transform`: the decorated function of the row is the prompt of a stage.

The function does not run when the task is called: it runs once for each row. So the arguments of a call, of `partial` and
of `expand` are not the function's. They are the operator's, and add to those that the decorator has.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from inspect import Parameter, Signature, signature
from typing import Any, overload

from airflow.sdk import XComArg
from airflow.sdk.bases.decorator import _TaskDecorator, get_unique_task_id

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.operators.run import RunOperator

#: A function of the row, or of the row and `prompt_params`.
PromptFunction = Callable[..., str]

_OF_THE_FUNCTION = frozenset({"prompt", "prompt_file", "task_id"})


class _DecoratedOperator(LLMTransformOperator):
    """The operator that a call of the decorated function makes.

    :param python_callable: the function of the row
    :param op_args: nothing: a call takes named arguments only
    :param op_kwargs: the named arguments of the call, or of one item of a mapped task
    """

    custom_operator_name = "@task.llm_transform"

    def __init__(
        self,
        *,
        python_callable: PromptFunction,
        task_id: str,
        op_args: Sequence[Any] = (),  # noqa: ARG002 - Airflow passes it
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        given = op_kwargs or {}
        if refused := sorted(_OF_THE_FUNCTION & {*kwargs, *given}):
            raise InputError(
                f"{task_id} was given {', '.join(refused)}. The decorated function is the prompt; use"
                " .override(task_id=…) for another name."
            )
        if not getattr(
            self, "_BaseOperator__from_mapped", False
        ):  # an unmapped task keeps its mapped task's id
            task_id = get_unique_task_id(task_id, kwargs.get("dag"), kwargs.get("task_group"))
        super().__init__(task_id=task_id, prompt=python_callable, **{**kwargs, **given})


class LLMTransformTask(_TaskDecorator[..., str, _DecoratedOperator]):
    """A decorated function. A call, or `expand`, makes a task of it; `partial` and `override` add arguments to it."""

    def __call__(self, *unnamed: Any, **arguments: Any) -> XComArg:
        """Make a task. Its value is the operator's: the report.

        :param unnamed: none are taken
        :param arguments: arguments of `LLMTransformOperator`, over those of the decorator
        """
        if unnamed:
            name = self.function.__name__
            raise InputError(
                f"{name}() was called with a value that has no name. Give it arguments of LLMTransformOperator, by name,"
                f" such as {name}(source_table=…). The function gets its row when the task runs."
            )
        return super().__call__(**arguments)

    @cached_property
    def function_signature(self) -> Signature:
        """Return the arguments that may be mapped over: the operator's, not the function's."""
        own = {
            name: parameter
            for operator in (RunOperator, LLMTransformOperator)
            for name, parameter in signature(operator.__init__).parameters.items()
            if parameter.kind is Parameter.KEYWORD_ONLY and name not in _OF_THE_FUNCTION
        }
        return Signature(list(own.values()))


@overload
def llm_transform_task(python_callable: PromptFunction, /) -> LLMTransformTask: ...
@overload
def llm_transform_task(**arguments: Any) -> Callable[[PromptFunction], LLMTransformTask]: ...
def llm_transform_task(python_callable: PromptFunction | None = None, /, **arguments: Any) -> Any:
    """Make a task of a function that returns the prompt for a row.

    The function takes the row, and may take `prompt_params` as a second argument.

    :param arguments: arguments of `LLMTransformOperator`, without `prompt` and `prompt_file`
    """

    def decorate(function: PromptFunction) -> LLMTransformTask:
        return LLMTransformTask(
            function=function,
            operator_class=_DecoratedOperator,
            multiple_outputs=False,
            kwargs=dict(arguments),
            decorator_name="@task.llm_transform",
        )

    return decorate if python_callable is None else decorate(python_callable)
