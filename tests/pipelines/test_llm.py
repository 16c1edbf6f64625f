"""`LLM`: the engine without HTTP."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from quire.config.errors import ConfigError
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.llm import LLM


@pytest.fixture(scope="module")
def llm():
    with LLM(max_batch_size=8, threads=1) as llm:
        yield llm


def test_prompts_are_answered_in_their_order(llm):
    prompts = ["Count to five.", "Hello!", "Count to three."]

    texts = llm.generate(prompts, max_new_tokens=40, use_tqdm=False, chat=True)

    assert "1, 2, 3, 4, 5" in texts[0].lower()
    assert texts == [llm.generate(p, 40, use_tqdm=False, chat=True)[0] for p in prompts]


def test_threads_share_the_engine_and_get_their_own_texts(llm):
    prompts = [f"{word} upon a time" for word in ("Once", "Twice", "Long", "Far", "One", "Two")] * 3
    alone = {prompt: llm.generate(prompt, 24, use_tqdm=False) for prompt in set(prompts)}

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda prompt: llm.generate(prompt, 24, use_tqdm=False), prompts))

    assert together == [alone[prompt] for prompt in prompts]


def test_sampling_follows_the_seed_and_stops_at_stop_strings(llm):
    sampled = {"temperature": 1.2, "max_new_tokens": 30, "seed": 3, "ignore_eos": True}
    hot = SamplingParams(**sampled)

    (text,) = llm.generate("One day", params=hot, use_tqdm=False)
    (again,) = llm.generate("One day", params=hot, use_tqdm=False)
    stop = text[8:11]
    stopping = SamplingParams(**sampled, stop=(stop,))
    (cut,) = llm.generate("One day", params=stopping, use_tqdm=False)

    assert text == again
    assert cut == text[: text.index(stop)]


@pytest.mark.parametrize("prompts", [[], "", ["fine", ""], "word " * 5000])
def test_bad_prompts_are_refused(llm, prompts):
    with pytest.raises(ValueError):
        llm.generate(prompts, use_tqdm=False)


def test_a_wrong_option_is_refused():
    with pytest.raises(ConfigError, match="no_such"):
        LLM(no_such=1)


def test_a_closed_engine_says_so():
    llm = LLM(threads=1)
    llm.close()

    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("x", use_tqdm=False)


def test_a_token_that_the_model_lacks_is_refused_and_the_engine_goes_on(llm, monkeypatch):
    expected = llm.generate("Once", 3, use_tqdm=False)
    monkeypatch.setattr(llm, "_vocab_size", max(llm.tokenizer.encode("Once upon")))

    with pytest.raises(ValueError, match="the prompt has the token"):
        llm.generate(["Once upon", "Once upon"], 3, use_tqdm=False)

    monkeypatch.undo()
    assert llm.generate("Once", 3, use_tqdm=False) == expected


def test_prompts_of_an_interrupted_call_are_dropped(llm, monkeypatch):
    def interrupt(waiting):
        raise KeyboardInterrupt

    monkeypatch.setattr("quire.pipelines.llm.as_completed", interrupt)
    before = llm._engine.scheduler.stats().decode_tokens
    endless = SamplingParams(max_new_tokens=None, ignore_eos=True)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["Once"] * 8, params=endless, use_tqdm=False)
    monkeypatch.undo()

    llm.generate("Once", 3, use_tqdm=False)

    assert llm._jobs == {}
    assert llm._engine.scheduler.stats().decode_tokens - before < llm.max_length


def test_a_script_may_end_while_prompts_are_generated():
    script = """
import threading, time
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.llm import LLM

llm = LLM(threads=1)
endless = SamplingParams(max_new_tokens=None, ignore_eos=True)
args = (["Once"] * 8, None, False)
threading.Thread(target=llm.generate, args=args, kwargs={"params": endless}, daemon=True).start()
while not llm._engine.scheduler.stats().decode_tokens:
    time.sleep(0.01)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, timeout=60, check=False
    )

    assert (ended.returncode, b"terminate called" in ended.stderr) == (0, False)
