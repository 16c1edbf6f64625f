"""lm-eval's numbers over HTTP are transformers' own on the same checkpoint.

The command is the one of lm-eval's documentation: its local-completions sends token ids with echo,
logprobs and max_tokens 1, and asks the server for the tokenizer unless it is told otherwise.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers

from quire.pipelines.hf import resolve_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="needs the extra eval (lm-eval)"
    ),
]

ROWS = [
    {"ask": "The fox ran to", "answers": ["the river", "a lamp", "seven"], "right": 0},
    {"ask": "One two three", "answers": ["four", "house", " sleeps well"], "right": 0},
    {"ask": "Once upon a time there was", "answers": ["a bear", "and", "a king"], "right": 2},
    {"ask": "It was cold,", "answers": ["naïve 🙂", "so he lit a fire"], "right": 1},
]
CHOICES = """task: home_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{ask}}}}"
doc_to_choice: "{{{{answers}}}}"
doc_to_target: "{{{{right}}}}"
metric_list: [{{metric: acc}}]
"""
TEXTS = """task: home_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{ask}}}} {{{{answers[0]}}}}. {{{{ask}}}} {{{{answers[1]}}}}."
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Llama with the demo model's tokenizer: its folder and transformers' model of it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    demo = resolve_model("quire-demo", None)
    config = transformers.LlamaConfig(
        vocab_size=transformers.AutoConfig.from_pretrained(demo).vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    return folder, model


def log_likelihood(model, context, continuation):
    """The sum over the continuation's tokens, and whether each is the likeliest."""
    with torch.inference_mode():
        logits = model(torch.tensor([context + continuation])).logits[0]
    told = torch.log_softmax(logits[len(context) - 1 : -1], -1)
    wanted = torch.tensor(continuation)
    own = told.gather(1, wanted[:, None])[:, 0]
    return float(own.sum()), bool((told.argmax(-1) == wanted).all())


@pytest.mark.parametrize("tokenizer", ["huggingface", "remote", "auto"])
def test_log_likelihoods_are_those_of_transformers(checkpoint, launch, tmp_path, tokenizer):
    folder, model = checkpoint
    server = launch("--model", str(folder), "--served-model-name", "tiny")
    server.wait_ready()
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, task in (("choices", CHOICES), ("texts", TEXTS)):
        (tmp_path / f"{name}.yaml").write_text(task.format(data=data))
    arguments = f"model=tiny,base_url={server.url}/v1/completions,max_length=128"
    arguments += f",tokenizer={folder}" + f",tokenizer_backend={tokenizer}"

    done = subprocess.run(
        [sys.executable, "-P", "-m", "lm_eval", "--model", "local-completions"]
        + ["--model_args", arguments, "--tasks", "home_choices,home_texts"]
        + ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
        + ["--log_samples", "--batch_size", "4"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert server.stop() == 0
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    encode, ends = reference.encode, (reference.bos_token_id, reference.eos_token_id)
    start = next(token for token in ends if token is not None)
    samples = {"choices": [], "texts": []}
    for name, found in samples.items():
        for path in (tmp_path / "out").rglob(f"samples_home_{name}_*.jsonl"):
            found += [json.loads(line) for line in path.read_text().splitlines()]
    assert len(samples["choices"]) == len(samples["texts"]) == len(ROWS)
    for sample in samples["choices"]:
        given = [(part["arg_0"], part["arg_1"]) for part in sample["arguments"].values()]
        for (text, choice), ((told, is_greedy),) in zip(given, sample["resps"], strict=True):
            context = encode(text, add_special_tokens=False)
            whole = encode(text + choice, add_special_tokens=False)
            expected = log_likelihood(model, context, whole[len(context) :])
            assert float(told) == pytest.approx(expected[0], abs=1e-3)
            assert (is_greedy == "True") is expected[1]
    for sample in samples["texts"]:
        # A text's first token follows the one that begins or ends texts.
        tokens = encode(sample["arguments"]["gen_args_0"]["arg_0"], add_special_tokens=False)
        expected = log_likelihood(model, [start], tokens)[0]
        assert float(sample["resps"][0][0]) == pytest.approx(expected, abs=1e-3)
