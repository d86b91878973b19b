"""Decide whether a stored answer is still valid: by the stage's spec, and by the row's input.

Both hashes stand in users' tables, so the same inputs must give the same hashes in every release. A field that
is not set is not hashed: one that a later release adds leaves the hashes of today as they are.

A database can compute the hash of an input by itself: it is SHA-256 over texts with their lengths, in which nothing is
escaped. Tables of earlier releases hold another hash, `earlier_input_hashes`, which counts as well.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import orjson

from airflow_batch_llm.core.request import canonical, digest
from airflow_batch_llm.core.schema_rules import map_children
from airflow_batch_llm.core.value import plain, scrub


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Everything that decides what is asked, except the row itself."""

    provider: str
    model: str
    prompt: Mapping[str, str]  # `prompt.identity`
    prompt_params: Mapping[str, object] = field(default_factory=dict)
    system_prompt: str | None = None
    schema: Mapping[str, Any] | None = None
    params: Mapping[str, object] = field(default_factory=dict)
    max_tokens: int | None = None
    endpoint: str | None = None
    attachments: Sequence[str] | None = None  # the columns that hold them
    examples: Sequence[Sequence[Any]] | None = None  # `identity_of_examples`
    host: str | None = None  # who answers, where it is not the vendor: its answers are not the vendor's

    def to_json(self) -> dict[str, Any]:
        """Return the JSON for the frozen plan. The order of its keys must be kept."""
        stored: dict[str, Any] = orjson.loads(orjson.dumps(plain(_set_fields(self))))
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Spec":
        """Read a spec from the frozen plan. Fields that a later release has added are left out."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})


def spec_hash(spec: Spec) -> str:
    """Hash a spec. The order of a schema's properties counts, since a model writes its answer in that order."""
    return digest(canonical(plain(_hashed(spec))))


def changed_fields(planned: Spec, now: Spec) -> tuple[str, ...]:
    """Return the names of the fields in which two specs differ, without their values."""
    before, after = _hashed(planned), _hashed(now)
    names = [item.name for item in fields(Spec)]
    return tuple(
        name for name in names if canonical(plain(before.get(name))) != canonical(plain(after.get(name)))
    )


def input_hash(values: Mapping[str, object]) -> str:
    """Hash the values that a prompt uses, by column name, in any order.

    Numbers count by value (1, 1.0 and 1.00 are the same), and differ from their text and from true. A time
    counts as its text in UTC; NULL and the empty text differ.
    """
    parts = [part for name in sorted(values) for part in (_part(name), _part(values[name]))]
    return _input_digest(b"".join(parts))


def input_hashes(columns: Mapping[str, Sequence[object]]) -> list[str]:
    """Return the `input_hash` of each row of a batch, faster than one by one."""
    names = sorted(columns)
    form = b"".join(_part(name).replace(b"%", b"%%") + b"%b" for name in names)
    parts = [map(_part, columns[name]) for name in names]
    return [_input_digest(form % row) for row in zip(*parts, strict=True)]


def earlier_input_hashes(columns: Mapping[str, Sequence[object]]) -> list[str]:
    """Return the hash that earlier releases wrote for the input of each row."""
    names = sorted(columns)
    try:
        form = b"{%b}" % b",".join(canonical(name).replace(b"%", b"%%") + b":%b" for name in names)
        spelled = [_spelled(columns[name]) for name in names]
        return [digest(form % row) for row in zip(*spelled, strict=True)]
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits, in a column of plain types
        rows = zip(*(columns[name] for name in names), strict=True)
        return [digest(canonical(plain(dict(zip(names, row, strict=True))))) for row in rows]


def _spelled(values: Sequence[object]) -> Iterator[bytes]:
    """Yield the canonical JSON of each value, one at a time: keeping orjson's bytes costs much memory."""
    if _PARTS.keys() >= set(map(type, values)):
        return map(orjson.dumps, values)
    return (canonical(plain(value)) for value in values)


def _input_digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:32]


def _part(value: object) -> bytes:
    """Return a value as a letter for its kind, the number of its bytes, a colon, and its text."""
    return _PARTS.get(type(value), _other_part)(value)


def _text_part(value: str) -> bytes:
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        encoded = scrub(value).encode()
    return b"t%d:%b" % (len(encoded), encoded)


def _number_part(value: int) -> bytes:
    written = b"%d" % value
    return b"n%d:%b" % (len(written), written)


def _other_part(value: object) -> bytes:
    match plain(value):
        case str(text):
            return _text_part(text)
        case int() | orjson.Fragment() as number:
            written = canonical(number)
            return b"n%d:%b" % (len(written), written)
        case nested:
            written = canonical(nested)
            return b"j%d:%b" % (len(written), written)


#: The exact types that most columns hold.
_PARTS: Mapping[type, Callable[[Any], bytes]] = {
    str: _text_part,
    int: _number_part,
    bool: lambda value: b"b4:true" if value else b"b5:false",
    type(None): lambda _: b"z0:",
}


def _set_fields(spec: Spec) -> dict[str, Any]:
    values = {item.name: getattr(spec, item.name) for item in fields(spec)}
    return {name: value for name, value in values.items() if value is not None and value != {}}


def _hashed(spec: Spec) -> dict[str, Any]:
    """Return the fields of a spec that count towards its hash."""
    hashed = _set_fields(spec)
    if spec.schema is not None:
        hashed["schema"] = _in_order(spec.schema)
    return hashed


def _in_order(node: Any) -> Any:
    """Return the schema with each object's properties as a list, which `canonical` does not sort."""
    if not isinstance(node, Mapping):
        return node
    copy = map_children(node, _in_order)
    if isinstance(copy.get("properties"), Mapping):
        copy["properties"] = [[name, child] for name, child in copy["properties"].items()]
    return copy
