"""The one table of request limits. Each is checked where a request is parsed, and named when broken."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Bounds of one HTTP request; counts unless said otherwise."""

    prompts: int = 32
    """Prompts in one completions request."""
    embedding_inputs: int = 2048
    """Texts in one embeddings request."""
    embedding_values: int = 4_000_000
    """Numbers in the vectors of one reply."""
    choices: int = 128
    """Prompts times n in one request."""
    n: int = 128
    messages: int = 4096
    """Messages in one chat request."""
    stop_strings: int = 16
    stop_string_chars: int = 256
    stop_token_ids: int = 128
    detokenize_tokens: int = 1_000_000
    """Token ids in one detokenize request."""
    logit_bias: int = 1024
    allowed_token_ids: int = 16384
    bad_words: int = 128
    bad_word_chars: int = 256
    logprobs: int = 20
    """Most likely tokens reported per token."""
    logprob_cells: int = 1_000_000
    """Prompt tokens times the log-probabilities reported for each, in one request."""
    grammar_bytes: int = 262144
    """A schema, regular expression, list of choices or grammar."""
    compiled_grammar_bytes: int = 64 * 1024**2
    """One when compiled. It grows with the vocabulary, to 6 MiB for the smallest at 128k tokens."""
    grammar_seconds: float = 10.0
    """Compiling one."""
    tools: int = 256
    """Functions in one chat request, and calls in one message of it."""
    choices_of_text: int = 4096
    """Strings in structured_outputs.choice."""
    json_depth: int = 64
    """Nesting of objects and arrays in a body."""
    request_id_chars: int = 128
    priority: int = 100
    """Distance of a request's priority from 0, either way; a level is worth seconds of waiting."""
    cache_salt_bytes: int = 64
    timeout_seconds: float = 86400.0
    """The longest time limit that a request may set itself."""
    unknown_fields: int = 128
    """Fields that nobody knows, in one body."""
    batch_lines: int = 50_000
    """Requests in one batch's input file."""
    batch_errors: int = 100
    """Wrong lines that are told of one input file."""
    unfinished_batches: int = 100
    """Of one caller."""
    custom_id_chars: int = 512
    metadata_pairs: int = 16
    metadata_key_chars: int = 64
    metadata_value_chars: int = 512
    filename_chars: int = 255
    form_field_bytes: int = 1024
    """Name or value of a form's field that is not the file."""
    form_fields: int = 16
    min_expiry_seconds: int = 3600
    max_expiry_seconds: int = 2_592_000
    """30 days: the longest that a file is kept, and how long without being told."""
    min_upload_bytes_per_second: int = 16384
    """What an upload must reach, after the first `body_timeout` seconds."""
    header_bytes: int = 65536
    headers: int = 100
    unsent_bytes: int = 65536
    """Of one reply, waiting for its reader; the stream makes no more until they are taken."""


LIMITS = RequestLimits()
