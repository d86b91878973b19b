"""Define the form in which images and PDFs travel with a prompt, and the rules of the models that read them.

A prompt without attachments is an encoded JSON string. With attachments it is an encoded object of the package's own
form. Each route writes it in the form of its vendor, and reads it back from there. No message holds a URI or bytes.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from mimetypes import MimeTypes
from mmap import mmap
from typing import Any, NamedTuple

import orjson

PDF = "application/pdf"
#: The media type of an image whose URI names none. The vendor finds the type in its bytes.
ANY_IMAGE = "image/*"

_TYPES = {
    "gif": "image/gif", "heic": "image/heic", "heif": "image/heif", "jpeg": "image/jpeg", "jpg": "image/jpeg",
    "pdf": PDF, "png": "image/png", "webp": "image/webp",
}  # fmt: skip
_OTHER_TYPES = MimeTypes()

_QUERY = re.compile("[?#]")

#: A PDF names each of its pages so, and counts those below a node of its tree of pages.
_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_PAGES = re.compile(rb"/Type\s*/Pages(?![A-Za-z])")
_COUNT = re.compile(rb"/Count\s+(\d+)")
_COUNT_BYTES = 400
#: Newer PDFs pack such words into streams. At most this many bytes of each are unpacked.
_PACKED, _STREAM = re.compile(rb"/ObjStm\b"), re.compile(rb"stream\r?\n")
_UNPACKED_BYTES = 4 << 20
_HEIF_BRANDS = {b"heic": "image/heic", b"heix": "image/heic", b"mif1": "image/heif", b"heif": "image/heif"}
#: The frame headers of a JPEG, which hold its size.
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


class Uploads(StrEnum):
    """Choose which attachments the vendor gets as files of its own, and not within requests."""

    AUTO = "auto"
    """Those that several rows share, and those that are too large for a request, if the vendor is known to store files."""
    ALWAYS = "always"
    """All that the vendor does not read by itself."""
    NEVER = "never"
    """None."""


class Attachment(NamedTuple):
    """An image or a PDF of one row. It has a URI that the vendor reads, or its own bytes, or it is uploaded."""

    media_type: str
    uri: str | None = None
    data: str | None = None
    """The bytes in base64."""
    width: int = 0
    """Pixels. 0: not known."""
    height: int = 0
    pages: int = 0
    """Pages of a PDF. 0: not known."""
    sha256: str | None = None
    """The hash of the bytes of an attachment that is uploaded. A planned request has its `reference`."""

    @property
    def reference(self) -> str:
        """Return the text that holds the attachment's place in a planned request until the vendor has named its file."""
        return f"{_OPENING}{self.media_type} {self.sha256}{_END}"

    @property
    def is_pdf(self) -> bool:
        return self.media_type == PDF

    @property
    def is_measured(self) -> bool:
        """Return whether the size in pixels, or the number of pages, is known."""
        return bool(self.pages if self.is_pdf else self.width)

    @property
    def data_url(self) -> str:
        """The bytes as a URL of their own."""
        return f"data:{self.media_type};base64,{self.data}"


# Private-use code points, which do not occur in a URI or in a vendor's id.
_OPENING, _END = "\ue000attachment ", "\ue001"
_QUOTED = f'"{_OPENING}([a-z/+.-]+) ([0-9a-f]{{64}}){_END}"'.encode()
_ALONE = re.compile(_QUOTED)
#: In a line a reference is where vendors expect the name of a file. A row's text may look like one, but is never there.
_REFERENCE = re.compile(b'(?<="file_id":|"fileUri":)' + _QUOTED)


def referred(text: str) -> Attachment | None:
    """Return the attachment that a reference names, or None if the text is not a reference."""
    found = _ALONE.fullmatch(orjson.dumps(text))
    return found and Attachment(found[1].decode(), sha256=found[2].decode())


def references(line: bytes) -> Iterator[Attachment]:
    """Yield the uploaded attachments of a planned request."""
    return (Attachment(found[1].decode(), sha256=found[2].decode()) for found in _REFERENCE.finditer(line))


def with_names(line: bytes, names: Mapping[str, str]) -> bytes:
    """Return a planned request as it is sent: with the vendor's names of the attachments in place of their hashes."""
    return _REFERENCE.sub(lambda found: orjson.dumps(names[found[2].decode()]), line)


class Unattachable(Exception):
    """An attachment that no request can carry, as a code and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Content:
    """The form in which a vendor takes a prompt with attachments. `read` is the inverse of `write`."""

    write: Callable[[str, Sequence[Attachment]], object]
    read: Callable[[Any], tuple[str, list[Attachment]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentRules:
    """The attachments that a model takes, and their costs."""

    inline: Mapping[str, int]
    """The most bytes of an attachment in the request, by media type."""
    by_uri: Mapping[str, Mapping[str, int]]
    """The most bytes of an attachment that the vendor reads itself, by scheme of the URI and by media type."""
    uploaded: Mapping[str, int] = field(default_factory=dict)
    """The most bytes of an attachment that is uploaded, by media type. Default: nothing is uploaded."""
    is_upload_usual: bool = True
    """The server is known to store files. Default: yes. False: only `Uploads.ALWAYS` uploads."""
    most: int
    """The most attachments of one request."""
    most_pages: int | None = None
    """The most pages of all PDFs of one request. Default: no limit."""
    most_pixels: int | None = None
    """The most pixels of an image's longer side. Default: no limit."""
    tokens: Callable[[Attachment], int]
    """Return the input tokens of an attachment. It has an assumption where the size is not known."""
    assumption: str
    """The assumed size of an attachment whose size is not known."""


def with_attachments(prompt: bytes, attachments: Sequence[Attachment]) -> bytes:
    """Return an encoded prompt with its attachments, or as it is if there are none."""
    if not attachments:
        return prompt
    named = [
        {name: value for name, value in one._asdict().items() if value not in (None, 0)}
        for one in attachments
    ]
    return b'{"text":%b,"attachments":%b}' % (prompt, orjson.dumps(named))


def parted(prompt: bytes) -> tuple[str, list[Attachment]]:
    """Return the text of an encoded prompt, and its attachments."""
    value = orjson.loads(prompt)
    if isinstance(value, str):
        return value, []
    return value["text"], [Attachment(**one) for one in value["attachments"]]


def common_rules(rules: Sequence[AttachmentRules]) -> AttachmentRules:
    """Return the rules of models that all may get the same row. The tokens are those of the first."""
    first, *others = rules
    for one in others:
        first = AttachmentRules(
            inline=_lower(first.inline, one.inline),
            by_uri={
                scheme: _lower(types, one.by_uri[scheme])
                for scheme, types in first.by_uri.items()
                if scheme in one.by_uri
            },
            uploaded=_lower(first.uploaded, one.uploaded),
            most=min(first.most, one.most),
            most_pages=_lower_limit(first.most_pages, one.most_pages),
            most_pixels=_lower_limit(first.most_pixels, one.most_pixels),
            tokens=first.tokens,
            assumption=first.assumption,
        )
    return first


def _lower(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: min(most, other[name]) for name, most in one.items() if name in other}


def _lower_limit(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


def uploading(rules: AttachmentRules, uploads: Uploads) -> AttachmentRules:
    """Return the rules of a model under the user's choice of what is uploaded."""
    is_used = uploads is Uploads.ALWAYS or (uploads is Uploads.AUTO and rules.is_upload_usual)
    return rules if is_used else replace(rules, uploaded={})


def media_type_of(uri: str) -> str | None:
    """Return the media type that the end of a URI's path names. Returns None if it names none."""
    path = _QUERY.split(uri, maxsplit=1)[0].partition("://")[2].partition("/")[2]
    _, dot, suffix = path.rpartition("/")[2].rpartition(".")
    if not dot:
        return None
    return _TYPES.get(suffix.lower()) or _OTHER_TYPES.guess_type(f"a.{suffix}")[0]


def kind_of(uri: str) -> str:
    """Return the media type of a URI that only the vendor reads. A URI that does not say is taken for an image."""
    return media_type_of(uri) or ANY_IMAGE


def measured(data: bytes | mmap) -> Attachment | None:
    """Return the media type and the size that bytes show. Returns None if they are not an image or a PDF of a known kind."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return Attachment("image/png", width=_big(data[16:20]), height=_big(data[20:24]))
    if data[:3] == b"\xff\xd8\xff":
        width, height = _jpeg_size(data)
        return Attachment("image/jpeg", width=width, height=height)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return Attachment("image/gif", width=_little(data[6:8]), height=_little(data[8:10]))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        width, height = _webp_size(data)
        return Attachment("image/webp", width=width, height=height)
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return Attachment(_HEIF_BRANDS[data[8:12]])
    if b"%PDF-" in data[:1024]:
        return Attachment(PDF, pages=_count_pages(data))
    return None


def _count_pages(data: bytes | mmap) -> int:
    """Count the pages of a PDF. Returns 0 if it does not show them, as an encrypted one."""
    listed = counted = 0
    for part in (data, *_unpacked(data)):
        listed += len(_PAGE.findall(part))
        counted = max([counted, *(_count_at(part, found.start()) for found in _PAGES.finditer(part))])
    # A changed PDF still holds its earlier pages, which no node counts.
    return min(listed, counted) if listed and counted else listed or counted


def _count_at(data: bytes | mmap, at: int) -> int:
    """Return the number of pages below the node of the tree whose type stands here. Returns 0 if it does not say."""
    before = data[max(0, at - _COUNT_BYTES) : at].rpartition(b"<<")[2]
    found = _COUNT.search(before + data[at : at + _COUNT_BYTES].partition(b">>")[0])
    return int(found[1]) if found else 0


def _unpacked(data: bytes | mmap) -> Iterator[bytes]:
    """Yield the unpacked streams of a PDF, which may hold pages."""
    for found in _PACKED.finditer(data):
        begun = _STREAM.search(data, found.end(), found.end() + _COUNT_BYTES)
        if begun is not None:
            with suppress(zlib.error):
                packed = data[begun.end() : begun.end() + _UNPACKED_BYTES]
                yield zlib.decompressobj().decompress(packed, _UNPACKED_BYTES)


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _jpeg_size(data: bytes | mmap) -> tuple[int, int]:
    """Return width and height from the first frame header. Returns zeros if there is none."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        if data[at + 1] in _FRAMES:
            return _big(data[at + 7 : at + 9]), _big(data[at + 5 : at + 7])
        at += 1 if data[at + 1] == 0xFF else 2 + max(2, _big(data[at + 2 : at + 4]))
    return 0, 0


def _webp_size(data: bytes | mmap) -> tuple[int, int]:
    match data[12:16]:
        case b"VP8X":
            return 1 + _little(data[24:27]), 1 + _little(data[27:30])
        case b"VP8L":
            packed = _little(data[21:25])
            return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
        case b"VP8 ":
            return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
        case _:
            return 0, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentTokens:
    """The tokens of the attachments of many prompts."""

    count: int = 0
    unmeasured: int = 0
    tokens: int = 0

    def plus(self, attachments: Iterable[Attachment], rules: AttachmentRules) -> "AttachmentTokens":
        """Return the sum with the attachments of one more prompt."""
        found = list(attachments)
        return AttachmentTokens(
            count=self.count + len(found),
            unmeasured=self.unmeasured + sum(not one.is_measured for one in found),
            tokens=self.tokens + sum(map(rules.tokens, found)),
        )
