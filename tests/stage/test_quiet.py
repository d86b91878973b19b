"""At level DEBUG the SDKs log keys and whole bodies; in our processes nothing of that comes out."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from airflow_batch_llm.simulator.handle import Simulator
from tests.vendors import MODELS, VENDORS

#: A process that logs everything to standard error, and talks through the real clients.
PROGRAM = """
import json, logging, os, sys, time
from pathlib import Path
from airflow_batch_llm.core.model import Call, Lease, ShardFile
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.stage.telemetry import quiet_process

name, url, model, folder, quiet = sys.argv[1:]
key, prompt = os.environ["CANARY_KEY"], os.environ["CANARY_PROMPT"]
if quiet == "quiet":
    quiet_process()
class Everything(logging.Formatter):
    def format(self, record):  # Google's SDK attaches bodies to its records, for formatters that write JSON
        return f"{super().format(record)} {record.__dict__}"

logging.basicConfig(level=logging.DEBUG)
logging.getLogger().handlers[0].setFormatter(Everything())
options = {}
if name == "vertex":
    from google.oauth2.credentials import Credentials
    options = {"credentials": Credentials(key), "project": "p", "staging": "gs://bucket/folder"}
provider = connect(name, Access(api_key=key, base_url=url, options=options))
for library in list(logging.root.manager.loggerDict):
    logging.getLogger(library).setLevel(logging.DEBUG)  # as an SDK's environment variable does
call = Call(model=model)
path = Path(folder) / "lines.jsonl"
path.write_bytes(provider.encode(call).line("r-1-1", json.dumps(prompt).encode()) + b"\\n")
shard = ShardFile(path=path, token="r-1", call=call, requests=1, bytes=path.stat().st_size)
try:
    provider.count_tokens(call, [prompt])
    upload = provider.upload(shard) if name != "vertex" else "gs://bucket/folder/1/requests.jsonl"
    batch = provider.submit(shard, upload, Lease(expires_at=time.time() + 60))
    provider.check([batch])
except BatchLLMError as error:
    print("failed:", error, file=sys.stderr)
logging.getLogger("httpx").warning("a warning of a library")
"""


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(batch_seconds=0.0) as simulator:
        yield simulator


@pytest.mark.parametrize(
    ("name", "model"),
    MODELS.items(),
)
def test_no_sdk_logs_a_key_or_a_prompt_at_debug(
    simulator: Simulator, tmp_path: Path, name: str, model: str
) -> None:
    key, prompt = f"canary-{uuid4().hex}", f"canary-{uuid4().hex}"
    url = VENDORS[name].base_url(simulator.url)
    environment = {
        "CANARY_KEY": key,
        "CANARY_PROMPT": prompt,
        "OPENAI_LOG": "debug",
        "ANTHROPIC_LOG": "debug",
        "PATH": "/usr/bin:/bin",
    }

    def logged(quiet: str) -> str:
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, name, url, model, str(tmp_path), quiet]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        return done.stderr

    assert prompt in logged("loud"), "the SDK logs bodies, so the case shows something"
    log = logged("quiet")
    assert prompt not in log
    assert key not in log
    assert "a warning of a library" in log
