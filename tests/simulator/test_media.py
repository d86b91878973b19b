"""Images and PDFs in requests: the simulator refuses what each vendor refuses."""

from base64 import b64encode
from typing import Any

import pytest

from airflow_batch_llm.simulator.anthropic.rows import problem as of_anthropic
from airflow_batch_llm.simulator.openai.rows import problem as of_openai
from airflow_batch_llm.simulator.request import RowError
from airflow_batch_llm.simulator.vertex.rows import problem as of_vertex

GIF = b64encode(b"GIF89a" + bytes(8)).decode()
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def asked(vendor: str, part: dict[str, Any]) -> RowError | None:
    """Return the vendor's complaint about a request with this part."""
    if vendor == "anthropic":
        message = {"role": "user", "content": [part]}
        return of_anthropic({"model": "claude-x", "max_tokens": 9, "messages": [message]}, "2026-10-21")
    if vendor == "vertex":
        return of_vertex({"contents": [{"role": "user", "parts": [part]}]})
    name = "messages" if vendor == CHAT else "input"
    return of_openai(vendor, {"model": "gpt-x", name: [{"role": "user", "content": [part]}]})


def source(**fields: str) -> dict[str, Any]:
    return {"type": "image", "source": fields}


@pytest.mark.parametrize(
    ("vendor", "part", "complaint"),
    [
        ("anthropic", source(type="url", url="https://a.example/b"), None),
        ("anthropic", source(type="url", url="gs://bucket/b"), "must begin with https"),
        ("anthropic", source(type="base64", media_type="image/gif", data=GIF), None),
        ("anthropic", source(type="base64", media_type="image/png", data=GIF), "does not match"),
        ("anthropic", source(type="base64", media_type="image/heic", data=GIF), "must be one of"),
        ("anthropic", source(type="base64", media_type="image/gif", data="%"), ""),
        ("anthropic", source(type="base64", media_type="image/gif", data=GIF * 300_000), "at most"),
        ("anthropic", source(type="file", file_id="f"), "there is no file f"),
        ("anthropic", source(type="text", data="a"), "source.type"),
        (CHAT, {"type": "image_url", "image_url": {"url": f"data:image/gif;base64,{GIF}"}}, None),
        (CHAT, {"type": "image_url", "image_url": {"url": "gs://bucket/b"}}, "must begin with"),
        (CHAT, {"type": "input_image", "image_url": "https://a.example/b"}, "the type of a part"),
        (CHAT, {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{GIF}"}}, "no filename"),
        (RESPONSES, {"type": "input_file", "file_url": "https://a.example/b.pdf"}, None),
        (RESPONSES, {"type": "input_image", "file_id": "f"}, "there is no file f"),
        (CHAT, {"type": "file", "file": {"file_id": "f"}}, "there is no file f"),
        (RESPONSES, {"type": "text", "text": "?"}, "the type of a part"),
        ("vertex", {"fileData": {"fileUri": "gs://bucket/b", "mimeType": "image/png"}}, None),
        ("vertex", {"fileData": {"fileUri": "gs://bucket/b"}}, "mimeType"),
        ("vertex", {"fileData": {"fileUri": "https://a.example/b", "mimeType": "image/png"}}, "must begin with gs"),
        ("vertex", {"inlineData": {"mimeType": "image/gif", "data": GIF}}, "must be one of"),
    ],
)  # fmt: skip
def test_a_part_is_taken_or_refused_as_the_vendor_does(
    vendor: str, part: dict[str, Any], complaint: str | None
) -> None:
    error = asked(vendor, part)
    assert (error is None) is (complaint is None)
    assert error is None or (error.status == 400 and (complaint or "") in error.message)
