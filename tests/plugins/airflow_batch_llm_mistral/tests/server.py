"""Mistral's batch API on loopback, in a process of its own, and its handle. Only the standard library is imported."""

import gzip
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_KEPT_SECONDS = 30 * 86_400
_PATHS = (
    ("POST", r"/v1/files", "upload"),
    ("GET", r"/v1/files/([^/]+)/content", "content"),
    ("DELETE", r"/v1/files/([^/]+)", "delete"),
    ("POST", r"/v1/batch/jobs", "create"),
    ("GET", r"/v1/batch/jobs", "list"),
    ("GET", r"/v1/batch/jobs/([^/]+)", "retrieve"),
    ("POST", r"/v1/batch/jobs/([^/]+)/cancel", "cancel"),
)
_CALL_FAULTS = ("drop", "status", "delay", "body", "bomb", "cut")
_ROW_FAULTS = ("errored", "truncated", "empty", "odd", "surrogate", "missing", "bad_line", "duplicated")


class MistralServer:
    """Starts the server on a free port, and on the same one again."""

    def __init__(self) -> None:
        self._port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        command = [sys.executable, __file__, str(self._port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def reset(self) -> None:
        self._do("reset")

    def fault(self, **fault: Any) -> None:
        self._do("fault", **fault)

    def clear_faults(self) -> None:
        self._do("clear_faults")

    def turn(self, **knobs: Any) -> None:
        self._do("turn", **knobs)

    def clock(self, *, advance_seconds: float = 0.0, settle: bool = False) -> float:
        return float(self._do("clock", advance_seconds=advance_seconds))

    def batch(self, batch_id: str, action: str) -> None:
        self._do("batch", batch_id=batch_id, action=action)

    def ledger(self) -> dict[str, Any]:
        return {"mistral": self._do("ledger")}

    def _do(self, verb: str, **arguments: Any) -> Any:
        request = urllib.request.Request(
            f"{self.url}/control/{verb}", data=json.dumps(arguments).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


class NotOk(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class World:
    """Jobs, files, faults and the books."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reset()

    # -- control ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, tuple[float, bytes]] = {}
        self.faults: list[dict[str, Any]] = []
        self.knobs: dict[str, Any] = {}
        self.calls: dict[str, int] = {}
        self.charged = 0
        self.tokens = {"input": 0, "output": 0, "cached": 0, "reasoning": 0}
        self.offset = 0.0

    def fault(self, **fault: Any) -> None:
        assert fault["kind"] in (*_CALL_FAULTS, *_ROW_FAULTS, "hold", "expire"), fault
        self.faults.append({**fault, "seen": 0})

    def clear_faults(self) -> None:
        self.faults = []

    def turn(self, **knobs: Any) -> None:
        self.knobs |= knobs

    def clock(self, advance_seconds: float) -> float:
        self.offset += advance_seconds
        return self.now()

    def batch(self, batch_id: str, action: str) -> None:
        assert action == "end"
        self._finish(self.jobs[batch_id], "SUCCESS", 1.0)

    def ledger(self) -> dict[str, Any]:
        return {
            "batches": list(self.jobs),
            "calls": self.calls,
            "rows": {"charged": self.charged},
            "tokens": self.tokens,
        }

    def now(self) -> float:
        return time.time() + self.offset

    def met(self, endpoint: str | None) -> list[dict[str, Any]]:
        """The faults that strike this call, or (None) the batch that is created now."""
        struck = []
        for fault in self.faults:
            if (fault["kind"] in _CALL_FAULTS) != (endpoint is not None):
                continue
            if endpoint is not None and fault["endpoint"] not in (endpoint, "any"):
                continue
            fault["seen"] += 1
            first, times = fault.get("nth", 1), fault.get("times", 1)
            if fault["seen"] >= first and (times is None or fault["seen"] < first + times):
                struck.append(fault)
        return struck

    # -- the API -----------------------------------------------------------------------------------------------

    def on_upload(self, body: bytes) -> dict[str, Any]:
        boundary = body[: body.index(b"\r\n")]
        part = next(part for part in body.split(boundary) if b"filename=" in part)
        lines = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        return {"id": self._keep(lines), "object": "file", "purpose": "batch"}

    def _keep(self, content: bytes) -> str:
        name = str(uuid.uuid4())
        self.files[name] = (self.now(), content)
        return name

    def on_content(self, name: str) -> bytes:
        created, content = self.files.get(name, (0.0, b""))
        if self.now() - created > _KEPT_SECONDS:
            raise NotOk(404, "No such file")
        return content

    def on_delete(self, name: str) -> dict[str, Any]:
        if self.files.pop(name, None) is None:
            raise NotOk(404, "No such file")
        return {"id": name, "deleted": True}

    def on_create(self, body: bytes) -> dict[str, Any]:
        asked = json.loads(body)
        lines = b"".join(self.files[name][1] for name in asked["input_files"]).split(b"\n")
        job = {
            **{name: asked[name] for name in ("input_files", "endpoint", "model", "metadata")},
            "id": str(uuid.uuid4()),
            "object": "batch",
            "status": "RUNNING",
            "created_at": int(self.now()),
            "output_file": None,
            "error_file": None,
            "errors": [],
            "completed_requests": 0,
        }
        job["_rows"] = [json.loads(line) for line in lines if line]
        job["_faults"] = self.met(None)
        job["total_requests"] = len(job["_rows"])
        self.jobs[job["id"]] = job
        kinds = {fault["kind"]: fault for fault in job["_faults"]}
        if "expire" in kinds:
            self._finish(job, "TIMEOUT_EXCEEDED", kinds["expire"]["share"])
        elif "hold" not in kinds:
            self._finish(job, "SUCCESS", 1.0)
        return shown(job)

    def on_list(self, query: str) -> dict[str, Any]:
        asked = dict(pair.split("=") for pair in query.split("&") if pair)
        newest = int(self.now() - self.knobs["list_lag"]) if "list_lag" in self.knobs else None
        jobs = [job for job in reversed(self.jobs.values()) if newest is None or job["created_at"] <= newest]
        size, page = int(asked["page_size"]), int(asked["page"])
        rows = [shown(job) for job in jobs[page * size : (page + 1) * size]]
        return {"object": "list", "data": rows, "total": len(jobs)}

    def on_retrieve(self, batch_id: str) -> dict[str, Any]:
        if batch_id not in self.jobs:
            raise NotOk(404, "No such job")
        return shown(self.jobs[batch_id])

    def on_cancel(self, batch_id: str) -> dict[str, Any]:
        self.on_retrieve(batch_id)
        job = self.jobs[batch_id]
        if job["status"] != "RUNNING":
            raise NotOk(400, "The job has ended")
        self._finish(job, "CANCELLED", self.knobs.get("cancelled_share", 0.0))
        return shown(job)

    def _finish(self, job: dict[str, Any], status: str, share: float) -> None:
        ran = job["_rows"][: round(len(job["_rows"]) * share)]
        good: list[bytes] = []
        bad: list[bytes] = []
        for position, row in reversed(list(enumerate(ran))):
            kind = next((f["kind"] for f in job["_faults"] if strikes(f, position)), "")
            self.charged += 1
            lines = self._answered(job, row, kind)
            (bad if kind == "errored" else good).extend(lines)
        job |= {"status": status, "completed_requests": len(ran)}
        job["output_file"] = self._keep(b"".join(good)) if good else None
        job["error_file"] = self._keep(b"".join(bad)) if bad else None

    def _answered(self, job: dict[str, Any], row: dict[str, Any], kind: str) -> list[bytes]:
        if kind in ("missing", "bad_line"):
            return [] if kind == "missing" else [b"{not json\n"]
        if kind == "errored":
            error = {
                "object": "error",
                "type": "internal_server_error",
                "message": "It failed",
                "code": "1000",
            }
            response: dict[str, Any] = {"status_code": 500, "body": error}
        else:
            response = {"status_code": 200, "body": self._body(job, row["body"], kind)}
        result = {"id": f"batch-{uuid.uuid4()}", "custom_id": row["custom_id"], "response": response}
        line = json.dumps({**result, "error": None}, ensure_ascii=kind != "odd").encode() + b"\n"
        return [line, line] if kind == "duplicated" else [line]

    def _body(self, job: dict[str, Any], asked: dict[str, Any], kind: str) -> dict[str, Any]:
        given, cached = len(json.dumps(asked)) // 4, self.knobs.get("cached_tokens", 0)
        if job["endpoint"] == "/v1/embeddings":
            self.tokens["input"] += given
            usage = {"prompt_tokens": given, "completion_tokens": 0}
            return {"model": job["model"], "data": [{"embedding": [0.25, 0.5]}], "usage": usage}
        form = asked.get("response_format")
        schema = form["json_schema"]["schema"] if form else None
        answer = "An answer." if schema is None else json.dumps(example(schema, schema))
        answer += {"odd": " \u2028 \u0085", "surrogate": " \ud83d"}.get(kind, "")
        answer = "" if kind == "empty" else answer
        for name, number in (("input", given), ("output", 7), ("cached", cached)):
            self.tokens[name] += number
        return {
            "model": job["model"],
            "choices": [
                {
                    "message": {"role": "assistant", "content": answer},
                    "finish_reason": "length" if kind == "truncated" else "stop",
                }
            ],
            "usage": {
                "prompt_tokens": given,
                "completion_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }


def strikes(fault: dict[str, Any], position: int) -> bool:
    every = fault.get("every")
    return fault["kind"] in _ROW_FAULTS and (
        position in (fault.get("rows") or ()) or bool(every and position % every == 0)
    )


def shown(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if not name.startswith("_")}


def example(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """A value of a schema."""
    if "$ref" in schema:
        return example(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return example(schema["anyOf"][0], root)
    match schema.get("type"):
        case "object":
            return {name: example(part, root) for name, part in schema["properties"].items()}
        case "array":
            return []
        case "integer" | "number":
            return schema.get("minimum", 1)
    return "text"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world = World()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        body = self._received()
        path, _, query = self.path.partition("?")
        with self.world.lock:
            if path.startswith("/control/"):
                answer = getattr(self.world, path.removeprefix("/control/"))(**json.loads(body))
                self._send(200, json.dumps(answer).encode())
                return
            endpoint, argument = next(
                (name, match.group(1) if match.groups() else None)
                for method, pattern, name in _PATHS
                if method == self.command and (match := re.fullmatch(pattern, path))
            )
            self.world.calls[endpoint] = self.world.calls.get(endpoint, 0) + 1
            fault = next(iter(self.world.met(endpoint)), None)
            takes_effect = fault is None or fault["kind"] == "cut" or fault.get("effect") == "after"
            status, answer = 200, b""
            if takes_effect:
                status, answer = self._done(endpoint, argument, body, query)
        self._send(status, answer) if fault is None else self._strike(fault, answer)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815

    def _received(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _done(self, endpoint: str, argument: str | None, body: bytes, query: str) -> tuple[int, bytes]:
        given: list[Any] = [argument] if argument else []
        given += [body] if endpoint in ("upload", "create") else [query] if endpoint == "list" else []
        try:
            answer = getattr(self.world, f"on_{endpoint}")(*given)
        except NotOk as error:
            said = {"object": "error", "message": str(error), "type": "invalid_request_error"}
            return error.status, json.dumps(said).encode()
        return 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def _strike(self, fault: dict[str, Any], answer: bytes) -> None:
        match fault["kind"]:
            case "drop":
                self._close()
            case "status":
                wait = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
                said = {"object": "error", "type": fault.get("code"), "message": "As the test asked"}
                self._send(fault["status"], json.dumps(said).encode(), **wait)
            case "delay":
                time.sleep(fault["seconds"])
                self._send(200, answer)
            case "body":
                kind = fault.get("content_type", "application/json")
                self._send(200, fault["text"].encode(), **{"Content-Type": kind})
            case "bomb":
                self._send(200, gzip.compress(b"x" * fault["bytes"], 1), **{"Content-Encoding": "gzip"})
            case "cut":
                lines = answer.split(b"\n")[: fault["lines"] + 1]
                self._send(200, b"\n".join(lines)[:-20], size=len(answer))
                self._close()

    def _close(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: bytes, size: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until the handle's process ends
