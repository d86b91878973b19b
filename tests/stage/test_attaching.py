"""Images and PDFs beside the prompt: in each vendor's own form, paid for once, and told of by the rows' keys only."""

import struct
import traceback
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import orjson
import pyarrow as pa
import pytest

from airflow_batch_llm.core.attachment import Attachment, AttachmentRules, Unattachable
from airflow_batch_llm.core.journal import Doer
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.output_type import Embedding
from airflow_batch_llm.core.settings import Escalation, Route, Source
from airflow_batch_llm.errors import DeadlinePassed, InputError, Refused, StoreUnavailable
from airflow_batch_llm.providers.base import StoresFiles
from airflow_batch_llm.providers.routed import routed as together
from airflow_batch_llm.stage.erasing import Erasure, Options
from airflow_batch_llm.stage.person import Person
from airflow_batch_llm.stage.plan.attaching import Attaching
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.send.uploading import UploadLog
from tests.stage.kills import Kill
from tests.stage.processes import Job
from tests.stage.test_partitions import completed, opened, read
from tests.stage.world import Bench, World
from tests.store.servers import gcs_filesystem, s3_filesystem, s3_server
from tests.vendors import MODELS

#: A signed URI is a secret, wherever it turns up.
SECRET = "X-Signature=5ecret"
URI = f"https://files.example/{{}}.png?{SECRET}"


def png(width: int = 8, height: int = 8, noise: int = 0) -> bytes:
    """Return an image of this size, with this many bytes that say nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(width) for _ in range(height)))
    note = chunk(b"tEXt", b"x" * noise) if noise else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + note + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PDF = b"%PDF-1.4\n1 0 obj <</Type /Pages>> endobj\n2 0 obj <</Type /Page>> endobj\n3 0 obj <</Type /Page>> endobj"


def make_photos(world: World, values: Mapping[int, Any], type_: str = "VARCHAR") -> None:
    """Make the source: an id, and an image or a PDF."""
    with duckdb.connect(str(world.database)) as connection:
        connection.execute(f"CREATE OR REPLACE TABLE tickets (id INTEGER, subject VARCHAR, photo {type_})")
        rows = [(key, f"photo {key}", value) for key, value in values.items()]
        connection.executemany("INSERT INTO tickets VALUES (?, ?, ?)", rows)


ASKED: Mapping[str, Any] = {"prompt": "Which kind of ticket is this?", "attachments": ["photo"]}


#: Verbs after which a killed submitter leaves something behind.
STEPS = {"workspace.append", "provider.store_file", "provider.submit"}


def test_a_killed_run_uploads_and_pays_each_image_once(anthropic: Bench, tmp_path: Path) -> None:
    given = {**ASKED, "upload_attachments": "always"}

    def fresh(name: str) -> World:
        world = replace(anthropic.world, folder=tmp_path / name)
        world.folder.mkdir()
        world.begin()
        make_photos(world, {1: png()}, "BLOB")
        return world

    verbs = Job(world=fresh("undisturbed"), changes=given).run().verbs
    stored, submitted = verbs.index("provider.store_file") + 1, verbs.index("provider.submit") + 1
    points = [n for n in range(stored - 3, submitted + 1) if verbs[n - 1] in STEPS]
    assert [verbs[n - 1] for n in points] == [
        "workspace.append", "provider.store_file", *["workspace.append"] * 2, "provider.submit"
    ]  # fmt: skip
    del points[-2]  # the intent, which others test
    for number in points:
        world = fresh(str(number))
        assert Job(world=world, changes=given, kill=Kill(number, after=True)).run().killed
        ended = Job(world=world, changes=given).run()
        assert not ended.error, ended.error
        assert (world.charged(), len(world.answers()), world.unfinished()) == (1, 1, [])
        assert world.ledger()["calls"]["upload"] == 1, f"killed after {verbs[number - 1]}"
        assert stored_files(world) == {}


def stored_files(world: World) -> Mapping[str, str]:
    """Return the attachments that the vendor keeps."""
    provider = world.provider()
    assert isinstance(provider, StoresFiles)
    try:
        return {stored: name for name, found in provider.find_files("llm-").items() for stored in found}
    finally:
        provider.close()


def uploads(bench: Bench, run: str = "dag/task/run") -> list[str]:
    """Return the hashes of what a run has uploaded."""
    folder = bench.world.folder / "workspace" / run / "g1/uploads"
    records = [orjson.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    return [name for record in records for name in record.get("names", ())]


def test_an_image_of_several_rows_and_one_beyond_the_limit_are_uploaded_once(bench: Bench) -> None:
    large = {"anthropic": PDF + b" " * 23_000_000, "vertex": png(noise=7_000_000)}
    vendor = bench.world.provider_name
    shared, single = png(noise=150_000), png(9, 9, noise=150_000)
    make_photos(bench.world, {1: shared, 2: shared, 3: single, 4: large.get(vendor, PDF), 5: png()}, "BLOB")
    given = {**ASKED, "prompt": "{{ subject }}: which kind is it?"}
    if vendor == "openai":  # other hosts are not known to store files
        given |= {"upload_attachments": "always", "endpoint": "/v1/responses"}
    bench.fault(kind="invalid", rows=[0])

    done = bench.complete(**given)

    assert done.report.final == {Outcome.SUCCEEDED: 5}
    assert bench.world.charged() == 5 + 1, "the invalid answer is asked for again, with the same upload"
    expected = [shared, large[vendor]] if vendor != "openai" else [shared, single, PDF, png()]
    assert sorted(uploads(bench)) == sorted(sha256(data).hexdigest() for data in expected)
    assert len(sent(bench)) < 300_000
    assert (b64encode(single) in sent(bench)) is (vendor != "openai")
    assert stored_files(bench.world) == {}, "the run has landed"
    told = "".join(bench.said)
    assert f"{len(expected)} attachments are uploaded" in told
    assert "iVBOR" not in told


@pytest.mark.parametrize(
    ("vendor", "status", "way"),
    [("anthropic", 413, "batch"), ("anthropic", 403, "batch"), ("openai", 400, "now")],
)
def test_an_attachment_that_the_vendor_refuses_costs_its_row_only(
    request: pytest.FixtureRequest, vendor: str, status: int, way: str
) -> None:
    bench: Bench = request.getfixturevalue(vendor)
    make_photos(bench.world, {**{key: png(8 + key, 8) for key in range(3)}, 3: None}, "BLOB")
    given = {**ASKED, "upload_attachments": "always", "way": way}
    if vendor == "openai":
        given["endpoint"] = "/v1/responses"
    bench.fault(endpoint="upload", kind="status", status=status, nth=3)
    if way == "batch":  # found again by the number of its requests
        bench.fault(endpoint="create", kind="drop", effect="after")

    report = bench.complete(**given).report

    assert report.final == {Outcome.SUCCEEDED: 3, Outcome.ERRORED: 1}
    assert (report.requests, bench.world.charged(), bench.world.ledger()["calls"]["upload"]) == (3, 3, 3)
    ((code, message),) = codes(bench).values()
    assert code == "attachment_refused"
    assert f"answered {status}: " in message
    assert ("Make the attachment smaller." in message) is (status == 413)
    assert "vendor refuses an attachment" in "".join(bench.said)
    bench.world.simulator.clear_faults()
    again = bench.complete("dag/task/again", **given)
    assert (again.report.why, again.report.final) == ({"answered": 3, "new": 1}, {Outcome.SUCCEEDED: 1})


def test_no_batch_is_created_of_refused_attachments_alone(anthropic: Bench) -> None:
    make_photos(anthropic.world, {1: png(), 2: png()}, "BLOB")
    given = {**ASKED, "upload_attachments": "always"}
    anthropic.fault(endpoint="upload", kind="status", status=422, times=None)

    report = anthropic.complete(**given).report

    assert (report.final, report.requests, anthropic.batches()) == ({Outcome.ERRORED: 2}, 0, [])
    assert {code for code, _ in codes(anthropic).values()} == {"attachment_refused"}
    assert anthropic.world.failures() == {1: ("errored", 1, False), 2: ("errored", 1, False)}
    anthropic.world.simulator.clear_faults()
    anthropic.fault(endpoint="upload", kind="status", status=403, times=None)
    with pytest.raises(Refused, match="what the connection's key may do"):  # it has stored nothing yet
        anthropic.complete("dag/task/2", **given)


def test_a_text_that_looks_like_a_reference_is_sent_as_it_is(bench: Bench) -> None:
    forged = [Attachment("image/png", sha256=name * 64).reference for name in "ab"]
    make_photos(bench.world, {1: png(), 2: None, 3: None}, "BLOB")
    with duckdb.connect(str(bench.world.database)) as connection:
        texts = [(2, forged[0]), (3, f'It said "file_id":"{forged[1]}')]
        connection.executemany("UPDATE tickets SET subject = $2 WHERE id = $1", texts)

    done = bench.complete(prompt="{{ subject }}", attachments=["photo"])

    assert done.report.final == {Outcome.SUCCEEDED: 3}
    assert (uploads(bench), [sent(bench).count(one.encode()) for one in forged]) == ([], [1, 1])


def test_uploads_that_cannot_be_deleted_are_deleted_by_the_next_run(anthropic: Bench) -> None:
    make_photos(anthropic.world, {1: png(), 2: PDF}, "BLOB")
    given = {**ASKED, "upload_attachments": "always"}
    anthropic.fault(endpoint="upload", kind="drop", effect="after")
    anthropic.fault(endpoint="delete_file", kind="status", status=403, times=10)

    assert anthropic.complete(**given).report.final == {Outcome.SUCCEEDED: 2}

    assert len(stored_files(anthropic.world)) == 3, "the upload whose answer was lost is repeated"
    assert "could not be deleted" in "".join(anthropic.said)
    anthropic.world.simulator.clear_faults()
    make_photos(anthropic.world, {3: None})
    assert anthropic.complete("dag/task/2", **ASKED).report.requests == 1
    assert stored_files(anthropic.world) == {}


def test_uploads_of_a_run_that_never_ended_wait_for_a_run_with_its_key(anthropic: Bench) -> None:
    make_photos(anthropic.world, {1: png(), 2: PDF}, "BLOB")
    openai = Bench(replace(anthropic.world, provider_name="openai"))
    texts = {"target": "elsewhere", "only": "all", "prompt": "{{ id }}"}

    def by(conn_id: str) -> dict[str, Any]:
        return {"parts": {"by": Doer(host="worker", conn_id=conn_id)}, "keep_days": 0.0}

    given = {**ASKED, "upload_attachments": "always"}
    anthropic.advance(anthropic.run(**by("ours"), **given))
    anthropic.world.sleep(10 * 86_400.0)
    for bench, conn_id in ((openai, "ours"), (anthropic, "theirs")):
        bench.complete(bench.run(f"dag/task/{conn_id}", **by(conn_id), **texts))
        assert not (anthropic.world.folder / "workspace/dag/task/run/g1/attachments").exists()
        assert len(stored_files(anthropic.world)) == 2, "to another key they look as if they were gone"

    anthropic.complete(anthropic.run("dag/task/last", **by("ours"), **texts))

    assert stored_files(anthropic.world) == {}


def test_a_batch_that_runs_on_after_the_deadline_keeps_its_uploads(anthropic: Bench) -> None:
    make_photos(anthropic.world, {1: png(), 2: PDF}, "BLOB")
    given = {**ASKED, "upload_attachments": "always"}
    anthropic.fault(kind="hold", nth=1)
    with pytest.raises(DeadlinePassed):
        anthropic.complete(**given, timeout=600, cancel_on_timeout=False)
    assert len(stored_files(anthropic.world)) == 2
    anthropic.world.simulator.finish(*anthropic.world.ledger()["running"])

    done = anthropic.complete("dag/task/2", **given)

    assert (done.report.why, anthropic.world.charged()) == ({"answered": 2}, 2)


def test_an_upload_that_the_vendor_may_have_deleted_is_not_used_again(anthropic: Bench) -> None:
    folder, day = RunFolder(workspace=anthropic.world.workspace(), run="old"), 86_400.0
    folder.add_upload(orjson.dumps({"via": "", "at": 0.0, "word": "llm-1", "begun": ["a", "b", "c"]}))
    folder.add_upload(orjson.dumps({"via": "", "at": day, "names": {"a": "file_1"}}))
    folder.add_upload(orjson.dumps({"via": "", "at": 9 * day, "names": {"b": "file_2", "c": "file_3"}}))
    folder.add_upload(orjson.dumps({"via": "", "at": 9 * day, "deleted": ["file_3"]}))
    log = UploadLog()
    log.read(folder)
    assert log.names("", ["a", "b", "c"], 2 * day) == {"b": "file_2"}
    assert (log.names("other", ["a", "b"], 0.0), log.stored(""), [*log.open]) == (
        {},
        {"file_1", "file_2"},
        ["llm-1"],
    )


def test_tasks_that_read_parts_of_the_source_upload_what_their_rows_share(anthropic: Bench) -> None:
    shared, single = png(noise=150_000), png(9, 9, noise=150_000)
    make_photos(anthropic.world, {key: single if key == 5 else shared for key in range(9)}, "BLOB")
    given = {**ASKED, "prompt": "{{ subject }}: which kind is it?"}
    opening = opened(anthropic, **given)
    read(anthropic, opening, **given)

    report = completed(anthropic, opening, **given).report

    assert (report.final, anthropic.world.charged()) == ({Outcome.SUCCEEDED: 9}, 9)
    assert uploads(anthropic) == [sha256(shared).hexdigest()]
    assert len(sent(anthropic)) < 300_000
    assert stored_files(anthropic.world) == {}


def codes(bench: Bench) -> dict[int, tuple[str, str]]:
    """Return code and message of the rows without an answer."""
    rows = bench.world.ask("SELECT id, _llm_error_code, _llm_error_message FROM labels__failures")
    return {key: (code, message) for key, code, message in rows}


def sent(bench: Bench, run: str = "dag/task/run") -> bytes:
    """Return the request lines of a run."""
    folder = bench.world.folder / "workspace" / run
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*.requests.jsonl")))


def test_bytes_travel_with_the_prompt_and_what_no_model_reads_costs_its_row_only(bench: Bench) -> None:
    large = 7_000_000
    rows = {1: png(1000, 1000), 2: PDF, 3: None, 4: b"<html>", 5: png(noise=large), 6: png(1000, 1000)}
    if bench.world.provider_name == "openai":  # it takes more than a quick test reads
        rows[5] = b"%!PS"
    make_photos(bench.world, rows, "BLOB")
    bench.fault(kind="invalid", rows=[0])

    done = bench.complete(**ASKED, upload_attachments="never")

    assert done.report.final == {Outcome.SUCCEEDED: 4, Outcome.ERRORED: 2}
    assert bench.world.charged() == 3 + 1, (
        "equal bytes share a request, and the invalid answer is asked for again"
    )
    shown = codes(bench)
    assert shown[4][0] == "attachment_type"
    if bench.world.provider_name != "openai":
        assert shown[5][0] == "attachment_size"
        assert f"the column 'photo' has {large:,}"[:-3] in shown[5][1]
    charges = sorted(
        row["input"] for row in bench.world.simulator.charges(provider=bench.world.provider_name)
    )
    assert charges[0] < 30 < 200 < charges[1], "an image is no text, and it is counted"
    again = bench.complete("dag/task/again", **ASKED, upload_attachments="never")
    assert again.report.why == {"answered": 4, "unsendable": 2}


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The file system of a bucket on loopback."""
    if request.param == "gs":
        yield gcs_filesystem(request.getfixturevalue("storage"), "gs")
    else:
        with s3_server() as url:
            yield s3_filesystem(url, "s3")


@pytest.mark.parametrize(
    ("vendor", "bucket"), [("vertex", "gs"), ("vertex", "s3"), ("openai", "gs")], indirect=["bucket"]
)
def test_an_object_is_read_by_the_vendor_or_by_the_worker_and_a_new_one_is_asked_about(
    request: pytest.FixtureRequest, bucket: Any, vendor: str
) -> None:
    bench: Bench = request.getfixturevalue(vendor)
    scheme = bucket.protocol[-1]  # gcs or s3a, which no vendor knows
    bucket.pipe_file("bucket/a.png", png())
    bucket.pipe_file("bucket/b.pdf", PDF)
    values = {1: "a.png", 2: "b.pdf", 3: "gone.png", 4: "a.png"}
    make_photos(bench.world, {key: f"{scheme}://bucket/{name}" for key, name in values.items()})
    parts = {"find_object": lambda uri: (bucket, bucket._strip_protocol(uri))}

    report = bench.complete(bench.run(parts=parts, **ASKED)).report

    assert report.final == {Outcome.SUCCEEDED: 3, Outcome.ERRORED: 1}
    assert bench.world.charged() == 2
    assert codes(bench)[3][0] == "attachment_missing"
    assert (b"gs://bucket/a.png" in sent(bench)) is (scheme == "gcs" and vendor == "vertex")
    assert bench.complete(bench.run("dag/task/2", parts=parts, **ASKED)).report.requests == 0
    bucket.pipe_file("bucket/a.png", png(9, 9))
    assert bench.complete(bench.run("dag/task/3", parts=parts, **ASKED)).report.why["changed"] == 2


def test_the_worker_fetches_no_address_and_no_file_that_a_row_names(bench: Bench) -> None:
    is_fetched = bench.world.provider_name != "vertex"
    odd = ["http://169.254.169.254/a.png", "file:///etc/passwd", "/etc/passwd", "gs://other@bucket/a.png", ""]
    make_photos(
        bench.world,
        {0: URI.format("a"), **dict(enumerate(odd, 1)), 8: "https://[::1", 9: "https://files.example/a.mp4"},
    )
    asked: list[str] = []

    def find(uri: str) -> tuple[Any, str]:
        asked.append(uri)
        return Untouchable(), ""

    report = bench.complete(bench.run(parts={"find_object": find}, **ASKED)).report

    assert report.final.get(Outcome.SUCCEEDED, 0) == 2 * is_fetched
    assert asked == ["gs://any"], "no value of a row chooses a connection"
    told = codes(bench)
    assert {told[key][0] for key in range(1, 6)} == {"attachment_uri"}
    assert told[9][0] == "attachment_type"
    for _, message in told.values():
        assert not [word for word in ("://", "passwd", SECRET) if word in message]


class Untouchable:
    """A file system that nobody may ask."""

    def invalidate_cache(self) -> None: ...


def test_no_uri_leaves_the_requests(openai: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench = openai
    make_photos(bench.world, {1: URI.format("a"), 2: URI.format("b")})
    quoted = f"Error while downloading {URI.format('a')}. See 'data:image/png;base64,c2VjcmV0'."
    bench.fault(kind="errored", rows=[0], code="invalid_image_url", message=quoted, status=400)
    with caplog.at_level("DEBUG"):
        report = bench.complete(**ASKED).report

    assert codes(bench)[1] == ("invalid_image_url", "Error while downloading [URI] See '[URI]'.")
    told = [
        *bench.said,
        caplog.text,
        str(report.to_json()),
        str(bench.world.ask("FROM labels")),
        str(codes(bench)),
    ]
    assert not [text for text in told if SECRET in text or "c2VjcmV0" in text]


@pytest.mark.parametrize("uploaded", ["auto", "always"])
def test_an_image_goes_on_to_a_model_of_another_vendor_in_that_vendors_form(
    openai: Bench, uploaded: str
) -> None:
    bench = openai
    make_photos(bench.world, {1: png(), 2: png(9, 9), 3: None, 4: PDF}, "BLOB")
    other = replace(bench.world, provider_name="anthropic")
    parts = {"provider": together(bench.world.provider(), {"anthropic": other.provider()})}
    bench.fault(kind="invalid", rows=[0, 1, 2, 3])
    given = {
        **ASKED,
        "routes": {"strong": Route(model_id=f"anthropic:{MODELS['anthropic']}")},
        "escalate": [Escalation(to="strong", on={"invalid"})],
        "max_attempts": 1,
        "upload_attachments": uploaded,
    }

    report = bench.complete(bench.run(parts=parts, **given)).report

    assert report.final == {Outcome.SUCCEEDED: 4}
    assert bench.world.simulator.ledger()["anthropic"]["rows"]["charged"] == 4
    # At its default endpoint OpenAI reads PDFs from files, and no images.
    assert uploads(bench) == [sha256(PDF).hexdigest()] * (2 if uploaded == "always" else 0)
    assert not stored_files(bench.world)
    assert not stored_files(other)


def test_images_are_asked_about_in_real_time_after_a_canary(bench: Bench) -> None:
    make_photos(bench.world, {key: png(8 + key, 8) for key in range(5)}, "BLOB")
    given = {**ASKED, "way": "now", "canary": 2, "upload_attachments": "always"}
    if bench.world.provider_name == "openai":
        given["endpoint"] = "/v1/responses"
    report = bench.complete(**given).report
    assert (report.final, bench.world.charged(), len(uploads(bench))) == ({Outcome.SUCCEEDED: 5}, 5, 5)
    folder = RunFolder(workspace=bench.world.workspace(), run="dag/task/run")
    records = [orjson.loads(data) for _, data in folder.uploads()]
    uploaded = [record["at"] for record in records if "names" in record]
    asked = [folder.journal(number)[0].at for number in (1, 2)]
    assert uploaded[0] < asked[0] < uploaded[1] < asked[1], "no lease runs while attachments are uploaded"


def test_the_estimate_says_what_it_assumes_and_learns_what_images_cost(anthropic: Bench) -> None:
    make_photos(anthropic.world, {key: f"https://files.example/{key}.png" for key in range(30)})
    first = anthropic.complete(**ASKED).report
    assumed = "The size of 30 of them is not known: an image is taken to have 1,600 tokens"
    assert assumed in " ".join(anthropic.said)
    assert 0.1 < first.estimate_off["input_tokens"] < 0.25
    second = anthropic.complete("dag/task/night", only="all", **ASKED).report
    assert abs(second.estimate_off["input_tokens"]) < 0.02

    make_photos(anthropic.world, {key: png(750, 8 + key) for key in range(5)}, "BLOB")
    anthropic.said.clear()
    measured = anthropic.complete("dag/task/bytes", **{**ASKED, "prompt": "And this?"}).report
    assert "not known" not in " ".join(anthropic.said)
    assert abs(measured.estimate_off["input_tokens"]) < 0.3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rows_per_request": 2}, "confuses the images"),
        ({"output_type": Embedding(), "endpoint": "/v1/embeddings", "max_tokens": None}, "takes text only"),
        ({"attachments": ["image"]}, "no column 'image'"),
        ({"attachments": ["id"]}, "must hold URIs as text, or bytes"),
        # In the hash of a row the attachment would stand for this column: rows that differ in it would share a request.
        (
            {"source": Source(sql='SELECT *, subject AS "attachment photo" FROM tickets')},
            "another name in the source",
        ),
    ],
)
def test_what_cannot_be_attached_is_refused_before_anything_is_sent(
    openai: Bench, given: Mapping[str, Any], said: str
) -> None:
    make_photos(openai.world, {1: URI.format("a")})
    with pytest.raises(InputError, match=said):
        openai.complete(**{**ASKED, **given})
    assert openai.world.charged() == 0


def test_a_function_is_given_no_attachment_and_a_row_is_erased_with_its_own(openai: Bench) -> None:
    make_photos(openai.world, {1: URI.format("a"), 2: URI.format("b")})
    given = {**ASKED, "prompt": subject_of}
    assert openai.complete(**given).report.final == {Outcome.SUCCEEDED: 2}
    assert b"/b.png" in sent(openai)

    person = Person(values=("2",), columns=())
    scratch = openai.world.folder / "erasing"
    scratch.mkdir()
    (erased,) = Erasure(workspace=openai.workspace or openai.world.workspace(), person=person, scratch=scratch,
                        options=Options()).run()  # fmt: skip

    assert erased.rows == 1
    assert b"/b.png" not in sent(openai)
    assert b"/a.png" in sent(openai)


def test_an_uploaded_attachment_is_erased_with_its_row(anthropic: Bench) -> None:
    make_photos(anthropic.world, {1: PDF, 2: png()}, "BLOB")
    anthropic.complete(**ASKED, upload_attachments="always")
    kept = anthropic.world.folder / "workspace/dag/task/run/g1/attachments"
    assert len(list(kept.iterdir())) == 2
    scratch = anthropic.world.folder / "erasing"
    scratch.mkdir()

    (erased,) = Erasure(workspace=anthropic.world.workspace(), person=Person(values=("2",), columns=()), scratch=scratch,
                        options=Options()).run()  # fmt: skip

    assert erased.rows == 1
    assert [path.name for path in kept.iterdir()] == [sha256(PDF).hexdigest()]


def subject_of(row: Mapping[str, Any]) -> str:
    assert "photo" not in row
    return str(row["subject"])


RULES = AttachmentRules(
    inline={"image/png": 200, "application/pdf": 200},
    by_uri={},
    most=1,
    most_pages=1,
    most_pixels=100,
    tokens=lambda _: 1,
    assumption="",
)


def test_the_hash_of_a_row_covers_bytes_uri_or_etag() -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("s3://bucket/a.png", png())
    attaching = Attaching(columns=("photo",), rules=RULES, find=lambda uri: (system, uri))
    values = ["https://a.example/b.png", "s3://bucket/a.png", "s3://bucket/gone.png", None]
    hashed = attaching.of(pa.record_batch({"photo": values})).hashed()
    expected = [values[0], f"{values[1]} ", f"{values[2]} attachment_missing", None]
    assert hashed == {"attachment photo": expected}
    hashed = attaching.of(pa.record_batch({"photo": [b"bytes", None]})).hashed()
    digest = "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9"
    assert hashed == {"attachment photo": [f"sha256:{digest}", None]}


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (png(100, 100), None, ""),
        (png(101, 9), "attachment_size", "has 101 by 9 pixels; the model takes 100 a side"),
        (
            png(noise=200),
            "attachment_size",
            "bytes, and the model takes 200 of an image/png: make it smaller",
        ),
        (PDF, "attachment_pages", "has 2 pages, with those of the row's other PDFs, and the model takes 1"),
        (b"GIF89a\1\0\1\0", "attachment_type", "is image/gif; the model takes application/pdf, image/png"),
        (b"", "attachment_type", "is not an image or a PDF of a known kind"),
    ],
)
def test_what_does_not_fit_says_why(data: bytes, code: str | None, said: str) -> None:
    attaching = Attaching(columns=("photo",), rules=RULES, find=lambda uri: (None, uri))
    (found,) = attaching.of(pa.record_batch({"photo": [data]})).of_rows([0])
    if code is None:
        assert isinstance(found, list)
    else:
        assert isinstance(found, Unattachable)
        assert found.code == code
        assert said in found.message


def test_an_outage_of_a_bucket_ends_the_plan_and_quotes_no_uri(openai: Bench) -> None:
    make_photos(openai.world, {1: f"s3://bucket/a.png?{SECRET}"})

    with pytest.raises(StoreUnavailable, match=r"cannot be read \(ConnectionError\)") as caught:
        openai.complete(openai.run(parts={"find_object": lambda uri: (Unreachable(), uri)}, **ASKED))

    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert openai.world.charged() == 0


class Unreachable(Untouchable):
    """The file system of a bucket that does not answer."""

    def _strip_protocol(self, uri: str) -> str:
        return uri

    def info(self, path: str) -> dict[str, Any]:
        raise ConnectionError(f"no answer about {path}")
