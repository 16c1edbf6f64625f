"""What happens to a field that nobody knows: a warning, or a 400.

A client that asks for a constraint must not get free text, so a name that looks like one is always
refused (guided_jsn, responseFormat, max_output_tokens, an extra_body that was sent as it is). Other
names are told in a header, or refused in strict mode; so is any name where nothing is generated.
"""

import difflib
import re

from quire.config.limits import LIMITS
from quire.server.errors import InvalidRequest, UnsupportedParameter
from quire.server.openai.request_model import RequestModel

MAX_SHOWN_FIELDS = 16
MAX_SHOWN_CHARACTERS = 64

_CONSTRAINT = re.compile(
    r"guided|gramm|regex|regexp|pattern|ebnf|gbnf|lark|schema|constrain|structur|respon[sc]e_?f|"
    r"output_?f|_?format$|json|choices?$|tools?$|tool_|function|stop|bad_?words|banned|forbid|"
    r"allow|logit|bias|vocab|suppress|(max|min).*(token|len)|token_?(limit|budget)|num_predict",
    re.IGNORECASE,
)
_CARRIERS = frozenset(
    {"extra_body", "extra_args", "options", "parameters", "sampling_params", "generation_config"}
)
"""Peers' objects that hold such fields; ours stand at the top level."""
_CONSTRAINING = (
    *("response_format", "structured_outputs", "stop", "stop_token_ids", "max_tokens"),
    *("max_completion_tokens", "max_output_tokens", "min_tokens", "logit_bias"),
    *("allowed_token_ids", "bad_words"),
    *("tools", "tool_choice", "timeout", "ignore_eos", "truncate_prompt_tokens"),
)


def check_unknown(request: RequestModel, *, strict: bool) -> None:
    """Let the fields pass that nobody knows, if they may.

    Raises:
        UnsupportedParameter: one looks like a constraint, or, if `strict`, there is one.
        InvalidRequest: there are more than LIMITS.unknown_fields.
    """
    limit = LIMITS.unknown_fields
    names = request.unknown_names
    for path in names:
        if not request.may_constrain or path.startswith(("messages.", "input.")):
            continue
        name = path.rpartition(".")[2][:MAX_SHOWN_CHARACTERS]
        if name in _CARRIERS:
            raise UnsupportedParameter(shown_name(path), "its fields belong at the top level")
        if (known := _meant(name, request)) is not None:
            raise UnsupportedParameter(shown_name(path), f"did you mean '{known}'?")
        if _CONSTRAINT.search(name):
            raise UnsupportedParameter(
                shown_name(path), "it looks like a constraint, and no such field is known"
            )
    if strict and names:
        raise UnsupportedParameter(shown_name(names[0]), "no such field is known (--strict)")
    if len(names) > limit:
        raise InvalidRequest(
            f"'{shown_name(names[-1])}' is not known, and neither are {limit} other fields; the "
            f"limit is {limit}",
            param=shown_name(names[-1]),
            code="invalid_value",
        )


def shown_name(name: str) -> str:
    """A field's name as a header can carry it."""
    return printable(name)[:MAX_SHOWN_CHARACTERS]


def printable(text: str) -> str:
    """`text` in the characters that a header can carry."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def _meant(name: str, request: RequestModel) -> str | None:
    """The constraining field of `request` that `name` is a misspelling of."""
    served = type(request).model_fields.keys() - request.unsupported.keys()
    plain = {_plain(known): known for known in _CONSTRAINING if known in served}
    close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.85)
    return plain[close[0]] if close else None


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
