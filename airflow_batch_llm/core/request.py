"""Write one provider line for each request, and compute the identities that decide what is bought.

A line is encoded once as a template with two kinds of hole, the custom_id and the prompt, so that a row
costs a join of byte strings. The hashes are part of what users have in their tables: the same inputs must
give the same hashes in every release.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import orjson

from airflow_batch_llm.core.attachment import Content, parted, with_attachments
from airflow_batch_llm.core.model import Limits

# Sentinels that cannot occur in encoded JSON by accident: private-use code points around a word.
CUSTOM_ID = "\ue000custom-id\ue001"
PROMPT = "\ue000prompt\ue001"

#: The minimum number of digits of an ordinal.
ORDINAL_DIGITS = 6

_MAX_CUSTOM_ID = 63

# Copying it costs less than a new hash object, and every row needs one.
_NOTHING_HASHED = hashlib.blake2b(digest_size=16)


@dataclass(frozen=True, slots=True)
class LineTemplate:
    """A wire line with holes. `pieces` are encoded JSON; between piece i and i+1 goes the hole `holes[i]`."""

    pieces: tuple[bytes, ...]
    holes: tuple[str, ...]
    content: Content | None = None
    """The vendor's form of a prompt with attachments. Default: prompts have none."""

    @classmethod
    def of(cls, line: Mapping[str, object], content: Content | None = None) -> "LineTemplate":
        """Encode `line` once; its values `CUSTOM_ID` and `PROMPT` (whole JSON strings) become the holes.

        With `content`, the hole of the prompt is where the vendor takes what `content` writes.
        """
        rest = orjson.dumps(line)
        marks = {orjson.dumps(CUSTOM_ID): CUSTOM_ID, orjson.dumps(PROMPT): PROMPT}
        pieces: list[bytes] = []
        holes: list[str] = []
        while found := [(at, mark) for mark in marks if (at := rest.find(mark)) >= 0]:
            at, mark = min(found)
            pieces.append(rest[:at])
            holes.append(marks[mark])
            rest = rest[at + len(mark) :]
        return cls(pieces=(*pieces, rest), holes=tuple(holes), content=content)

    def line(self, custom_id: str, prompt: bytes) -> bytes:
        """Return the bytes of one request, without a line end. `prompt` is encoded JSON: a string, or one with attachments."""
        identity = b'"%b"' % custom_id.encode()
        parts = [self.pieces[0]]
        prompt = self.written(prompt)
        for hole, piece in zip(self.holes, self.pieces[1:], strict=True):
            parts += (prompt if hole == PROMPT else identity, piece)
        return b"".join(parts)

    def written(self, prompt: bytes) -> bytes:
        """Return the prompt as it stands in the line."""
        return prompt if self.content is None else orjson.dumps(self.content.write(*parted(prompt)))

    def pieces_under(self, token: str) -> list[bytes]:
        """Return the pieces of the lines of one shard, with their end: a custom_id's hole takes the ordinal's digits alone."""
        pieces = [self.pieces[0]]
        for hole, piece in zip(self.holes, self.pieces[1:], strict=True):
            if hole == CUSTOM_ID:
                pieces[-1] += b'"%b-' % token.encode()
                piece = b'"' + piece
            pieces.append(piece)
        pieces[-1] += b"\n"
        return pieces

    def prompt(self, line: bytes, custom_id: str) -> bytes:
        """Return the encoded prompt of a line that `line` made for this custom_id."""
        at = self.holes.index(PROMPT)
        before = sum(map(len, self.pieces[: at + 1])) + at * (len(custom_id) + 2)
        after = sum(map(len, self.pieces[at + 1 :])) + (len(self.holes) - at - 1) * (len(custom_id) + 2)
        written = line[before : len(line) - after]
        if self.content is None:
            return written
        text, attachments = self.content.read(orjson.loads(written))
        return with_attachments(orjson.dumps(text), attachments)

    @property
    def overhead(self) -> int:
        """Return the maximum number of bytes in a line besides its prompts."""
        return sum(map(len, self.pieces)) + self.holes.count(CUSTOM_ID) * (_MAX_CUSTOM_ID + 2)


def shard_token(run_token: str, number: int) -> str:
    """Return the shard's name at the provider, which also begins its custom_ids."""
    return f"{run_token}-{number:04d}"


def custom_id(token: str, ordinal: int) -> str:
    """Return the identity of a request at the provider: at most 63 characters of [a-z0-9_-], a letter first."""
    return f"{token}-{ordinal:0{ORDINAL_DIGITS}d}"


def canonical(value: object) -> bytes:
    """Return canonical JSON, the same for equal values: sorted keys, no spaces, UTF-8."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest(*parts: bytes) -> str:
    """32 hex digits over the parts; their lengths count, so that ("ab", "c") is not ("a", "bc")."""
    hashed = _NOTHING_HASHED.copy()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return hashed.hexdigest()


#: Shards of one run differ in size by up to this share, so that the count of requests distinguishes them at the provider.
_SPREAD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardBounds:
    """The maximum size of a run's shards."""

    requests: int
    bytes: int

    @classmethod
    def of(cls, limits: Limits, *, rows_per_batch: int, rows_per_request: int = 1) -> "ShardBounds":
        """Return the size that the user wants, within the provider's limits."""
        return cls(
            requests=max(1, min(rows_per_batch // rows_per_request, limits.max_requests)),
            bytes=limits.max_bytes,
        )

    def varied(self, seed: int) -> "ShardBounds":
        """Return the same bounds, a little lower, by a number that the seed decides."""
        room = int(self.requests * _SPREAD)
        return ShardBounds(requests=self.requests - (seed % (room + 1)), bytes=self.bytes)


class Cutter:
    """Cuts requests that come block by block into shards. The caller refuses requests that are larger than a shard."""

    def __init__(self, bounds: ShardBounds, seed: int) -> None:
        self._bounds = bounds
        self._seed = seed
        self._limit = bounds.varied(seed)
        self._number, self._count, self._filled = 1, 0, 0

    def cut(self, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yield (shard number, start, end) for the next requests.

        A size is the bytes of a request's line with its end.
        """
        ends = list(accumulate(sizes, initial=0))
        first = 0
        while first < len(sizes):
            end = self._end(ends, first)
            if end == first:
                self._next_shard()
                continue
            self._count += end - first
            self._filled += ends[end] - ends[first]
            yield self._number, first, end
            first = end

    def _end(self, ends: Sequence[int], first: int) -> int:
        """Return the request before which the shard is full, if it is filled from the request `first` on."""
        room = self._limit.bytes - self._filled
        fitting = bisect_right(ends, ends[first] + room, lo=first) - 1
        end = min(fitting, first + self._limit.requests - self._count, len(ends) - 1)
        return end if self._count else max(end, first + 1)

    def _next_shard(self) -> None:
        self._number, self._count, self._filled = self._number + 1, 0, 0
        self._limit = self._bounds.varied(self._seed + self._number * 7919)
