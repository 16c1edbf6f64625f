"""The `quire` command. Options of `serve` and `generate` are the fields of the settings, nothing else.

Only click and the settings are imported here; each command imports what it needs when it runs.
"""

import asyncio
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from quire.config.errors import QuireError
from quire.config.settings import LoadFormat, ModelSettings, ServeSettings, load

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(kind: type[ModelSettings]) -> Callable[[F], F]:
    """One click option per field of `kind`; an option that is not given does not appear."""

    def decorate(function: F) -> F:
        for name, field in reversed(kind.model_fields.items()):
            flag = f"--{name.replace('_', '-')}"
            default = field.get_default(call_default_factory=True)
            text = field.description or ""
            if default not in (None, (), False, True):
                text = f"{text} [default: {default}]"
            extra: dict[str, Any] = {}
            choices = _choices(field.annotation)
            if field.annotation is bool:
                flag = f"{flag}/--no-{name.replace('_', '-')}"
            elif choices:
                extra["type"] = click.Choice(choices)
            elif get_origin(field.annotation) is tuple:
                extra["multiple"] = True
            else:
                extra["metavar"] = _metavar(field.annotation)
            function = click.option(flag, name, default=None, help=text, **extra)(function)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="YAML file with these options as keys.",
        )(function)

    return decorate


def _choices(annotation: Any) -> list[str]:
    return (
        [str(value) for value in get_args(annotation)] if get_origin(annotation) is Literal else []
    )


def _metavar(annotation: Any) -> str:
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    names = {"int": "N", "float": "X", "ByteSize": "SIZE", "Path": "FILE"}
    return next((names[kind.__name__] for kind in kinds if kind.__name__ in names), "TEXT")


def _load(kind: type[ModelSettings], options: dict[str, Any]) -> Any:
    config = options.pop("config")
    flags = {name: value for name, value in options.items() if value not in (None, ())}
    return load(kind, flags, config)


def reports_errors(function: F) -> F:
    """A QuireError becomes one line on standard error and its own exit code."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except QuireError as error:
            click.echo(f"quire: error: {error}", err=True)
            sys.exit(error.exit_code)

    return wrapped  # type: ignore[return-value]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Quire serves language models over the OpenAI API. Same request, same tokens."""


@main.command()
@settings_options(ServeSettings)
@reports_errors
def serve(**options: Any) -> None:
    """Serve a model over HTTP."""
    _open_standard_streams()
    settings = _load(ServeSettings, options)
    import uvloop

    from quire.server.worker_process import worker_ahead

    async def run() -> None:
        async with worker_ahead() as worker:
            # The worker's imports take longest: these meanwhile.
            from quire.server.daemon import Daemon
            from quire.server.logs import configure_logging

            configure_logging(settings.log_format, settings.log_level)
            await Daemon(settings, worker).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def _open_standard_streams() -> None:
    """Open those that are closed on the null device, here and in children.

    What is opened next would else get their numbers, which libuv refuses to close.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


@main.command()
@settings_options(ModelSettings)
@click.option("--prompt", required=True, multiple=True, help="Text to continue; may be repeated.")
@click.option(
    "--chat/--no-chat", default=None, help="Apply the chat template [default: if there is one]."
)
@click.option("--max-new-tokens", type=click.IntRange(1), default=100, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=int, default=-1, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@reports_errors
def generate(
    prompt: tuple[str, ...], chat: bool | None, max_new_tokens: int, **options: Any
) -> None:
    """Generate text without a server."""
    from quire.pipelines.core.sampling_params import SamplingParams
    from quire.pipelines.llm import LLM

    sampling = {name: options.pop(name) for name in ("temperature", "top_p", "top_k", "seed")}
    settings = _load(ModelSettings, options)
    try:
        params = SamplingParams(max_new_tokens=max_new_tokens, **sampling)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with LLM(settings=settings) as llm:
        use_chat = llm.has_chat_template if chat is None else chat
        try:
            texts = llm.generate(list(prompt), params=params, chat=use_chat)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        for text in texts:
            click.echo(text)


@main.command()
@settings_options(ModelSettings)
@click.option("--prompt", required=True, multiple=True, help="Text to embed; may be repeated.")
@click.option(
    "--pooling", type=click.Choice(["cls", "mean", "last"]), help="Default: the model's own."
)
@click.option("--normalize/--no-normalize", default=None, help="Default: as the model says.")
@click.option("--prompt-name", help="One of the model's prompts, put before each text.")
@reports_errors
def encode(
    prompt: tuple[str, ...],
    pooling: Any,
    normalize: bool | None,
    prompt_name: str | None,
    **options: Any,
) -> None:
    """Turn text into embedding vectors, one JSON line each."""
    import orjson

    from quire.pipelines.text_encoder import TextEncoder

    encoder = TextEncoder(_load(ModelSettings, options))
    try:
        vectors = encoder.encode(
            prompt, pooling=pooling, normalize=normalize, prompt_name=prompt_name
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for text, vector in zip(prompt, vectors, strict=True):
        click.echo(orjson.dumps({"prompt": text, "embedding": vector.tolist()}).decode())


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_models(as_json: bool) -> None:
    """List the supported architectures and encodings, with the measured error of each."""
    import orjson

    from quire.pipelines.architectures.parity import PATHS, format_error, load_parity, totals
    from quire.pipelines.architectures.served import listed_architectures

    measured = totals(load_parity())
    if as_json:
        rows = [
            {
                "name": row.name,
                "task": row.task,
                "example_repo_ids": row.example_repo_ids,
                "parity": [total for total in measured if total.architecture == row.name],
            }
            for row in listed_architectures()
        ]
        click.echo(orjson.dumps({"architectures": rows}).decode())
        return
    click.echo("greatest difference of logits from transformers' (bfloat16: root mean square)")
    click.echo(f"{'architecture':<34}{'encoding':<14}" + "".join(f"{p:>9}" for p in PATHS))
    for total in measured:
        errors = (total.prefill, total.chunked, total.decode)
        cells = "".join(f"{format_error(error):>9}" for error in errors)
        click.echo(f"{total.architecture:<34}{total.encoding:<14}{cells}")


@main.command("warm-cache")
@click.option("--model", required=True, help="Hub id: org/name or org/name:file.gguf.")
@click.option("--revision", default=None, help="Branch, tag or commit.")
@click.option(
    "--load-format",
    type=click.Choice(get_args(LoadFormat)),
    default="auto",
    show_default=True,
    help="Which weights, as for serve.",
)
@reports_errors
def warm_cache(model: str, revision: str | None, load_format: LoadFormat) -> None:
    """Download a hub model ahead of serving it."""
    from quire.pipelines.hf import resolve_model

    click.echo(str(resolve_model(model, revision, load_format)))


@main.command()
@settings_options(ModelSettings)
@click.option(
    "--hardware",
    default=None,
    help="a100, h100, h200, b200, l40s, mi300x, or cpu for this machine [default: cpu].",
)
@reports_errors
def plan(hardware: str | None, **options: Any) -> None:
    """Predict memory, pages, concurrency and step floors without loading the model."""
    from quire.pipelines.architectures.load import load_model_spec
    from quire.pipelines.architectures.served import served_architectures
    from quire.pipelines.architectures.spec import serving_dtype
    from quire.pipelines.forecast import encoder_table, find_hardware, forecast
    from quire.pipelines.hf import resolve_model
    from quire.pipelines.model_task import encoder_of, encoder_spec

    settings = _load(ModelSettings, options)
    architectures = served_architectures(settings)
    folder = resolve_model(settings.model, settings.revision, settings.load_format)
    name = hardware or "cpu"
    if (row := encoder_of(folder)) is not None:
        encoder = encoder_spec(folder, row)
        kind = "cpu" if name == "cpu" else "cuda"
        dtype = serving_dtype(encoder.checkpoint_dtype, settings.dtype, kind)
        click.echo(encoder_table(encoder, settings, find_hardware(name, dtype), dtype))
        return
    spec = load_model_spec(folder, architectures)
    dtype = spec.serving_dtype(settings.dtype, "cpu" if name == "cpu" else "cuda")
    click.echo(forecast(spec, settings, find_hardware(name, dtype)).table())


@main.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Server to load.")
@click.option("--model", default=None, help="Model to ask for [default: the server's].")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Uses the file's first key.",
)
@click.option("--requests", type=click.IntRange(1), default=64, show_default=True)
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random prompts.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@reports_errors
def bench(api_key_file: Path | None, as_json: bool, **options: Any) -> None:
    """Measure a running server: TTFT, TPOT, tokens per second."""
    from dataclasses import asdict

    import orjson

    from quire.server.auth import read_key_file
    from quire.server.bench import Load, run_load

    key = read_key_file(api_key_file)[0].text if api_key_file else None
    try:
        report = asyncio.run(run_load(Load(api_key=key, **options)))
    except (RuntimeError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(orjson.dumps(asdict(report)).decode() if as_json else report.table())


@main.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as distribution_version

    click.echo(f"quire {distribution_version('quire')}")
