"""Files become one stream of rows, or an error that names the file and never a value."""

import gzip
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from random import randbytes
from typing import Any
from uuid import uuid4

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.warehouses.base import ARROW_TYPES
from airflow_batch_llm.warehouses.files import formats as file_csv
from airflow_batch_llm.warehouses.files.source import SOURCE_URI, FileFormat, FileSource, read_files
from tests.emulators.servers import Emulators

ROWS = [
    {"id": 1, "body": "line one\nline two", "score": 0.5},
    {"id": 2, "body": "ü\u2028👩‍👧", "score": None},
]
SECRET = "s3cret"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows in the format that the name tells."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return str(path)
    if name.endswith(".csv"):
        header = ",".join(rows[0]) + "\n"
        lines = [
            ",".join("" if v is None else f'"{v}"' if isinstance(v, str) else str(v) for v in row.values())
            for row in rows
        ]
        data = (header + "".join(line + "\n" for line in lines)).encode()
    else:
        data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def read(*uris: str | Path, **more: Any) -> list[dict[str, Any]]:
    return read_files(FileSource(uris=tuple(map(str, uris)), **more)).read_all().to_pylist()


def bare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the column that names their file."""
    return [{name: value for name, value in row.items() if name != SOURCE_URI} for row in rows]


@pytest.mark.parametrize(
    "name", ["t.parquet", "t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz", "t.ndjson", "t.json"]
)
def test_each_format_gives_the_same_rows_and_names_the_file(tmp_path: Path, name: str) -> None:
    uri = write(tmp_path / name, ROWS)
    found = read(uri)
    assert bare(found) == ROWS
    assert {row[SOURCE_URI] for row in found} == {f"file://{uri}"}


def test_the_types_are_the_same_in_each_format(tmp_path: Path) -> None:
    schemas = {
        name: read_files(FileSource(uris=(write(tmp_path / f"t.{name}", ROWS),))).schema
        for name in ("parquet", "csv", "jsonl")
    }
    assert schemas["parquet"] == schemas["csv"] == schemas["jsonl"]
    assert schemas["csv"].types == [pa.int64(), pa.string(), pa.float64(), pa.string()]


def test_a_pattern_takes_the_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for day in ("2026-02", "2026-01", "2026-10"):
        write(tmp_path / f"{day}.jsonl", [{"day": day}])
    write(tmp_path / "other.csv", [{"day": "no"}])
    (tmp_path / "2026-03.jsonl").mkdir()
    assert [row["day"] for row in read(tmp_path / "2026-*.jsonl")] == ["2026-01", "2026-02", "2026-10"]


def test_a_file_whose_name_reads_as_a_pattern_is_itself(tmp_path: Path) -> None:
    for name in ("report1", "report[1]", "what?", "whats"):
        write(tmp_path / f"{name}.jsonl", [{"name": name}])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "elsewhere")

    assert [row["name"] for row in read(tmp_path / "report[1].jsonl", tmp_path / "what?.jsonl")] == [
        "report[1]",
        "what?",
    ]
    assert len(read(tmp_path / "*.jsonl")) == 4


class _Shut(LocalFileSystem):
    """A disk with one folder that this user may not list."""

    cachable = False

    def ls(self, path: str, detail: bool = False, **more: Any) -> Any:
        if path.endswith("/shut"):
            raise PermissionError(path)
        return super().ls(path, detail=detail, **more)


@pytest.mark.parametrize("pattern", ["*/a.jsonl", "**/a.jsonl", "shut/*.jsonl"])
def test_a_folder_that_cannot_be_listed_is_an_error_and_never_an_empty_one(
    tmp_path: Path, pattern: str
) -> None:
    for day in ("open", "shut"):
        (tmp_path / day).mkdir()
        write(tmp_path / day / "a.jsonl", [{"day": day}])
    source = FileSource(uris=(f"{tmp_path}/{pattern}",))

    assert read_files(source).read_all().num_rows == (1 if pattern.startswith("shut") else 2)
    with pytest.raises(SourceError, match="this connection may not read it"):
        read_files(source, lambda uri: (_Shut(), uri))


def test_several_uris_are_read_in_the_order_given(tmp_path: Path) -> None:
    uris = [write(tmp_path / f"{n}.parquet", [{"n": n}]) for n in (2, 1)]
    assert [row["n"] for row in read(*uris)] == [2, 1]


def test_formats_may_be_mixed_where_the_columns_fit(tmp_path: Path) -> None:
    uris = [write(tmp_path / f"t.{name}", ROWS) for name in ("parquet", "csv", "jsonl")]
    assert bare(read(*uris)) == ROWS * 3


def test_a_column_that_a_file_lacks_is_null(tmp_path: Path) -> None:
    for name in ("parquet", "csv", "jsonl"):
        uris = [
            write(tmp_path / f"a.{name}", [{"id": 1}]),
            write(tmp_path / f"b.{name}", [{"id": 2, "body": "x"}]),
        ]
        assert bare(read(*uris)) == [{"id": 1, "body": None}, {"id": 2, "body": "x"}]


def test_whole_numbers_and_fractions_are_one_type(tmp_path: Path) -> None:
    for name in ("parquet", "csv", "jsonl"):
        uris = [write(tmp_path / f"a.{name}", [{"n": 1}]), write(tmp_path / f"b.{name}", [{"n": 2.5}])]
        assert bare(read(*uris)) == [{"n": 1.0}, {"n": 2.5}]


@pytest.mark.parametrize("name", ["parquet", "csv", "jsonl"])
def test_types_that_clash_are_refused_with_both_files_and_the_column(tmp_path: Path, name: str) -> None:
    first, second = write(tmp_path / f"a.{name}", [{"n": 1}]), write(tmp_path / f"b.{name}", [{"n": SECRET}])
    with pytest.raises(SourceError, match=r"Column 'n' is int64 in .*a\..* and string in .*b\.") as caught:
        read(first, second)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["parquet", "csv", "jsonl"])
def test_a_type_that_is_asked_for_ends_the_clash(tmp_path: Path, name: str) -> None:
    uris = [write(tmp_path / f"a.{name}", [{"n": 1}]), write(tmp_path / f"b.{name}", [{"n": "x"}])]
    assert bare(read(*uris, column_types={"n": pa.string()})) == [{"n": "1"}, {"n": "x"}]


def test_text_can_be_asked_for_as_a_date(tmp_path: Path) -> None:
    for name in ("parquet", "csv", "jsonl"):
        uri = write(tmp_path / f"a.{name}", [{"id": 1, "day": "2026-02-28"}, {"id": 2, "day": None}])
        found = read_files(FileSource(uris=(uri,), column_types={"day": pa.date32()}))
        assert found.schema.field("day").type == pa.date32()
        assert [str(value) for value in found.read_all().column("day").to_pylist()] == ["2026-02-28", "None"]


def test_a_late_text_in_a_column_of_numbers_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("id,n\n" + "1,1000000000\n" * 1_500_000 + f"2,{SECRET}\n")
    with pytest.raises(
        SourceError, match=r"late\.csv: column 'n' has a later value .*column_types="
    ) as caught:
        read(path)
    assert SECRET not in str(caught.value)
    last = (
        read_files(FileSource(uris=(str(path),), column_types={"n": pa.string()})).read_all().slice(1_500_000)
    )
    assert last.column("n").to_pylist() == [SECRET]


def test_a_late_field_in_json_lines_is_a_column(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"id":1}\n' * 20_000 + b'{"id":2,"late":"x"}\n')
    assert bare(read(path))[-1] == {"id": 2, "late": "x"}


def test_json_lines_that_mix_text_and_numbers_are_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"n":1}\n{"n":null}\n{"n":"%s"}\n' % SECRET.encode())
    with pytest.raises(SourceError, match=r"t\.jsonl: field 'n' is a string in line 3") as caught:
        read(path)
    assert SECRET not in str(caught.value)
    assert [row["n"] for row in read(path, column_types={"n": pa.string()})] == ["1", None, SECRET]


def test_large_rows_come_a_few_at_a_time(tmp_path: Path) -> None:
    bodies = [f"{number:05d}" * 20_000 for number in range(300)]
    pq.write_table(pa.table({"body": bodies}), tmp_path / "t.parquet", use_dictionary=False)

    batches = list(read_files(FileSource(uris=(str(tmp_path / "t.parquet"),))))

    assert max(batch.nbytes for batch in batches) <= 5 << 20
    assert [body for batch in batches for body in batch.column("body").to_pylist()] == bodies


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_of_wide_files_the_needed_columns_alone_are_handed_on(tmp_path: Path, name: str) -> None:
    uri = write(tmp_path / f"t.{name}", ROWS)
    found = read_files(FileSource(uris=(uri,)), columns=("body", SOURCE_URI, "id")).read_all()
    whole = read_files(FileSource(uris=(uri,))).read_all()
    assert found.to_pylist() == whole.select(["id", "body", SOURCE_URI]).to_pylist()


def test_nested_json_is_kept_as_json(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a":{"x":[1,null]}}\n{"a":null}\n{"a":"text"}\n')
    found = read_files(FileSource(uris=(str(path),)))
    assert found.schema.field("a").type == ARROW_TYPES[ColumnType.JSON]
    assert found.read_all().column("a").to_pylist() == ['{"x":[1,null]}', None, '"text"']


def test_a_line_ends_at_the_newline_byte_only(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    text = "a\u2028b\u0085c\x0bd\x1ce"
    path.write_text(
        f'{{"body":"{text}"}}\r\n\n  \n{{"body":"last"}}'.replace("\x0b", "\\u000b").replace(
            "\x1c", "\\u001c"
        )
    )
    assert [row["body"] for row in read(path)] == [text, "last"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"a":1}\n{"a":"' + SECRET.encode() + b"\n", "line 2 is no JSON object"),
        (b"[1]\n", "line 1 is no JSON object"),
        (b'{"a":"\xff"}\n', "line 1 is no JSON object"),
        (b'{"a":1}\n{"a":18446744073709551615}\n', "field 'a' holds a value that cannot be read as int64"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(SourceError, match=complaint) as caught:
        read(tmp_path / "t.jsonl")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a,b\n1,2\n3\n", "a row has 1 column, and the header 2"),
        (b"a,b\n1,\xff" + SECRET.encode() + b"\n", "'b' is not written in UTF-8"),
        (b"a,a\n1,2\n", "several columns named a"),
        (b"_llm_source_uri\nx\n", "a name that is kept"),
        (b'a\n"' + b"x" * (140 << 20), "longer than 64 MB"),
    ],
)
def test_a_broken_csv_is_named_with_what_is_wrong(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(SourceError, match=complaint) as caught:
        read(tmp_path / "t.csv", column_types={})
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


class SlowFile(BytesIO):
    """A file on a slow disk: a thread of Arrow's that reads ahead is still at it when the next reader begins."""

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(0.001)
        return super().read(size)


def test_a_long_row_costs_no_other_row_when_the_file_is_read_again_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_csv, "_BLOCKS", (1 << 10, 8 << 10, 64 << 10))
    short = b'"short"\n' * 2_000
    content = b"a\n" + short + b'"' + b"x" * (3 << 10) + b'"\n' + short
    file = file_csv.CsvFile()
    schema = file.schema(BytesIO(content))

    rows = [sum(batch.num_rows for batch in file.batches(SlowFile(content), schema)) for _ in range(20)]

    assert set(rows) == {4_001}


@pytest.mark.parametrize("name", ["t.parquet", "t.csv.gz", "t.jsonl.gz"])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = Path(write(tmp_path / name, [{"body": os.urandom(50).hex()} for _ in range(1_000)]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match=f"{name}: "):
        read(path)


def test_empty_files_give_no_rows_beside_others(tmp_path: Path) -> None:
    for name in ("csv", "jsonl", "csv.gz"):
        full, empty = write(tmp_path / f"a.{name}", [{"id": 1}]), tmp_path / f"b.{name}"
        empty.write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
        assert bare(read(full, empty)) == bare(read(empty, full)) == [{"id": 1}]


def test_a_file_of_columns_without_rows_has_a_schema_and_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,body\n")
    found = read_files(FileSource(uris=(str(tmp_path / "t.csv"),)))
    assert found.schema.names == ["id", "body", SOURCE_URI]
    assert found.schema.types == [pa.string()] * 3
    assert found.read_all().num_rows == 0


def test_nothing_but_empty_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"")
    with pytest.raises(SourceError, match="no columns"):
        read(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("none.csv", "there is no such file"),
        ("none-*.csv", "matches no file"),
        ("", "is a folder"),
        ("t.txt", "does not tell the format"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, uri: str, complaint: str) -> None:
    (tmp_path / "t.txt").write_text("id\n1\n")
    with pytest.raises(SourceError, match=complaint):
        read(tmp_path / uri)


def test_the_format_can_be_said_where_the_name_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("id;body\n1;a,b\n")
    assert bare(read(tmp_path / "t.txt", format=FileFormat.CSV, delimiter=";")) == [{"id": 1, "body": "a,b"}]


def test_long_texts_are_read_whole_and_every_row_once(tmp_path: Path) -> None:
    rows = [{"id": n, "body": "x" * (5_000_000 if n % 400 == 399 else 4_000)} for n in range(1_200)]
    for name in ("csv", "jsonl"):
        assert bare(read(write(tmp_path / f"t.{name}", rows))) == rows


def test_a_tsv_file_has_tabs(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("id\tbody\n1\ta,b\n")
    assert bare(read(tmp_path / "t.tsv")) == [{"id": 1, "body": "a,b"}]


@pytest.mark.parametrize("name", ["parquet", "csv", "jsonl"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, name: str) -> None:
    def peak(count: int) -> int:
        # Texts that cannot be compressed, so that the file is no smaller than the rows.
        rows = [{"id": n, "body": randbytes(200).hex()} for n in range(count)]
        uri = write(tmp_path / f"{count}.{name}", rows)
        del rows
        pool = pa.default_memory_pool()
        most = before = pool.bytes_allocated()
        tracemalloc.start()
        for batch in read_files(FileSource(uris=(uri,))):
            most = max(most, pool.bytes_allocated())
            del batch
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most - before + python

    peak(1_000)  # what is allocated once
    assert peak(400_000) < 110 << 20  # the rows themselves are 160 MB


@pytest.fixture
def bucket(emulators: Emulators, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], str]:
    """Puts an object into a new bucket of the Cloud Storage on loopback and gives its URI."""
    for name, value in emulators.environ.items():
        monkeypatch.setenv(name, value)
    import gcsfs

    system = gcsfs.GCSFileSystem(token="anon", endpoint_url=emulators.storage, skip_instance_cache=True)
    name = f"b{uuid4().hex[:12]}"
    system.mkdir(name)

    def put(path: str, data: bytes) -> str:
        with system.open(f"{name}/{path}", "wb") as file:
            file.write(data)
        return f"gs://{name}/{path}"

    return put


def test_objects_in_cloud_storage_are_read(emulators: Emulators, bucket: Callable[[str, bytes], str]) -> None:
    import gcsfs

    def find(uri: str) -> tuple[gcsfs.GCSFileSystem, str]:
        return gcsfs.GCSFileSystem(token="anon", endpoint_url=emulators.storage), uri.removeprefix("gs://")

    first = bucket("2026/01 a.jsonl", b'{"id":1}\n')
    source = FileSource(uris=(first.replace("01 a", "*"),))
    assert [row["id"] for row in read_files(source, find).read_all().to_pylist()] == [1]
    second = bucket("2026/02.jsonl", b'{"id":2}\n')
    found = read_files(source, find).read_all().to_pylist()
    assert found == [{"id": 1, SOURCE_URI: first}, {"id": 2, SOURCE_URI: second}]
    with pytest.raises(SourceError, match="there is no such file"):
        read_files(FileSource(uris=(f"{first}l",), format=FileFormat.JSONL), find)


@pytest.fixture
def s3() -> Iterator[Callable[[str], tuple[Any, str]]]:
    """Finds files in a bucket `lake` of an S3 on loopback."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    system = s3fs.S3FileSystem(
        key="k", secret="s", endpoint_url=f"http://{host}:{port}", skip_instance_cache=True
    )
    system.call_s3("create_bucket", Bucket="lake")
    yield lambda uri: (system, uri.removeprefix("s3://"))
    server.stop()


def test_objects_in_s3_are_read(s3: Callable[[str], tuple[Any, str]], tmp_path: Path) -> None:
    system, _ = s3("")
    for name in ("a.parquet", "b.csv.gz"):
        system.pipe_file(f"lake/in/{name}", Path(write(tmp_path / name, ROWS)).read_bytes())
    found = read_files(FileSource(uris=("s3://lake/in/*.parquet", "s3://lake/in/b.csv.gz")), s3).read_all()
    assert bare(found.to_pylist()) == ROWS * 2
    assert (
        found.column(SOURCE_URI).to_pylist() == ["s3://lake/in/a.parquet"] * 2 + ["s3://lake/in/b.csv.gz"] * 2
    )
