"""Tables of the meaning of a failed call by the vendor's answer: one for calls that look, one for creations."""

import pytest

from airflow_batch_llm.errors import Later, ProviderError, Refused, Unavailable, UnknownFate
from airflow_batch_llm.providers.anthropic.flows import SDK as ANTHROPIC_SDK
from airflow_batch_llm.providers.failures import CallFailure, VendorCodes, judge
from airflow_batch_llm.providers.openai.flows import SDK as OPENAI_SDK

ANTHROPIC, OPENAI = ANTHROPIC_SDK.codes, OPENAI_SDK.codes

# vendor, status, code -> what it means for a call that looks, and for one that creates
VERDICTS = [
    (ANTHROPIC, 400, "invalid_request_error", Refused, Refused),
    (ANTHROPIC, 401, "authentication_error", Refused, Refused),
    (ANTHROPIC, 402, "billing_error", Refused, Refused),
    (ANTHROPIC, 403, "permission_error", Refused, Refused),
    (ANTHROPIC, 404, "not_found_error", Refused, Refused),
    (ANTHROPIC, 413, "request_too_large", Refused, Refused),
    (ANTHROPIC, 429, "rate_limit_error", Unavailable, Unavailable),
    (ANTHROPIC, 429, "ramp_limit_exceeded", Unavailable, Unavailable),
    (ANTHROPIC, 429, "enforced_spend_limit_reached", Refused, Refused),
    (ANTHROPIC, 429, "contract_spend_limit_reached", Refused, Refused),
    (ANTHROPIC, 408, "", Unavailable, UnknownFate),
    (ANTHROPIC, 409, "conflict_error", Unavailable, UnknownFate),
    (ANTHROPIC, 500, "api_error", Unavailable, UnknownFate),
    (ANTHROPIC, 503, "cmek_context_unavailable", Unavailable, UnknownFate),
    (ANTHROPIC, 503, "cmek_key_disabled", Refused, Refused),
    (ANTHROPIC, 504, "timeout_error", Unavailable, UnknownFate),
    (ANTHROPIC, 529, "overloaded_error", Unavailable, UnknownFate),
    (OPENAI, 400, "missing_required_parameter", Refused, Refused),
    (OPENAI, 401, "invalid_api_key", Refused, Refused),
    (OPENAI, 404, "not_found", Refused, Refused),
    (OPENAI, 429, "rate_limit_exceeded", Unavailable, Unavailable),
    (OPENAI, 429, "token_limit_exceeded", Unavailable, Later),
    (OPENAI, 429, "insufficient_quota", Refused, Refused),
    (OPENAI, 429, "billing_hard_limit_reached", Refused, Refused),
    (OPENAI, 500, "server_error", Unavailable, UnknownFate),
    (OPENAI, 503, "", Unavailable, UnknownFate),
]


@pytest.mark.parametrize(("vendor", "status", "code", "looking", "creating"), VERDICTS)
def test_each_answer_has_one_meaning(
    vendor: VendorCodes, status: int, code: str, looking: type[ProviderError], creating: type[ProviderError]
) -> None:
    failure = CallFailure(status=status, code=code, message="why")
    assert type(judge(failure, vendor)) is looking
    assert type(judge(failure, vendor, creating=True)) is creating


def test_a_lost_answer_leaves_the_fate_of_a_creation_open() -> None:
    failure = CallFailure(status=None, message="ReadError")
    assert type(judge(failure, OPENAI)) is Unavailable
    assert type(judge(failure, OPENAI, creating=True)) is UnknownFate


def test_a_connection_that_never_stood_created_nothing() -> None:
    failure = CallFailure(status=None, message="ConnectError", sent=False)
    assert type(judge(failure, ANTHROPIC, creating=True)) is Unavailable


def test_the_wish_of_the_server_to_be_left_alone_is_handed_on() -> None:
    error = judge(CallFailure(status=429, retry_after=17.0), ANTHROPIC)
    assert isinstance(error, Unavailable)
    assert error.retry_after == 17.0


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        (CallFailure(status=401), "Check the connection's key"),
        (CallFailure(status=413), "Make the shards smaller"),
        (CallFailure(status=429, code="insufficient_quota"), "settle the bill"),
        (CallFailure(status=500), "searched for before anything is sent again"),
    ],
)
def test_an_error_says_what_to_do_next(failure: CallFailure, advice: str) -> None:
    assert advice in str(judge(failure, OPENAI, creating=True))


def test_an_error_names_the_vendor_the_status_and_the_code_and_keeps_the_vendors_words_apart() -> None:
    error = judge(CallFailure(status=400, code="bad", message="Add a model."), ANTHROPIC)
    assert str(error) == "Anthropic answered 400: bad."
    assert (error.status, error.detail) == (400, "Add a model.")
    assert error.in_full == "Anthropic answered 400: bad. It said: Add a model."
