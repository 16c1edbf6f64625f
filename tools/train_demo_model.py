"""Train the demo model from nothing: corpus, tokenizer, weights and model card.

    python tools/train_demo_model.py --out pipelines/demo_model --minutes 25

Needs the `test` extra (transformers). The schedule runs over --steps; a machine that would take
longer than --minutes anneals by the clock instead, and then the weights depend on its speed.
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# PYTHONSAFEPATH leaves out the script's own folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import demo_export
import demo_init
from demo_corpus import END_OF_TEXT, TURN_END, Segments, documents
from tokenizers import Tokenizer

CONTEXT = 512
VOCABULARY = 2048
SEED = 20261120
VALIDATION_SEED = 7
IGNORED = -100
POOL = 1024
"""Documents that are sorted by length into batches."""
TOKENS_PER_BATCH = 1024
BATCHES_PER_STEP = 2

Batch = tuple[torch.Tensor, torch.Tensor]


def encode(tokenizer: Tokenizer, segments: Segments) -> tuple[list[int], list[int]]:
    """Token ids and labels of one document; text that is not learned is labelled IGNORED."""
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in segments:
        part = tokenizer.encode(text).ids
        ids += part
        labels += part if learned else [IGNORED] * len(part)
    return ids, labels


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """ids and labels, both int64 [documents, length]: a row is one document, as in serving."""
    rng = random.Random(seed)
    padding = tokenizer.token_to_id(END_OF_TEXT)
    source = (encode(tokenizer, segments) for segments in documents(seed))
    source = (document for document in source if len(document[0]) <= CONTEXT)
    while True:
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for document in sorted((next(source) for _ in range(POOL)), key=lambda d: len(d[0])):
            if (len(groups[-1]) + 1) * len(document[0]) > TOKENS_PER_BATCH:
                groups.append([])
            groups[-1].append(document)
        rng.shuffle(groups)
        for group in groups:
            ids, labels = zip(*group, strict=True)
            yield _padded(ids, padding), _padded(labels, IGNORED)


def _padded(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    end, padding = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=demo_export.MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=[end, padding],
        pad_token_id=padding,
    )
    model = LlamaForCausalLM(config)
    demo_init.initialize(model)
    return model.to(torch.bfloat16)


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens; only their logits are computed."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    learned = targets != IGNORED
    logits = model.lm_head(hidden[learned]).float()
    return torch.nn.functional.cross_entropy(logits, targets[learned])


class MasterWeights:
    """Muon for the layers' matrices and AdamW for embedding and norms, in float32.

    bfloat16 weights alone would lose small updates. In a short trial on this corpus Muon reached
    the loss of AdamW after four fifths of the tokens.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.masters = [weight.detach().float().requires_grad_() for weight in self.weights]
        vectors = [master for master in self.masters if master.dim() == 1]
        # The embedding comes first and is the output matrix too.
        table, *matrices = [master for master in self.masters if master.dim() == 2]
        assert table.shape[0] == VOCABULARY
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([*vectors, table], betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        )

    def step(self, rate: float) -> None:
        for weight, master in zip(self.weights, self.masters, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)


@torch.no_grad()
def validate(model: LlamaForCausalLM, tokenizer: Tokenizer, num_batches: int = 24) -> float:
    source = batches(tokenizer, VALIDATION_SEED)
    return sum(float(loss_of(model, *next(source))) for _ in range(num_batches)) / num_batches


def train(
    model: LlamaForCausalLM, tokenizer: Tokenizer, options: argparse.Namespace
) -> dict[str, str]:
    """Trains in place; linear warm-up, then linear decay to zero. Returns facts for the card."""
    master = MasterWeights(model)
    source = batches(tokenizer, SEED)
    started, seen, loss, step = time.monotonic(), 0, 0.0, 0
    while True:
        minutes = (time.monotonic() - started) / 60
        progress = max(step / options.steps, minutes / options.minutes)
        if progress >= 1.0:
            break
        value = 0.0
        for ids, labels in itertools.islice(source, BATCHES_PER_STEP):
            part = loss_of(model, ids, labels) / BATCHES_PER_STEP
            part.backward()
            value += part.item()
            seen += ids.numel()
        master.step(options.rate * min(1.0, (step + 1) / 100, 1.0 - progress))
        loss = value if step == 0 else 0.98 * loss + 0.02 * value
        step += 1
        if step % 100 == 0:
            note = f" val {validate(model, tokenizer):.4f}" if step % 500 == 0 else ""
            if note:
                model.save_pretrained(options.out)
            print(
                f"step {step} minutes {minutes:.1f} tokens {seen} loss {loss:.4f}{note}", flush=True
            )
    return {
        "Steps": str(step),
        "Ended by": "steps (reproducible)" if step >= options.steps else "the clock",
        "Tokens seen": str(seen),
        "Training loss": f"{loss:.4f}",
        "Validation loss": f"{validate(model, tokenizer):.4f}",
        "Wall minutes": f"{(time.monotonic() - started) / 60:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0, help="wall-clock limit")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = demo_export.train_tokenizer(SEED, VOCABULARY)
    demo_export.write_tokenizer(tokenizer, options.out)
    model = build_model(tokenizer)
    model.train()
    facts = train(model, tokenizer, options)
    model.eval()
    model.save_pretrained(options.out)
    (options.out / "model.safetensors").chmod(0o644)
    demo_export.write_generation_config(tokenizer, options.out)
    command = (
        f"`python tools/train_demo_model.py --out {options.out} --minutes {options.minutes:g} "
        f"--steps {options.steps} --rate {options.rate:g}`"
    )
    parameters = f"{sum(weight.numel() for weight in model.parameters()):,}"
    about = {"Parameters": f"{parameters} (bfloat16)", "Trained context": f"{CONTEXT} tokens"}
    about |= {"Seed": str(SEED), "Command": command, "Threads": str(options.threads)}
    demo_export.write_card(options.out, {**about, **facts})


if __name__ == "__main__":
    main()
