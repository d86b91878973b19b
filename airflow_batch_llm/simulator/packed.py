"""Answer packed requests: each item as if it had been asked alone, by whatever answers the other requests.

So a row has the same answer in a request of its own and among others.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson

from airflow_batch_llm.core.packing import item_schema, read_items
from airflow_batch_llm.simulator.faults import Fault, RowFault
from airflow_batch_llm.simulator.request import AskedRequest, Reply, StopReason

if TYPE_CHECKING:
    from airflow_batch_llm.simulator.responder import Responder

_TEXT = frozenset({"string", "STRING"})


class Unpacking:
    """Takes packed requests apart for another responder, and puts its answers together."""

    def __init__(self, inner: "Responder") -> None:
        self._inner = inner

    def answer_all(self, requests: Sequence[AskedRequest]) -> list[Reply]:
        apart = [items_of(request) for request in requests]
        alone = [
            one
            for request, items in zip(requests, apart, strict=True)
            for one in ([request] if items is None else items)
        ]
        replies = iter(self._inner.answer_all(alone))
        return [
            next(replies) if items is None else _together(items, list(islice(replies, len(items))))
            for items in apart
        ]


def items_of(request: AskedRequest) -> list[AskedRequest] | None:
    """Return the requests that ask the items of a packed one alone. None: it is not packed."""
    schema = None if request.schema is None else item_schema(request.schema)
    items = None if schema is None else read_items(request.prompt)
    if items is None or schema is None:
        return None
    kept = None if schema.get("type") in _TEXT else _with_definitions(schema, request.schema or {})
    return [request._replace(prompt=text, schema=kept) for text in items]


def _with_definitions(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    definitions = {name: whole[name] for name in ("$defs", "definitions") if name in whole}
    return {**schema, **definitions}


def _together(items: Sequence[AskedRequest], replies: Sequence[Reply]) -> Reply:
    """Put the answers to the items into one. The first that was not answered decides for all."""
    for reply in replies:
        if reply.error is not None or reply.stop is not StopReason.END:
            return reply
    answers = [
        reply.text if item.schema is None else _value(reply.text)
        for item, reply in zip(items, replies, strict=True)
    ]
    return Reply(_text([{"item": n, "answer": answer} for n, answer in enumerate(answers, 1)]))


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _text(entries: Sequence[Mapping[str, Any]]) -> str:
    return orjson.dumps({"answers": entries}).decode()


def spoil(answer: Reply, fault: Fault) -> Reply:
    """Return the answer to a packed request as a model would give it that errs in some of the items."""
    entries = orjson.loads(answer.text)["answers"]
    struck = [entry for entry in entries if entry["item"] in fault.items]
    match fault.kind:
        case RowFault.ITEMS_MISSING:
            entries = [entry for entry in entries if entry not in struck]
        case RowFault.ITEMS_DOUBLED:
            entries += struck
        case RowFault.ITEMS_EXTRA:
            entries += [{**entries[0], "item": len(entries) + 1}, {**entries[0], "item": 0}]
        case RowFault.ITEMS_INVALID:
            for entry in struck:
                entry["answer"] = {"no_such_field": []}
        case RowFault.ITEMS_SWAPPED:
            for entry, other in zip(struck, reversed([entry["answer"] for entry in struck]), strict=True):
                entry["answer"] = other
            entries.reverse()
        case _:
            return answer
    return answer._replace(text=_text(entries))
