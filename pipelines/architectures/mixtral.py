"""Mixtral (https://arxiv.org/abs/2401.04088): Mistral with a mixture of experts in every layer."""

from quire.pipelines.architectures.common import DecoderSizes
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import llama_spec
from quire.pipelines.architectures.moe_parts import MoESpec, SeparateExperts
from quire.pipelines.architectures.moe_reader import read_expert_counts, router_spec
from quire.pipelines.architectures.rope_spec import read_rope
from quire.pipelines.architectures.spec import ModelSpec


def read_mixtral(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    num_experts, top_k = read_expert_counts(config)

    def mixture(index: int) -> MoESpec:
        prefix = f"model.layers.{index}.block_sparse_moe."
        return MoESpec(
            router=router_spec(f"{prefix}gate", sizes.hidden_size, num_experts),
            experts=SeparateExperts(
                prefix=f"{prefix}experts.",
                num_experts=num_experts,
                top_k=top_k,
                hidden_size=sizes.hidden_size,
                inner_size=sizes.intermediate_size,
                gate_name="w1",
                up_name="w3",
                down_name="w2",
            ),
            renormalize=True,
        )

    rope = read_rope(
        config,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.max_position_embeddings,
        default_theta=1e6,
    )
    window = config.integer("sliding_window") if config.has("sliding_window") else None
    return llama_spec(
        config,
        "MixtralForCausalLM",
        sizes,
        windows=(window,) * sizes.num_layers,
        ropes=(rope,) * sizes.num_layers,
        feed_forwards=[mixture(index) for index in range(sizes.num_layers)],
    )
