"""Where answers come from: made up from the schema, a function of the user's, or an upstream endpoint.

The default is deterministic: the same request gets the same answer in every run, on every machine.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from airflow_batch_llm.simulator.answers import conforming
from airflow_batch_llm.simulator.draw import Draw, phrase
from airflow_batch_llm.simulator.request import Answer, Request, RowError
from airflow_batch_llm.simulator.settings import Settings


class Responder(Protocol):
    """Answers requests, in their order. Called in worker threads."""

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]: ...


class MadeUp:
    """Values that conform to the schema; a short phrase where there is none."""

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(_made_up(request)) for request in requests]


def _made_up(request: Request) -> str:
    if request.schema is None:
        return f"Answer {request.seed & 0xFFFFFF:06x}: {phrase(Draw(request.seed), 3)}."
    return orjson.dumps(conforming(request.schema, request.seed)).decode()


class UserFunction:
    """A function of the user's, called once per request. What it raises becomes an error of that row."""

    def __init__(self, respond: Callable[[Request], Any]) -> None:
        self._respond = respond

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        try:
            value = self._respond(request)
        except Exception as error:  # noqa: BLE001 - one bad row must not stop the batch
            return Answer(error=RowError(500, "api_error", f"the responder raised {type(error).__name__}"))
        if isinstance(value, Answer):
            return value
        return Answer(value if isinstance(value, str) else orjson.dumps(value).decode())


def load_responder(settings: Settings) -> Responder:
    """The responder that the settings name. Raises ValueError if it cannot be loaded."""
    if settings.responder and settings.upstream:
        raise ValueError("--responder and --upstream exclude each other")
    if settings.upstream:
        from airflow_batch_llm.simulator.upstream import Upstream

        return Upstream(settings)
    if not settings.responder:
        return MadeUp()
    module_name, _, function_name = settings.responder.partition(":")
    if not function_name:
        raise ValueError(f"--responder must be module:function, not {settings.responder!r}")
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, here)
    try:
        return UserFunction(getattr(importlib.import_module(module_name), function_name))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--responder {settings.responder!r} cannot be loaded: {error}") from error
