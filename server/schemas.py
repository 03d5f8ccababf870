"""What a client may send.  Nothing that is declared here is ignored; everything else is refused (refuse.py)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from redraft.server.limits import (
    MAX_CHOICES,
    MAX_DRAFTED,
    MAX_FIELDS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_SALT_CHARS,
    MAX_USER_CHARS,
)
from redraft.server.refuse import NEUTRAL, NEUTRAL_IN_MESSAGE, drop_neutral
from redraft.server.schema_sampling import Bool, Int, SamplingFields, is_ids
from redraft.server.schema_sampling import conflict as _conflict
from redraft.server.schema_structured import StructuredFields

Prompt = str | list[str] | list[int] | list[list[int]]


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """One prompt or several, each a text or a list of token ids, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if value and is_ids(value):
        return [value]
    if isinstance(value, list) and value:
        if len(value) > MAX_CHOICES:
            raise ValueError(f"at most {MAX_CHOICES} prompts are taken at once")
        if all(isinstance(item, str) for item in value) or all(item and is_ids(item) for item in value):
            return value
    raise ValueError("must be a text, a list of texts, a list of token ids or a list of such lists, and not empty")


def _content(value: Any) -> str:
    """A message's text; text parts are joined by line feeds, as templates for texts expect."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or len(value) > MAX_PARTS:
        raise ValueError(f"must be a text or a list of 1 to {MAX_PARTS} parts")
    for part in value:
        if not isinstance(part, dict) or set(part) != {"type", "text"}:
            raise ValueError('only parts of the form {"type": "text", "text": "..."} are taken')
        if part["type"] != "text" or not isinstance(part["text"], str):
            raise ValueError('only parts of the form {"type": "text", "text": "..."} are taken')
    return "\n".join(part["text"] for part in value)


def _few_fields(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) > MAX_FIELDS:
            raise ValueError(f"the object has more than {MAX_FIELDS} fields")
        return drop_neutral(value, NEUTRAL)
    return value


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid")

    include_usage: Bool = Field(default=False, description="Send a last chunk with `usage` and no choices.")


class Speculation(BaseModel):
    """How much may be drafted for a request.  It changes the speed, never the text."""

    model_config = ConfigDict(extra="forbid")

    enabled: Bool = Field(default=True, description="Whether anything may be drafted; false decodes plainly.")
    max_nodes: Int | None = Field(
        default=None,
        ge=0,
        le=MAX_DRAFTED,
        description="Most drafted tokens verified in a round; 0 decodes plainly. If left out, the engine decides.",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return drop_neutral(value, {}) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.enabled and self.max_nodes:
            raise ValueError("enabled: false and max_nodes above 0 contradict each other")
        return self


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"] = Field(description="`developer` is taken as `system`.")
    content: Annotated[str, PlainValidator(_content, json_schema_input_type=str | list[dict[str, str]])] = Field(
        description="A text, or a list of parts of the form `{type: text, text: ...}`."
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        return drop_neutral(value, NEUTRAL_IN_MESSAGE) if isinstance(value, dict) else value


class GenerationRequest(SamplingFields, StructuredFields):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="Name of the model, as `/v1/models` lists it.")
    n: Int = Field(default=1, ge=1, le=MAX_CHOICES, description="How many choices to make of each prompt.")
    stream: Bool = Field(default=False, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with `stream`.")
    user: str = Field(
        default="", max_length=MAX_USER_CHARS, description="Who asks; taken for compatibility, never stored."
    )
    speculation: Speculation | None = Field(
        default=None, description="How much may be drafted; if left out, the engine decides."
    )
    cache_salt: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_SALT_CHARS,
        description="Only requests with the same salt, or all without one, share what was computed of a prompt.",
    )
    include_metrics: Bool = Field(
        default=False, description="Add `metrics`, the reply's own statistics. One choice only."
    )
    include_rounds: Bool = Field(
        default=False,
        description="Add `rounds`: what each round committed, and the tree that it verified. One choice only.",
    )

    _drop_neutral = model_validator(mode="before")(_few_fields)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _conflict("stream_options", "is only allowed with stream: true")
        if self.include_metrics and self.n > 1:
            raise _conflict("include_metrics", "is only allowed for one choice")
        if self.include_rounds and self.n > 1:
            raise _conflict("include_rounds", "is only allowed for one choice")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def max_nodes(self) -> int | None:
        """Most drafted nodes to verify in a round; None leaves it to the engine."""
        if self.speculation is None:
            return None
        return self.speculation.max_nodes if self.speculation.enabled else 0


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"model": "smollm2-135m", "prompt": "1, 2, 3,", "max_tokens": 8, "temperature": 0}
        }
    )

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(_prompts, json_schema_input_type=Prompt)] = Field(
        description="A text, a list of token ids, or a list of either. Each of several prompts gives `n` choices."
    )
    max_tokens: Int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="How many tokens to make at most; if left out, 16 or what the context holds.",
    )

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise _conflict("n", f"times the number of prompts must be at most {MAX_CHOICES}")
        if self.include_metrics and len(self.prompt) > 1:
            raise _conflict("include_metrics", "is only allowed for one choice")
        if self.include_rounds and len(self.prompt) > 1:
            raise _conflict("include_rounds", "is only allowed for one choice")
        return self


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "smollm2-135m",
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                "max_completion_tokens": 64,
                "stream": True,
            }
        }
    )

    messages: list[Message] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The conversation so far, oldest first."
    )
    max_tokens: Int | None = Field(default=None, ge=1, lt=2**31, description="Older name of `max_completion_tokens`.")
    max_completion_tokens: Int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="How many tokens to make at most; if left out, as many as the context holds.",
    )

    @model_validator(mode="after")
    def _one_maximum(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise _conflict("max_tokens", "differs from max_completion_tokens; give one of them")
        return self
