"""Prompts with attachments in each vendor's form: as the SDK's types have it, byte for byte, and read back for another."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import TypeAdapter

from airflow_batch_llm.core.attachment import (
    PDF,
    Attachment,
    Uploads,
    common_rules,
    measured,
    parted,
    references,
    uploading,
    with_attachments,
    with_names,
)
from airflow_batch_llm.core.model import Call
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access, TakesAttachments
from tests.golden import check_golden, check_no_other
from tests.vendors import MODELS

WIRE = Path(__file__).parent / "wire" / "attachments"
RESPONSES = "/v1/responses"

ROUTES = {"anthropic": None, "openai": None, "openai_responses": RESPONSES, "vertex": None}

INLINE = (Attachment("image/png", data="aW1hZ2U="), Attachment(PDF, data="JVBERi0="))
BY_URI = {
    "anthropic": (
        Attachment("image/jpeg", uri="https://a.example/b.jpg"),
        Attachment(PDF, uri="https://a.example/b.pdf?s=1"),
    ),
    "openai": (Attachment("image/*", uri="https://a.example/b"),),
    "openai_responses": (
        Attachment("image/*", uri="https://a.example/b"),
        Attachment(PDF, uri="https://a.example/b.pdf"),
    ),
    "vertex": (Attachment("image/heic", uri="gs://bucket/b.heic"), Attachment(PDF, uri="gs://bucket/b.pdf")),
}
UPLOADED = (Attachment("image/png", sha256="ab" * 32), Attachment(PDF, sha256="01" * 32))


def uploaded(route: str) -> tuple[Attachment, ...]:
    return UPLOADED if route != "openai" else UPLOADED[1:]  # its chat has no images in files


def made(route: str, **changes: Any) -> tuple[Any, Call]:
    name = route.partition("_")[0]
    provider = connect(
        name,
        Access(
            api_key="any",
            options={} if name != "vertex" else {"project": "p", "location": "global", "staging": "gs://b/s"},
        ),
    )
    return provider, Call(
        **{"model": MODELS[name], "endpoint": ROUTES[route], "attachments": True, **changes}
    )


def template(route: str) -> LineTemplate:
    provider, call = made(route)
    encoded: LineTemplate = provider.encode(call)
    return encoded


@pytest.mark.parametrize("route", ROUTES)
def test_a_request_is_encoded_as_its_golden_lines_and_read_back(route: str) -> None:
    prompts = [
        with_attachments('"What is “this”? \\" \u2028"'.encode(), attached)
        for attached in (INLINE, BY_URI[route], (), uploaded(route))
    ]
    lines = [template(route).line("bt1-0001-000007", prompt) for prompt in prompts]
    check_golden(WIRE / f"{route}.jsonl", b"".join(line + b"\n" for line in lines))
    for line, prompt in zip(lines, prompts, strict=True):
        read = template(route).prompt(line, "bt1-0001-000007")
        assert parted(read) == parted(prompt)
        assert template(route).line("bt1-0001-000007", read) == line
    assert tuple(references(lines[-1])) == uploaded(route)
    names = {"ab" * 32: "file_1", "01" * 32: 'gs://b/"2"'}
    assert list(names.values())[-len(uploaded(route)) :] == [
        text for text in texts(orjson.loads(with_names(lines[-1], names))) if text in names.values()
    ]


def texts(value: Any) -> Iterator[str]:
    """Yield every text of a JSON value, in order."""
    if isinstance(value, str):
        yield value
    else:
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from texts(one)


def test_no_golden_line_is_without_a_route() -> None:
    check_no_other(WIRE, ROUTES)


def parts(route: str, attached: tuple[Attachment, ...]) -> Iterator[dict[str, Any]]:
    line = orjson.loads(template(route).line("a", with_attachments(b'"text"', attached)))
    match route:
        case "anthropic":
            yield from line["params"]["messages"][0]["content"]
        case "openai":
            yield from line["body"]["messages"][0]["content"]
        case "openai_responses":
            yield from line["body"]["input"][0]["content"]
        case _:
            yield from line["request"]["contents"][0]["parts"]


@pytest.mark.parametrize("route", ["anthropic", "openai", "openai_responses"])
@pytest.mark.parametrize("form", ["inline", "by_uri", "uploaded"])
def test_the_parts_are_those_of_the_installed_sdk(route: str, form: str) -> None:
    from anthropic.types import DocumentBlockParam, ImageBlockParam, TextBlockParam
    from openai.types.chat import ChatCompletionContentPartImageParam, ChatCompletionContentPartTextParam
    from openai.types.chat.chat_completion_content_part_param import File
    from openai.types.responses import ResponseInputFileParam, ResponseInputImageParam, ResponseInputTextParam

    kinds = {
        "anthropic": {"image": ImageBlockParam, "document": DocumentBlockParam, "text": TextBlockParam},
        "openai": {
            "image_url": ChatCompletionContentPartImageParam,
            "file": File,
            "text": ChatCompletionContentPartTextParam,
        },
        "openai_responses": {
            "input_image": ResponseInputImageParam,
            "input_file": ResponseInputFileParam,
            "input_text": ResponseInputTextParam,
        },
    }[route]
    attached = {"inline": INLINE, "by_uri": BY_URI[route], "uploaded": uploaded(route)}[form]
    for part in parts(route, attached):
        known = TypeAdapter(kinds[part["type"]]).validate_python(part)  # drops what it does not know
        assert known == part


def test_the_parts_for_vertex_are_those_of_googles_messages() -> None:
    from google.cloud.aiplatform_v1 import Part

    for part in parts("vertex", (*INLINE, *BY_URI["vertex"], *UPLOADED)):
        Part.from_json(orjson.dumps(part), ignore_unknown_fields=False)


def test_an_endpoint_without_attachments_is_refused() -> None:
    provider, call = made("openai", endpoint="/v1/embeddings", max_tokens=None)
    with pytest.raises(InputError, match="takes no attachments"):
        provider.encode(call)


def test_what_several_routes_take_is_what_each_takes() -> None:
    rules = []
    for route in ("anthropic", "openai", "vertex"):
        provider, call = made(route)
        assert isinstance(provider, TakesAttachments)
        rules.append(provider.attachment_rules(call))
    claude_and_gpt, all_three = common_rules(rules[:2]), common_rules(rules)
    assert claude_and_gpt.by_uri["https"].keys() == {
        "image/jpeg",
        "image/png",
        "image/gif",
        "image/webp",
        "image/*",
    }
    assert claude_and_gpt.inline["image/png"] == rules[0].inline["image/png"] < rules[1].inline["image/png"]
    assert (all_three.by_uri, all_three.most_pixels) == ({}, 8000)
    assert all_three.inline.keys() == {"image/jpeg", "image/png", "image/webp", PDF}
    assert all_three.uploaded == {PDF: 50_000_000}
    assert (claude_and_gpt.most_pages, rules[1].most_pages, rules[2].most_pages) == (100, None, 1000)


def test_files_are_uploaded_where_the_user_wants_it_or_the_server_is_known_to_store_them() -> None:
    provider, call = made("anthropic", model="claude-opus-5-5")
    rules = provider.attachment_rules(call)
    assert rules.most_pages == 600
    assert uploading(rules, Uploads.AUTO) == rules != uploading(rules, Uploads.NEVER)
    server = connect("openai", Access(api_key="any", base_url="https://llm.example/v1"))
    assert isinstance(server, TakesAttachments)
    rules = server.attachment_rules(made("openai")[1])
    assert not uploading(rules, Uploads.AUTO).uploaded
    assert uploading(rules, Uploads.ALWAYS).uploaded
    tables = connect("vertex", Access(options={"project": "p", "staging": "bq://p.d"}))
    assert isinstance(tables, TakesAttachments)
    assert not tables.attachment_rules(made("vertex")[1]).uploaded


@pytest.mark.parametrize(
    ("route", "model", "found", "tokens"),
    [
        ("anthropic", "claude-haiku-4-5", Attachment("image/png", width=1000, height=1000), 1334),
        ("anthropic", "claude-haiku-4-5", Attachment("image/png", width=4000, height=100), 82),
        ("anthropic", "claude-haiku-4-5", Attachment("image/*"), 1600),
        ("anthropic", "claude-haiku-4-5", Attachment(PDF, pages=2), 6000),
        ("openai", "gpt-4o-2024-11-20", Attachment("image/png", width=1024, height=1024), 765),
        ("openai", "gpt-4o", Attachment("image/png", width=2048, height=4096), 1105),
        ("openai", "gpt-5-mini", Attachment("image/png", width=1024, height=1024), 1229),
        ("openai", "gpt-5-mini", Attachment(PDF), 10_000),
        ("vertex", "gemini-2.5-flash", Attachment("image/png", width=384, height=384), 258),
        ("vertex", "gemini-2.5-flash", Attachment("image/png", width=1000, height=700), 516),
        ("vertex", "publishers/google/models/gemini-3-flash", Attachment("image/png", width=9, height=9), 1120),
        ("vertex", "gemini-2.5-flash", Attachment(PDF, pages=10), 2580),
    ],
)  # fmt: skip
def test_tokens_are_counted_by_the_vendors_rule(
    route: str, model: str, found: Attachment, tokens: int
) -> None:
    provider, call = made(route, model=model)
    assert provider.attachment_rules(call).tokens(found) == tokens


PACKED_PDF = (
    b"%PDF-1.7\n5 0 obj <</Type/ObjStm /N 4 /Filter/FlateDecode>> stream\r\n"
    + zlib.compress(
        b"1 0 2 40 <</Kids[2 0 R]/Type/Pages/Count 2>><</Type/Page>><</Type/Page>><</Count 99/Type/Outlines>>"
    )
    + b"\nendstream endobj"
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(8) + b"\0\0\1\0\0\0\0\5", Attachment("image/png", width=256, height=5)),
        (b"GIF89a\x02\x01\x03\x00", Attachment("image/gif", width=258, height=3)),
        (
            b"\xff\xd8\xff\xe0\0\4ab\xff\xff\xc2\0\x11\x08\0\5\0\7\3rest",
            Attachment("image/jpeg", width=7, height=5),
        ),
        (b"\xff\xd8\xff\xe0\0", Attachment("image/jpeg")),
        (b"RIFF....WEBPVP8X" + bytes(8) + b"\2\0\0\3\0\0", Attachment("image/webp", width=3, height=4)),
        (b"RIFF....WEBPVP8 " + bytes(10) + b"\7\0\5\0", Attachment("image/webp", width=7, height=5)),
        (b"RIFF....WEBPVP8L" + bytes(5) + b"\3\0\1\0", Attachment("image/webp", width=4, height=5)),
        (b"\0\0\0\x18ftypheic", Attachment("image/heic")),
        (b"\n%PDF-1.7 /Type /Pages /Type/Page /Type /Page", Attachment(PDF, pages=2)),
        (PACKED_PDF, Attachment(PDF, pages=2)),
        (PACKED_PDF + PACKED_PDF.replace(b"obj", b"obj "), Attachment(PDF, pages=2)),
        (b"%PDF-1.7 /ObjStm stream\nno deflated bytes", Attachment(PDF)),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_the_kind_and_the_size_are_those_of_the_bytes(data: bytes, expected: Attachment | None) -> None:
    assert measured(data) == expected
