"""Items: what a conversation of Responses is made of, as clients send them.

`kept_items` gives them the form in which they are listed and kept; there is no other after it.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from quire.config.limits import LIMITS
from quire.server.openai.known_fields import Harmless, unsupported
from quire.server.openai.request_model import RequestModel
from quire.server.openai.responses import known_fields
from quire.server.openai.responses.replies import ItemStatus

KeptItem = Mapping[str, Any]
"""An item with its id and every field that OpenAI's objects have."""

_PREFIXES: Mapping[str, str] = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


_ID = "As a response told it, or the client's own."
_STATUS = "Changes nothing."


class TextPart(RequestModel):
    """A piece of a message, or of what a function returned."""

    without_effect: ClassVar[Mapping[str, type]] = {
        "annotations": list,
        "logprobs": list,
        "prompt_cache_breakpoint": dict,
    }

    type: Literal["input_text", "output_text"] = Field(description="Either means the same.")
    text: str = Field(description="The piece.")

    @field_validator("type", mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        if value in ("input_image", "input_file", "input_audio", "refusal"):
            raise unsupported("", "only text parts are served")
        return value


class ReasoningPart(RequestModel):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "summary_text"] = Field(description="Either means the same.")
    text: str = Field(description="The piece.")


def _text_kind(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


Text = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[TextPart], Field(fail_fast=True), Tag("<parts>")],
    Discriminator(_text_kind),
]


class MessageItem(RequestModel):
    """A message: of someone, or of the assistant in an earlier turn."""

    without_effect: ClassVar[Mapping[str, type]] = {"phase": str}

    type: Literal["message"] = "message"
    id: str | None = Field(None, description=_ID)
    role: Literal["user", "assistant", "system", "developer"] = Field(description="Who says it.")
    content: Text = Field(description="What is said.")
    status: ItemStatus | None = Field(None, description=_STATUS)

    def kept(self) -> dict[str, Any]:
        """The fields besides type and id, as OpenAI lists them."""
        return {"status": "completed", "role": self.role, "content": self._parts()}

    def _parts(self) -> list[dict[str, Any]]:
        texts = [self.content] if isinstance(self.content, str) else [p.text for p in self.content]
        if self.role == "assistant":
            return [output_text(text) for text in texts]
        return [{"type": "input_text", "text": text} for text in texts]


class FunctionCallItem(RequestModel):
    """A call that the assistant made. `arguments`: JSON, as the reply had it."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.CALL

    type: Literal["function_call"]
    id: str | None = Field(None, description=_ID)
    call_id: str = Field(description="What its output names.")
    name: str = Field(description="The function.")
    arguments: str = Field(description="JSON in a string.")
    status: ItemStatus | None = Field(None, description=_STATUS)

    def kept(self) -> dict[str, Any]:
        """The fields besides type and id, as OpenAI lists them."""
        return {
            "status": "completed",
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
        }


class FunctionCallOutputItem(RequestModel):
    """What a called function returned."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.CALL

    type: Literal["function_call_output"]
    id: str | None = Field(None, description=_ID)
    call_id: str | None = Field(None, description="The call that it answers.")
    name: str | None = Field(None, description="The function.")
    output: Text = Field(description="What the function returned.")
    status: ItemStatus | None = Field(None, description=_STATUS)

    def kept(self) -> dict[str, Any]:
        """The fields besides type and id, as OpenAI lists them."""
        output: Any = self.output
        if not isinstance(output, str):
            output = [{"type": "input_text", "text": part.text} for part in output]
        kept = {"status": "completed", "call_id": self.call_id, "output": output}
        return kept if self.name is None else {**kept, "name": self.name}


class ReasoningItem(RequestModel):
    """What the model thought in an earlier turn; without content, the summary stands for it."""

    unsupported: ClassVar[Mapping[str, Harmless]] = known_fields.REASONING_ITEM

    type: Literal["reasoning"]
    id: str | None = Field(None, description=_ID)
    summary: list[ReasoningPart] = Field(
        [], fail_fast=True, description="Stands for the reasoning where there is no content."
    )
    content: list[ReasoningPart] = Field([], fail_fast=True, description="The reasoning.")
    status: ItemStatus | None = Field(None, description=_STATUS)

    def kept(self) -> dict[str, Any]:
        """The fields besides type and id, as OpenAI lists them."""
        return {
            "status": "completed",
            "summary": [{"type": "summary_text", "text": part.text} for part in self.summary],
            "content": [{"type": "reasoning_text", "text": part.text} for part in self.content],
        }


def _known_type(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _PREFIXES:
        hint = known_fields.ITEM_HINTS.get(kind, f"only items of type {', '.join(_PREFIXES)} are")
        raise unsupported("type", hint)
    return value


def _item_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if isinstance(kind, str) and kind in _PREFIXES else "<message>"


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(_item_kind),
    BeforeValidator(_known_type),
]

Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[
        list[Item],
        Field(max_length=LIMITS.messages, fail_fast=True, json_schema_extra={"minItems": 1}),
        Tag("<parts>"),
    ],
    Discriminator(_text_kind),
]


def output_text(text: str, logprobs: Sequence[Any] = ()) -> dict[str, Any]:
    """A part of an assistant's message."""
    return {"type": "output_text", "annotations": [], "logprobs": list(logprobs), "text": text}


def new_id(kind: str) -> str:
    """An id for an item of this type."""
    return f"{_PREFIXES[kind]}_{uuid.uuid4().hex}"


def kept_items(given: str | Sequence[Any]) -> list[KeptItem]:
    """The `Item`s of a request, or its one text of the user, as they are listed and kept.

    An id that a client gives twice is the first one's: pages of a list go on after an id.
    """
    items: Sequence[Any] = given
    if isinstance(given, str):
        items = [MessageItem.model_validate({"role": "user", "content": given})]
    kept: dict[str, KeptItem] = {}
    for item in items:
        id = item.id if item.id and item.id not in kept else new_id(item.type)
        kept[id] = {"id": id, "type": item.type, **item.kept()}
    return list(kept.values())
