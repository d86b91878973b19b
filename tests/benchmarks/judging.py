"""Result lines that are judged in a second of CPU, one process: `python -m tests.benchmarks.judging`.

The simulator writes the lines as each vendor does. The labels repeat; each object is another. Those with nulls have a
null for each optional property, as a vendor writes it that wants all properties. `read` is the vendor's envelope alone,
and `typed` the answer's text alone.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import orjson

from airflow_batch_llm.core.answer import AnswerParser
from airflow_batch_llm.core.model import Call
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.packing import Layout
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.request import custom_id
from airflow_batch_llm.simulator.request import Reply
from airflow_batch_llm.stage.land.gathering import LineJudge, ResultReader
from tests.fuzz import PROVIDERS, ROWS, TOKEN, subject

_LABELS = ["billing", "bug", "other"]
_OBJECT = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "enum": _LABELS},
        "summary": {"type": "string"},
        "urgent": {"type": "boolean"},
        "score": {"type": "number"},
        "count": {"type": "integer"},
        "day": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "buyer": {"type": "object", "properties": {"name": {"type": "string"}, "city": {"type": "string"}}},
    },
    "required": ["label", "summary", "urgent", "score", "count", "day"],
}


def _label(number: int) -> str:
    return orjson.dumps({"label": _LABELS[number % 3]}).decode()


def _object(number: int) -> str:
    return orjson.dumps(
        {
            "label": _LABELS[number % 3],
            "summary": f"Ticket {number} is about an invoice that has not come.",
            "urgent": number % 2 == 0,
            "score": number / 7,
            "count": number,
            "day": "2026-05-04",
            "tags": ["invoice", "late"],
            "buyer": {"name": f"Buyer {number}", "city": "Graz"},
        }
    ).decode()


def _nulls(number: int) -> str:
    return orjson.dumps(orjson.loads(_object(number)) | {"tags": None, "buyer": None}).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    rows = parser.parse_args().rows
    print(f"{'rows per CPU second':30}{'read':>10}{'typed':>10}{'judged':>10}")
    for name in PROVIDERS:
        for title, wanted, answer in (
            ("label", _LABELS, _label),
            ("object", _OBJECT, _object),
            ("object with nulls", _OBJECT, _nulls),
        ):
            _measure(
                f"{name}, {title}", name, OutputType.of(wanted), [answer(number) for number in range(rows)]
            )


def _measure(title: str, name: str, output_type: OutputType, answers: Sequence[str]) -> None:
    model, simulated = ROWS[name]
    provider, vendor = subject(name).provider, simulated()
    template = provider.encode(Call(model=model, schema=output_type.schema))
    lines = [
        vendor.write(vendor.read(template.line(custom_id(TOKEN, number), b'"say hi"')), Reply(answer)).line
        for number, answer in enumerate(answers)
    ]
    judge = LineJudge(
        provider=provider,
        parser=AnswerParser.of(output_type),
        prices=PriceList.of(name, model, at=1.78e9),
    )
    reader, layout = ResultReader(lines=judge), Layout.alone(len(lines))
    figures = (
        _seconds(lambda: [provider.decode(line) for line in lines]),
        _seconds(lambda: [judge.parser.parse(answer) for answer in answers]),
        _seconds(lambda: reader.gather([("batch", lines)], token=TOKEN, layout=layout)),
    )
    print(f"{title:30}" + "".join(f"{len(lines) / seconds:>10,.0f}" for seconds in figures), flush=True)


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of the best of three tries."""
    tries = []
    for _ in range(3):
        began = time.process_time()
        work()
        tries.append(time.process_time() - began)
    return min(tries)


if __name__ == "__main__":
    main()
