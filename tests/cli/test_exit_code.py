import inspect

import pytest

from airflow_batch_llm import errors
from airflow_batch_llm.commands.exit_code import ExitCode, exit_code

LANDED = (errors.QualityGateFailed, errors.DeadlinePassed, errors.CanaryFailed, errors.EvaluationFailed)
KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.BatchLLMError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_command_is_worth_repeating_exactly_where_the_error_is(kind: type[errors.BatchLLMError]) -> None:
    error = kind.__new__(kind)

    assert (exit_code(error) is ExitCode.REPEAT) is kind.retryable
    assert (exit_code(error) is ExitCode.FAILED) is issubclass(kind, LANDED)
