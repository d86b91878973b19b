"""Numbers with their noun."""

import ast
import re
from pathlib import Path

import pytest

import airflow_batch_llm
from airflow_batch_llm.core.printing import counted, plural, share, verb

PACKAGE = Path(airflow_batch_llm.__file__).parent

#: The package's messages count these.
NOUNS = ("answer", "batch", "column", "line", "prompt", "request", "result", "row", "shard", "value")


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 batches"), (1, "1 batch"), (2, "2 batches"), (1200, "1,200 batches")]
)
def test_one_has_no_plural(count: int, words: str) -> None:
    assert counted(count, "batch") == words


def test_a_share_agrees_with_the_whole() -> None:
    assert f"{share(1, 1, 'request')} {verb(1, 'is', 'are')} done" == "1 of 1 request is done"
    assert f"{share(1, 2, 'request')} {verb(2, 'is', 'are')} done" == "1 of 2 requests are done"


def test_no_message_writes_a_plural_beside_a_count_that_may_be_one() -> None:
    many = re.compile(rf" ({'|'.join(map(plural, NOUNS))})\b")
    messages = [
        (path, value, text)
        for path in PACKAGE.rglob("*.py")
        if path.parts[len(PACKAGE.parts)] != "simulator"  # it speaks in the vendors' words
        for message in ast.walk(ast.parse(path.read_text()))
        if isinstance(message, ast.JoinedStr)
        for value, text in zip(message.values, message.values[1:], strict=False)
    ]

    written = [
        f"{path.relative_to(PACKAGE)}:{value.lineno} {ast.unparse(value.value)}{text.value}"
        for path, value, text in messages
        if isinstance(value, ast.FormattedValue)
        and isinstance(text, ast.Constant)
        and not (isinstance(value.value, ast.Name) and value.value.id.isupper())  # a constant is no count
        and many.match(str(text.value))
    ]
    assert written == []
