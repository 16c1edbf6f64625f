"""Every option of `quire`, once: the CLI flags, the YAML keys and the QUIRE_* variables are these fields.

Load order, later wins: defaults < YAML file (`--config`) < QUIRE_* environment < CLI flags.
An unknown key in the file or an unknown QUIRE_* variable is an error.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import ByteSize, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from quire.config.api_keys_env import KEY_VARIABLES
from quire.config.errors import ConfigError

DEMO_MODEL = "quire-demo"
"""The name of the model inside the package."""

ENV_PREFIX = "QUIRE_"

ToolCallParser = Literal[
    "auto",
    "none",
    "hermes",
    "llama3_json",
    "pythonic",
    "mistral",
    "mistral_list",
    "deepseek_v3",
    "deepseek_v31",
    "kimi_k2",
    "qwen3_coder",
    "glm45",
    "glm47",
    "minimax_m2",
    "harmony",
    "granite",
    "phi4_mini",
    "functools",
]

LoadFormat = Literal["auto", "safetensors", "gguf", "pytorch", "random"]

Quantization = Literal["none", "int8", "w8a8", "fp8", "q4_0", "q8_0"]

S = TypeVar("S", bound="ModelSettings")


def _split_commas(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


class ModelSettings(BaseSettings):
    """What is needed to load a model and run it, with or without HTTP."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, protected_namespaces=()
    )

    model: str = Field(
        DEMO_MODEL,
        description="Model folder, .gguf file, hub id (org/name or org/name:file.gguf), or quire-demo.",
    )
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit).")
    load_format: LoadFormat = Field(
        "auto",
        description="Weights to read; auto takes safetensors, else GGUF; pytorch converts pickles, "
        "random makes weights up.",
    )
    engine: Literal["quire", "huggingface"] = Field(
        "quire",
        description="Whose layers run: Quire's own, or transformers', which has more models and is slower.",
    )
    custom_architectures: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Python modules with ARCHITECTURES of your own: folder:module, or a module's name.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Weights and activations; auto keeps the checkpoint's, float32 for float16 on a CPU.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of the model worker; default: the cores it may use."
    )
    max_length: int | None = Field(
        None, ge=2, description="Prompt plus output tokens of one request; default: the model's."
    )
    max_batch_size: int = Field(64, ge=1, le=4096, description="Requests in one step.")
    max_batch_input_tokens: int = Field(
        2048, ge=16, description="Tokens in one step, prefill and decode together."
    )
    itl_target: float | None = Field(
        None,
        gt=0.0,
        description="Seconds: while requests decode, prompts are cut so that a step takes about "
        "this long. Default: on a CPU 0.125 or five decode steps, whichever is longer; on a GPU any.",
    )
    page_size: int = Field(32, description="Tokens in one page of KV memory: 16, 32, 64 or 128.")
    kv_cache_pages: int | None = Field(
        None, ge=1, description="KV pages of the layers that need most; default: what fits."
    )
    kv_cache_memory: ByteSize | None = Field(
        None, description="KV memory, as 2GiB or 500MB; default: what fits the device."
    )
    device_memory_utilization: float = Field(
        0.9, gt=0.0, le=1.0, description="Share of the free device memory Quire may plan with."
    )
    enable_prefix_caching: bool = Field(
        True, description="Reuse the KV pages of prompts that begin alike."
    )
    quantization: Quantization = Field(
        "none",
        description="Quantize a dense checkpoint at load: int8, w8a8, fp8, q4_0, q8_0.",
    )
    exact: bool = Field(
        True,
        description="Same request, same bits, whatever shares the batch; off is faster on CPU.",
    )

    @field_validator("custom_architectures", mode="before")
    @classmethod
    def _split_modules(cls, value: Any) -> Any:
        return _split_commas(value)

    @field_validator("quantization")
    @classmethod
    def _only_of_our_layers(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and info.data.get("engine") == "huggingface":
            raise ValueError("quantization must be none with engine huggingface")
        return value

    @field_validator("page_size")
    @classmethod
    def _known_page_size(cls, value: int) -> int:
        if value not in (16, 32, 64, 128):
            raise ValueError("page_size must be 16, 32, 64 or 128")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        name, _, index = value.partition(":")
        if name in ("auto", "cpu") and not index:
            return value
        if name == "cuda" and (not index or index.isdecimal()):
            return value
        raise ValueError("device must be auto, cpu, cuda or cuda:N")


class ServeSettings(ModelSettings):
    """What `quire serve` needs on top: HTTP, queue, auth, logs."""

    served_model_name: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names clients may use as model; default: the model's own."
    )
    task: Literal["auto", "generate", "embeddings"] = Field(
        "auto",
        description="What the model is served for; auto: embeddings for encoders and folders with "
        "modules.json, else generate.",
    )
    generation_config: Literal["auto", "none"] = Field(
        "auto",
        description="Sampling defaults: the model's generation_config.json, or none: OpenAI's.",
    )
    tool_call_parser: ToolCallParser = Field(
        "auto",
        description="How the model writes tool calls; auto tells it by the chat template.",
    )
    reasoning_parser: Literal["auto", "none", "think", "harmony"] = Field(
        "auto",
        description="How the model marks reasoning; auto tells it by the chat template.",
    )
    reasoning_field: Literal["reasoning_content", "reasoning"] = Field(
        "reasoning_content", description="Field of messages and deltas that holds reasoning."
    )
    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int = Field(8000, ge=0, le=65535, description="Port to bind; 0 picks a free one.")
    api_key_file: Path | None = Field(
        None,
        description="File with one API key, or name:key, per line, read again at SIGHUP; without a "
        "key here or in QUIRE_API_KEY(S) every caller is let in.",
    )
    insecure: bool = Field(
        False, description="Allow binding a non-loopback address without an API key."
    )
    max_queue_size: int = Field(
        256, ge=1, description="Requests admitted beyond max_batch_size before 429."
    )
    max_concurrency_per_key: int | None = Field(
        None, ge=1, description="Requests of one API key, running and queued together, before 429."
    )
    max_request_bytes: ByteSize = Field(
        ByteSize(4 * 1024**2), ge=1024, description="Largest request body."
    )
    state_dir: Path | None = Field(
        None,
        description="Folder of /v1/files and /v1/batches, of this daemon alone; default: none, and "
        "no such routes.",
    )
    state_dir_size: ByteSize = Field(
        ByteSize(10 * 1024**3),
        ge=1024**2,
        description="Most that files and batches may take there.",
    )
    max_file_size: ByteSize = Field(
        ByteSize(200 * 1024**2), ge=1024, description="Largest file that may be uploaded."
    )
    responses_store_bytes: ByteSize = Field(
        ByteSize(64 * 1024**2),
        ge=0,
        description="Memory for the responses of /v1/responses that are kept; 0 keeps none.",
    )
    responses_store_count: int = Field(
        4096, ge=1, description="Responses that are kept; those read longest ago go first."
    )
    strict: bool = Field(
        False, description="Refuse request fields that nobody knows, instead of a warning header."
    )
    header_timeout: float = Field(
        10.0, gt=0.0, description="Seconds in which a request's headers must arrive."
    )
    body_timeout: float = Field(
        30.0, gt=0.0, description="Seconds in which a request's body must arrive."
    )
    reader_timeout: float = Field(
        30.0,
        gt=0.0,
        description="Seconds without progress before a client that reads nothing is cut.",
    )
    admin_port: int | None = Field(
        None, ge=0, le=65535, description="Port of the admin routes, on 127.0.0.1; default: none."
    )
    admin_key_file: Path | None = Field(
        None, description="API keys of the admin routes alone; default: those of the API."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="Log lines for eyes or machines."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line shown."
    )
    maxserve_metrics: bool = Field(
        False, description="Also tell the metrics under MAX's names, maxserve_*."
    )
    otlp_traces_endpoint: str | None = Field(
        None,
        description="URL that traces are posted to, OTLP over HTTP; without a path /v1/traces; "
        "needs quire[otel].",
    )
    otlp_traces_sample_ratio: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Share of requests that are traced; callers that send a traceparent decide "
        "for theirs.",
    )
    shutdown_timeout: float = Field(
        8.0, ge=0.0, description="Seconds that running requests may finish in after SIGTERM."
    )
    worker_timeout: float = Field(
        60.0, gt=0.0, description="Seconds without progress before a busy worker is replaced."
    )
    stream_heartbeat: float = Field(
        15.0, gt=0.0, description="Seconds of silence before a stream gets an SSE comment."
    )

    @field_validator("otlp_traces_endpoint")
    @classmethod
    def _whole_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("otlp_traces_endpoint must be a URL, http://host:port or https://")
        return value if url.path.strip("/") else f"{value.rstrip('/')}/v1/traces"

    @field_validator("served_model_name", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return _split_commas(value)


def load(kind: type[S], flags: dict[str, Any], config_file: Path | None = None) -> S:
    """Settings of `kind` from flags, environment and file, in that order of precedence.

    Raises:
        ConfigError: one line that names each wrong option, its value and what it should be.
    """
    if config_file is not None and not config_file.is_file():
        raise ConfigError(f"--config: no such file: {config_file}")
    sources: list[PydanticBaseSettingsSource] = [
        InitSettingsSource(kind, init_kwargs=flags),
        EnvSettingsSource(kind),
    ]
    if config_file is not None:
        sources.append(_yaml(kind, config_file))
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        merged.update(source())
    known = {f"{ENV_PREFIX}{name}".upper() for name in ServeSettings.model_fields}
    known.update(KEY_VARIABLES)
    unknown = sorted(
        name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known
    )
    if unknown:
        raise ConfigError(f"unknown environment variable: {', '.join(unknown)}")
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(item) for item in error.errors())) from None


def _yaml(kind: type[ModelSettings], path: Path) -> PydanticBaseSettingsSource:
    try:
        return YamlConfigSettingsSource(kind, yaml_file=path)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"--config: {path} is not a YAML mapping: {error}") from None


def _sentence(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"]) or "settings"
    if item["type"] == "extra_forbidden":
        return f"{name}: no such option"
    return f"{name}: {item['msg']} (given: {item['input']!r})"
