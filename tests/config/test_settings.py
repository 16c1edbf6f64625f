"""Settings: load order, sentences about mistakes, and a frozen list of the options."""

from pathlib import Path

import pytest

from quire.config.api_keys_env import api_keys_of_environment, environment_without_keys
from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings, ServeSettings, load
from quire.config.worker_env import worker_environment

SERVE_OPTIONS = """
    model revision load_format engine custom_architectures dtype device threads max_length max_batch_size
    max_batch_input_tokens itl_target page_size
    kv_cache_pages kv_cache_memory device_memory_utilization enable_prefix_caching quantization exact
    served_model_name task generation_config tool_call_parser reasoning_parser reasoning_field
    host port api_key_file insecure max_queue_size
    max_concurrency_per_key max_request_bytes state_dir state_dir_size max_file_size responses_store_bytes responses_store_count
    strict header_timeout body_timeout reader_timeout
    admin_port admin_key_file log_format log_level maxserve_metrics otlp_traces_endpoint otlp_traces_sample_ratio
    shutdown_timeout worker_timeout stream_heartbeat
"""


def test_the_options_are_these():
    assert list(ServeSettings.model_fields) == SERVE_OPTIONS.split()


def test_flags_win_over_environment_over_file_over_defaults(tmp_path, monkeypatch):
    file = tmp_path / "quire.yaml"
    file.write_text("port: 1001\nmax_batch_size: 7\nhost: 127.0.0.9\n")
    monkeypatch.setenv("QUIRE_PORT", "1002")
    monkeypatch.setenv("QUIRE_MAX_BATCH_SIZE", "8")

    settings = load(ServeSettings, {"port": "1003"}, file)

    assert (settings.port, settings.max_batch_size, settings.host) == (1003, 8, "127.0.0.9")
    assert settings.max_queue_size == ServeSettings.model_fields["max_queue_size"].default


def test_names_and_sizes_are_read_from_text(monkeypatch):
    monkeypatch.setenv("QUIRE_SERVED_MODEL_NAME", "a,b")
    monkeypatch.setenv("QUIRE_PAGE_SIZE", "64")

    settings = load(ServeSettings, {"kv_cache_memory": "2GiB"})

    assert settings.served_model_name == ("a", "b")
    assert settings.page_size == 64
    assert settings.kv_cache_memory == 2 * 1024**3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"port": "x"}, ["port", "'x'"]),
        ({"port": 70000}, ["port", "65535", "70000"]),
        ({"quantization": "int4"}, ["quantization", "q4_0", "int4"]),
        ({"engine": "huggingface", "quantization": "int8"}, ["quantization", "engine", "int8"]),
        ({"page_size": 17}, ["page_size", "16, 32, 64 or 128", "17"]),
        ({"device": "tpu"}, ["device", "cuda:N", "tpu"]),
        ({"device": "cuda:x"}, ["device", "cuda:x"]),
        ({"dtype": "int8"}, ["dtype", "bfloat16", "int8"]),
        ({"max_batch_size": 0}, ["max_batch_size", "0"]),
        ({"device_memory_utilization": float("nan")}, ["device_memory_utilization", "nan"]),
        ({"kv_cache_memory": "two"}, ["kv_cache_memory", "two"]),
        ({"no_such": 1}, ["no_such", "no such option"]),
    ],
)
def test_a_wrong_option_is_named_with_its_value(flags, words):
    with pytest.raises(ConfigError) as error:
        load(ServeSettings, flags)

    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_variable_is_refused(monkeypatch):
    monkeypatch.setenv("QUIRE_PROT", "1")

    with pytest.raises(ConfigError, match="QUIRE_PROT"):
        load(ServeSettings, {})


def test_a_variable_of_serve_does_not_disturb_the_offline_model(monkeypatch):
    monkeypatch.setenv("QUIRE_PORT", "1002")
    monkeypatch.setenv("QUIRE_PAGE_SIZE", "64")

    assert load(ModelSettings, {}).page_size == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [("prot: 1\n", ["prot"]), ("- 1\n", ["mapping"]), ("a: [\n", ["YAML"])],
)
def test_a_wrong_file_is_refused(tmp_path, text, words):
    file = tmp_path / "quire.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError) as error:
        load(ServeSettings, {}, file)

    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_missing_file_is_refused():
    with pytest.raises(ConfigError, match="no such file"):
        load(ServeSettings, {}, Path("/nowhere.yaml"))


def test_keys_are_read_from_the_environment_and_kept_from_children(monkeypatch):
    monkeypatch.setenv("QUIRE_API_KEY", " one ")
    monkeypatch.setenv("QUIRE_API_KEYS", "two,,name:three")
    monkeypatch.setenv("QUIRE_PORT", "1002")

    assert load(ServeSettings, {}).port == 1002
    assert api_keys_of_environment() == [
        ("QUIRE_API_KEY", "one"),
        ("QUIRE_API_KEYS", "two"),
        ("QUIRE_API_KEYS", "name:three"),
    ]
    for environment in (worker_environment(), environment_without_keys()):
        assert environment["QUIRE_PORT"] == "1002"
        assert not {"QUIRE_API_KEY", "QUIRE_API_KEYS"} & environment.keys()
