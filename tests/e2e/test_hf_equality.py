"""Greedy tokens and top-5 log-probabilities through HTTP equal HF transformers' own.

The reference appends HF's own argmax: a different token of ours would show in the next position."""

import shutil

import pytest
import torch
import transformers

from quire.pipelines.hf import resolve_model

NUM_NEW = 12
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.2,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 10000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 500000.0,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, rope_parameters=LLAMA3),
    "qwen2": lambda: transformers.Qwen2Config(**COMMON, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, head_dim=32, rope_parameters=YARN),
    "mistral": lambda: transformers.MistralConfig(**COMMON, sliding_window=40),
}


@pytest.fixture(params=sorted(CONFIGS))
def checkpoint(request, tmp_path):
    """A random checkpoint with the demo model's tokenizer, and its HF model."""
    demo = resolve_model("quire-demo", None)
    config = CONFIGS[request.param]()
    config.vocab_size = transformers.AutoConfig.from_pretrained(demo).vocab_size
    torch.manual_seed(11)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, tmp_path)
    return tmp_path, model


async def test_tokens_and_top_5_log_probabilities_equal_transformers(checkpoint, launch, connect):
    folder, model = checkpoint
    server = launch(
        *("--model", str(folder), "--served-model-name", "tiny", "--page-size", "16"),
        *("--max-batch-input-tokens", "48"),
    )
    server.wait_ready()
    generator = torch.Generator().manual_seed(5)
    prompts = [
        torch.randint(10, model.config.vocab_size, (size,), generator=generator).tolist()
        for size in (3, 16, 97, 200)
    ]

    reply = await connect(server).completions.create(
        model="tiny", prompt=prompts, max_tokens=NUM_NEW, temperature=0, logprobs=5
    )

    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    for prompt, choice in zip(prompts, reply.choices, strict=True):
        ids = list(prompt)
        for position in range(NUM_NEW):
            with torch.inference_mode():
                expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
            ours = choice.logprobs.top_logprobs[position]
            # Ids that share a spelling share a key, so every value must be among HF's, in order.
            theirs = expected.topk(5).values.tolist()
            assert max(ours.values()) == pytest.approx(theirs[0], abs=1e-4)
            assert all(
                min(abs(value - their) for their in theirs) <= 1e-4 for value in ours.values()
            )
            assert choice.logprobs.token_logprobs[position] == pytest.approx(theirs[0], abs=1e-4)
            ids.append(int(expected.argmax()))

    # What evaluation harnesses ask for: how likely the prompt's own tokens are.
    reply = await connect(server).completions.create(
        model="tiny", prompt=prompts, max_tokens=0, echo=True, logprobs=1
    )
    for prompt, choice in zip(prompts, reply.choices, strict=True):
        with torch.inference_mode():
            expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0, :-1], -1)
        own = expected.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(own, abs=1e-3)
    assert server.stop() == 0
