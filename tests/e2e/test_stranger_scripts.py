"""Scripts as the documentations of OpenAI, vLLM and others have them run as they are, but for the
server's address."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
COUNTED = "1, 2, 3, 4, 5"
EXPECTED = {
    "openai_quickstart": [],
    "openai_async_streaming": [COUNTED, " tokens"],
    "openai_parse": ["CalendarEvent "],
    "openai_stream_helper": [f"Content done: {COUNTED}", " log-probabilities", "---\nstop"],
    "openai_tool_loop": ["called with {'city': 'Paris'}", "sunny"],
    "openai_logprobs": ["1 ["],
    "openai_errors": [
        "400 wrong_task model",
        "The model 'gpt-4o-mini' generates text; use /v1/chat/completions",
        "404 model_not_found\nTrue",
    ],
    "vllm_completion": ["Completion results:\nCompletion(id='cmpl-"],
    "vllm_structured_outputs": ["tive\n", "dict_keys(['model', 'car_type'])", "SELECT col_"],
    "vllm_extra_parameters": ["sentiment-classification-00001\nTrue\nTrue\n5\n"],
    "raw_json_with_nulls": ["[DONE] True"],
    "litellm_completion": [f"{COUNTED}", "\n1"],
    "langchain_chat": [COUNTED, "get_weather {'city': 'Paris'}"],
}
NEEDS = {"litellm_completion": "litellm", "langchain_chat": "langchain_openai"}


@pytest.fixture(scope="module")
def server(launch):
    """The demo model under the names that the scripts ask for."""
    names = ("gpt-4o-mini", "NousResearch/Meta-Llama-3-8B-Instruct")
    server = launch(*(part for name in names for part in ("--served-model-name", name)))
    server.wait_ready()
    return server


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_it_runs_unchanged(server, name, tmp_path):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    script = tmp_path / f"{name}.py"
    source = (SCRIPTS / script.name).read_text()
    script.write_text(source.replace("http://localhost:8000", server.url))

    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    for part in EXPECTED[name]:
        assert part in done.stdout, done.stdout
