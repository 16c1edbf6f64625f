"""What an encoder needs and at best reaches: no KV pages, whole texts in a step. No torch."""

from dataclasses import dataclass

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.encoder_spec import EncoderSpec
from quire.pipelines.architectures.encodings import ITEM_BYTES
from quire.pipelines.kv_cache.memory_plan import MemoryRow, format_bytes


@dataclass(frozen=True, kw_only=True)
class EncoderPlan:
    """As `MemoryPlan`, of a model without pages."""

    rows: tuple[MemoryRow, ...]
    """weights, activations."""
    device_memory_bytes: int
    usable_bytes: int
    max_length: int
    step_tokens: int
    """The most tokens of a step: of several texts, or of one that is longer."""

    def table(self) -> str:
        """The plan for a person's eyes."""
        lines = [(row.name, format_bytes(row.num_bytes)) for row in self.rows]
        lines += [
            ("planned", format_bytes(sum(row.num_bytes for row in self.rows))),
            ("usable", format_bytes(self.usable_bytes)),
            ("free on device", format_bytes(self.device_memory_bytes)),
            ("max length", f"{self.max_length} tokens"),
            ("step", f"{self.step_tokens} tokens of whole texts"),
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def plan_encoder(
    spec: EncoderSpec, settings: ModelSettings, dtype: str, device_memory_bytes: int
) -> EncoderPlan:
    """Divide `device_memory_bytes`, what is free on the device now.

    Raises:
        ConfigError: the model does not fit, or a setting is for models with pages.
    """
    for name in ("kv_cache_pages", "kv_cache_memory"):
        if (given := getattr(settings, name)) is not None:
            raise ConfigError(
                f"{name} {given}: expected none, as {spec.architecture} is an encoder"
            )
    length = settings.max_length or spec.max_length
    if length > spec.max_length:
        raise ConfigError(
            f"max_length {length} exceeds the model's positions, which are {spec.max_length}"
        )
    weights = ITEM_BYTES[dtype] * num_weights(spec)
    step_tokens = max(length, settings.max_batch_input_tokens)
    activations = ITEM_BYTES[dtype] * (
        step_tokens * _width(spec) + spec.num_heads * length * length
    )
    usable = int(device_memory_bytes * settings.device_memory_utilization)
    if weights + activations > usable:
        raise ConfigError(
            f"the model does not fit: weights {format_bytes(weights)} and activations "
            f"{format_bytes(activations)} exceed the {format_bytes(usable)} that "
            f"device_memory_utilization {settings.device_memory_utilization:g} allows of "
            f"{format_bytes(device_memory_bytes)} free"
        )
    return EncoderPlan(
        rows=(MemoryRow("weights", weights), MemoryRow("activations", activations)),
        device_memory_bytes=device_memory_bytes,
        usable_bytes=usable,
        max_length=length,
        step_tokens=step_tokens,
    )


def num_weights(spec: EncoderSpec) -> int:
    """Numbers in all tensors that the model reads."""
    return sum(tensor.num_elements for tensor in spec.tensors().values())


def flops_per_text(spec: EncoderSpec, tokens: int) -> int:
    """Floating operations of a text: two per weight of a matrix and token, and attention."""
    matrices = sum(
        linear.in_dim * linear.out_dim
        for layer in spec.layers
        for linear in (layer.qkv, layer.output, layer.mlp.up, layer.mlp.down)
    )
    attention = 4 * len(spec.layers) * tokens * spec.hidden_size
    return tokens * (2 * matrices + attention)


def _width(spec: EncoderSpec) -> int:
    """Numbers that a token has at the widest place of a layer."""
    layer = spec.layers[0]
    # Input and residual; then queries, keys, values and what attention gives, or the feed-forward.
    return 2 * spec.hidden_size + max(layer.qkv.out_dim + spec.hidden_size, layer.mlp.width)
