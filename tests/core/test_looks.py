"""The records of looks: a reader who takes few of them learns what all of them say."""

from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.core.journal import Doer, Entry, Looked, RecordKind, SeenShard, below, cover, find_last

_NUMBERS = st.frozensets(st.integers(1, 60), max_size=12)


def _journal(length: int) -> tuple[Entry, ...]:
    kinds = [RecordKind.INTENT, RecordKind.SUBMITTED, RecordKind.ENDED, RecordKind.STAGED]
    return tuple(
        Entry(kind=kind, nonce=f"n{at}", at=float(at), batch_id="b", by=Doer(host="h"))
        for at, kind in enumerate(kinds[:length], start=1)
    )


_SEEN = st.builds(
    lambda length, cost: SeenShard(entries=_journal(length), cost=cost),
    st.integers(0, 4),
    st.one_of(st.none(), st.floats(0, 9)),
)
_LOOKS = st.builds(
    lambda begun, reopened, shards: Looked(begun=begun, reopened=reopened, shards=shards),
    _NUMBERS,
    _NUMBERS,
    st.dictionaries(st.integers(1, 60), _SEEN, max_size=8),
)


@given(st.lists(_LOOKS, max_size=40))
def test_the_records_that_cover_all_say_what_every_look_said(looks: list[Looked]) -> None:
    stored: dict[int, bytes] = {}
    for number, looked in enumerate(looks, start=1):
        record = looked
        for before in cover(number - 1):
            if before > below(number):
                record = Looked.from_json(stored[before]).merged(record)
        stored[number] = record.to_json("nonce")

    asked: list[int] = []
    last = find_last(lambda number: asked.append(number) is None and number in stored)
    learned = Looked()
    for number in reversed(cover(last)):
        learned = learned.merged(Looked.from_json(stored[number]))

    whole = Looked()
    for looked in looks:
        whole = whole.merged(looked)
    assert learned == whole
    assert last == len(looks)
    assert find_last(stored.__contains__, shown=len(looks) // 2) == last
    listed: list[int] = []
    assert find_last(lambda number: listed.append(number) is None and number in stored, shown=last) == last
    assert listed == [*([last] if last else []), last + 1]
    assert len(asked) + len(cover(last)) <= 3 * len(looks).bit_length() + 1


def test_a_vendor_s_words_are_not_in_a_record_of_looks() -> None:
    words = Entry(
        kind=RecordKind.REFUSED, nonce="n", at=1.0, reason="invalid (400)", detail="row says: Jane Doe"
    )
    looked = Looked(shards={1: SeenShard(entries=(words,))})

    assert b"Jane" not in looked.to_json("nonce")
    assert b"invalid (400)" in looked.to_json("nonce")
