"""A batch on a real daemon with the demo model, through kill -9, SIGTERM and a worker's death."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

COUNT = 30
ENDED = ("completed", "failed", "expired", "cancelled")


def lines(count: int) -> bytes:
    """Completions of which each is told from the others; every tenth cannot be served."""

    def body(number: int) -> dict[str, Any]:
        if number % 10 == 9:
            return {"model": "quire-demo", "prompt": "", "max_tokens": 5}
        prompt = f"Once upon a time {number}"
        return {"model": "quire-demo", "prompt": prompt, "max_tokens": 40, "seed": number}

    return b"".join(
        json.dumps(
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/completions",
                "body": body(number),
            }
        ).encode()
        + b"\n"
        for number in range(count)
    )


@pytest.fixture
def client() -> Any:
    made = []

    def connect(server: Any) -> openai.OpenAI:
        made.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def submit(sdk: openai.OpenAI, count: int) -> str:
    file = sdk.files.create(file=("in.jsonl", lines(count)), purpose="batch")
    batch = sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    return batch.id


def wait_for(sdk: openai.OpenAI, batch_id: str, is_so: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 60
    while not is_so(batch := sdk.batches.retrieve(batch_id)):
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)
    return batch


def results(sdk: openai.OpenAI, batch: Any) -> dict[str, Any]:
    rows = [
        json.loads(line)
        for file_id in (batch.output_file_id, batch.error_file_id)
        for line in sdk.files.content(file_id).text.splitlines()
    ]
    found = {row["custom_id"]: row["response"] for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_batch_survives_kill_9_of_the_daemon(launch: Any, client: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "state")
    first = launch("--state-dir", folder, "--max-batch-size", "3")
    sdk = client(first)
    batch_id = submit(sdk, COUNT)  # Before the model is loaded.
    first.wait_ready()
    before = wait_for(sdk, batch_id, lambda batch: batch.request_counts.completed >= 3)
    first.process.kill()
    first.process.wait()
    assert before.status == "in_progress" and before.request_counts.completed < COUNT * 9 // 10

    second = launch("--state-dir", folder, "--max-batch-size", "3")
    sdk = client(second)
    taken = subprocess.run(
        [sys.executable, "-P", "-m", "quire.server", "serve", "--port", "0", "--state-dir", folder],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert taken.returncode == 2 and "is in use by another daemon" in taken.stderr
    wait_for(sdk, batch_id, lambda batch: batch.request_counts.completed > 7)
    second.worker().kill()
    batch = wait_for(sdk, batch_id, lambda batch: batch.status in ENDED)

    assert batch.status == "completed" and batch.model == "quire-demo"
    assert batch.request_counts.to_dict() == {"total": COUNT, "completed": 27, "failed": 3}
    found = results(sdk, batch)
    assert set(found) == {f"line-{number}" for number in range(COUNT)}
    for number in (0, 5, COUNT - 2):
        alone = sdk.completions.create(**json.loads(lines(COUNT).splitlines()[number])["body"])
        assert found[f"line-{number}"]["body"]["choices"][0]["text"] == alone.choices[0].text
    assert second.metric("quire_batches_ended_total") == 1
    assert second.metric("quire_batch_requests_ended_total") >= 10
    assert "batch ended" in second.log


def test_a_batch_does_not_hold_up_a_shutdown(launch: Any, client: Any, tmp_path: Path) -> None:
    server = launch("--state-dir", str(tmp_path / "state"), "--shutdown-timeout", "8")
    sdk = client(server)
    server.wait_ready()
    batch_id = submit(sdk, 2000)
    wait_for(sdk, batch_id, lambda batch: batch.request_counts.completed >= 1)

    began = time.monotonic()
    assert server.stop() == 0

    assert time.monotonic() - began < 5
    assert "Traceback" not in server.log and "ERROR" not in server.log
