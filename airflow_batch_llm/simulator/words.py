"""Strings in the formats that JSON Schema names."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from airflow_batch_llm.simulator.draw import WORDS, Draw

_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


def formatted(name: str | None) -> Callable[[Draw], str] | None:
    """The maker of strings in this format; None for a format that is unknown or says nothing about the text."""
    return _MAKERS.get(name or "")


def _moment(draw: Draw) -> datetime:
    return _EPOCH + timedelta(seconds=draw.below(3 * 365 * 86_400))


def _word(draw: Draw) -> str:
    return WORDS[draw.below(len(WORDS))]


_MAKERS: dict[str, Callable[[Draw], str]] = {
    "date-time": lambda draw: _moment(draw).isoformat(),
    "date": lambda draw: _moment(draw).date().isoformat(),
    "time": lambda draw: _moment(draw).timetz().isoformat(),
    "duration": lambda draw: f"P{1 + draw.below(30)}DT{draw.below(24)}H",
    "email": lambda draw: f"{_word(draw)}{draw.below(1000)}@example.com",
    "hostname": lambda draw: f"{_word(draw)}.example.com",
    "uri": lambda draw: f"https://example.com/{_word(draw)}/{draw.below(1000)}",
    "ipv4": lambda draw: f"192.0.2.{draw.below(256)}",
    "ipv6": lambda draw: f"2001:db8::{draw.below(65_536):x}",
    "uuid": lambda draw: str(UUID(int=(draw.below(1 << 40) << 80) | draw.below(1 << 40), version=4)),
}
