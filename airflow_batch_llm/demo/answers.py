"""What the simulated model answers in the demo: a support ticket is read by its words, all else is made up.

It is a responder of the simulator: `--responder airflow_batch_llm.demo.answers:respond`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from airflow_batch_llm.simulator.answers import conforming
from airflow_batch_llm.simulator.draw import Draw, phrase
from airflow_batch_llm.simulator.request import Request

_TOPICS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bug": ("crash", "hangs", "bug"),
        "account": ("log in", "2fa", "iniciar sesión", "ログイン"),
        "billing": ("charged", "invoice", "vat number", "rechnung"),
        "delivery": ("my order", "parcel", "colis", "the box"),
        "cancellation": ("cancel", "kündigen"),
        "wish": ("feature", "dark mode"),
    }
)
_URGENT = ("urgent", "as soon as possible", "至急", "hurry")
_LANGUAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"de": ("bitte", "guten tag"), "fr": ("bonjour",), "es": ("hola",), "ja": ("ください",)}
)


def respond(request: Request) -> Any:
    """An answer that fits the schema, and the ticket where it is one."""
    if request.schema is None:
        return f"{phrase(Draw(request.seed), 6).capitalize()}."
    answer = conforming(request.schema, request.seed)
    if isinstance(answer, dict):
        answer |= {
            name: value for name, value in _read(request.prompt).items() if _fits(request.schema, name, value)
        }
    return answer


def _read(prompt: str) -> dict[str, str]:
    text = prompt.lower()
    return {
        "topic": _first(_TOPICS, text, "other"),
        "urgency": "high" if any(word in text for word in _URGENT) else "normal",
        "language": _first(_LANGUAGES, text, "en"),
    }


def _first(words: Mapping[str, tuple[str, ...]], text: str, otherwise: str) -> str:
    return next((name for name, some in words.items() if any(word in text for word in some)), otherwise)


def _fits(schema: Mapping[str, Any], name: str, value: str) -> bool:
    wanted = schema.get("properties", {}).get(name)
    return wanted is not None and value in wanted.get("enum", ())
