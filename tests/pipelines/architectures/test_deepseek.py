"""DeepSeek's config.json: the released sizes, counted by hand, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.latent_parts import LatentAttentionSpec
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.moe_parts import MoESpec
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.kv_cache.memory_plan import plan_memory
from quire.pipelines.kv_cache.params import KVCacheParams
from quire.pipelines.nn.latent_attention import check_served

YARN = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
LATENT = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "moe_layer_freq": 1,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
}
V3: Mapping[str, Any] = {
    **LATENT,
    "architectures": ["DeepseekV3ForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "rope_scaling": YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}
"""DeepSeek-V3 as released, less its quantization."""
V2_LITE: Mapping[str, Any] = {
    **LATENT,
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}


def read(folder: Path, config: Mapping[str, Any], **fields: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return load_model_spec(folder)


def test_v3_has_the_published_numbers(tmp_path: Path) -> None:
    spec = read(tmp_path, V3)

    # Table 1 and section 2 of the report: 671 billion parameters, 37 billion active.
    assert round(spec.num_parameters / 1e9) == 671
    active = sum(owner.num_active_parameters for owner in spec.owners)
    assert round((active + spec.vocab_size * spec.hidden_size) / 1e9) in (37, 38)
    assert spec.kv_bytes_per_token("bfloat16") == (512 + 64) * 2 * 61 == 70272
    params = KVCacheParams.of(spec, dtype="bfloat16", page_size=64, enable_prefix_caching=True)
    assert params.bytes_per_page == 64 * 70272
    assert spec.longest_context == 163840


def test_v3_routes_as_its_report_says(tmp_path: Path) -> None:
    spec = read(tmp_path, V3)

    mixtures = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, MoESpec)]
    assert len(mixtures) == 58
    first = mixtures[0]
    assert (first.scoring, first.group_score, first.renormalize) == ("sigmoid", "top2_sum", True)
    assert (first.num_groups, first.top_k_groups, first.experts.top_k) == (8, 4, 8)
    assert first.routed_scaling == 2.5
    assert first.shared is not None
    assert first.shared.down.in_dim == 2048


def test_v2_lite_has_the_published_numbers(tmp_path: Path) -> None:
    spec = read(tmp_path, V2_LITE)

    assert round(spec.num_parameters / 1e9, 1) == 15.7
    assert spec.kv_bytes_per_token("bfloat16") == (512 + 64) * 2 * 27
    assert "model.layers.0.self_attn.q_proj.weight" in spec.tensors()


@pytest.mark.parametrize(
    ("fields", "sparse"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"first_k_dense_replace": 3, "moe_layer_freq": 2}, [4]),
        ({"n_routed_experts": None}, []),
        ({"mlp_layer_types": ["sparse", *["dense"] * 4, "sparse"]}, [0, 5]),
    ],
)
def test_layers_have_experts_where_the_configuration_says(
    fields: dict[str, Any], sparse: list[int], tmp_path: Path
) -> None:
    spec = read(tmp_path, V2_LITE, num_hidden_layers=6, **fields)

    found = [index for index, layer in enumerate(spec.layers) if isinstance(layer.mlp, MoESpec)]
    assert found == sparse


def test_the_scale_of_scores_has_the_magnitude_of_yarn(tmp_path: Path) -> None:
    attention = read(tmp_path, V3).layers[0].attention

    assert isinstance(attention, LatentAttentionSpec)
    # 0.1 * ln 40 + 1 = 1.36889, squared, over the root of 192.
    assert attention.scale == pytest.approx(1.3688879**2 / 192**0.5, rel=1e-6)
    plain = read(tmp_path, V3, rope_scaling=None).layers[0].attention
    assert isinstance(plain, LatentAttentionSpec)
    assert plain.scale == 192**-0.5


def test_the_memory_plan_counts_latents_and_the_absorbed_projection_as_plain_numbers(
    tmp_path: Path,
) -> None:
    spec = read(tmp_path, V2_LITE, max_position_embeddings=4096, rope_scaling=None)
    settings = ModelSettings.model_validate({"max_batch_size": 2, "page_size": 64})

    plan = plan_memory(
        spec, settings, dtype="bfloat16", device_type="cuda", device_memory_bytes=80 * 1024**3
    )

    rows = {row.name: row.num_bytes for row in plan.rows}
    assert plan.num_pages == 2 * 2 * 4096 // 64
    assert rows["kv_cache"] == 2 * 2 * 4096 * (512 + 64) * 2 * 27
    assert rows["weights"] >= 2 * spec.num_parameters


def test_float32_on_a_gpu_is_refused_for_latents_too_wide_for_it(tmp_path: Path) -> None:
    attention = read(tmp_path, V3).layers[0].attention

    assert isinstance(attention, LatentAttentionSpec)
    check_served(attention, torch.float32, "cpu")
    check_served(attention, torch.bfloat16, "cuda")
    with pytest.raises(ConfigError, match="up to a kv_lora_rank of 256, found 512: use bfloat16"):
        check_served(attention, torch.float32, "cuda")


def test_layers_that_predict_further_tokens_are_ignored(tmp_path: Path) -> None:
    spec = read(tmp_path, V3)

    assert spec.ignored_weights == ("model.layers.61.",)
    assert read(tmp_path, V3, num_nextn_predict_layers=0).ignored_weights == ()
    assert not any(name.startswith(spec.ignored_weights) for name in spec.tensors())


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (V3, {"scoring_func": "softmax"}, 'scoring_func: expected sigmoid, found "softmax"'),
        (V3, {"routed_scaling_factor": None}, "routed_scaling_factor: expected a number greater"),
        (V3, {"topk_method": "greedy"}, "topk_method: expected noaux_tc"),
        (V3, {"n_group": 7}, "n_group: expected a divisor of 256 experts, found 7"),
        (V3, {"n_group": 256, "topk_group": 8}, "n_group: expected groups of at least 2 experts"),
        (V3, {"topk_group": 9}, "topk_group: expected at most the 8 groups"),
        (V3, {"num_experts_per_tok": 257}, "num_experts_per_tok: expected at most the 256"),
        (V3, {"num_experts_per_tok": 129}, "topk_group: expected groups of at least 129 experts"),
        (V3, {"num_key_value_heads": 64}, "num_key_value_heads: expected 128, as attention heads"),
        (V3, {"kv_lora_rank": 520}, "kv_lora_rank: expected a multiple of 8 up to 512, found 520"),
        (V3, {"qk_rope_head_dim": 60}, "qk_rope_head_dim: expected a multiple of 8 up to 128"),
        (V3, {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1"),
        (V3, {"hidden_act": "gelu"}, "hidden_act: expected silu"),
        (V3, {"moe_layer_freq": [0, 1]}, "moe_layer_freq: expected an integer"),
        (V3, {"mlp_layer_types": ["dense"]}, "mlp_layer_types: expected 61 of dense or sparse"),
        (V2_LITE, {"norm_topk_prob": True}, "norm_topk_prob: expected false, found true"),
        (V2_LITE, {"scoring_func": "sigmoid"}, "scoring_func: expected softmax"),
        (V2_LITE, {"topk_method": "noaux_tc"}, "topk_method: expected greedy or group_limited"),
    ],
)
def test_what_is_not_served_is_refused(
    config: Mapping[str, Any], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        read(tmp_path, config, **fields)

    assert message in str(error.value)
