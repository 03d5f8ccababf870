"""What a client may send.  Nothing that is declared here is ignored; everything else is refused (refuse.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AllowInfNan,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    Strict,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from redraft.server.limits import (
    MAX_CHOICES,
    MAX_DRAFTED,
    MAX_FIELDS,
    MAX_SALT_CHARS,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_USER_CHARS,
)
from redraft.server.refuse import NEUTRAL, NEUTRAL_OUTSIDE_CHAT, Neutral, drop_neutral

Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Prompt = str | list[str] | list[int] | list[list[int]]


def _is_ids(value: object) -> bool:
    # type() and not isinstance: true and false are no token ids
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """One prompt or several, each a text or a list of token ids, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if _is_ids(value):
        return [value]
    if isinstance(value, list) and value:
        if len(value) > MAX_CHOICES:
            raise ValueError(f"at most {MAX_CHOICES} prompts are taken at once")
        if all(isinstance(item, str) for item in value) or all(_is_ids(item) for item in value):
            return value
    raise ValueError("must be a text, a list of texts, a list of token ids or a list of such lists, and not empty")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a text or a list of texts")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings are taken")
    if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"each stop string must have 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


def conflict(param: str, message: str) -> PydanticCustomError:
    """What is wrong with ``param`` only beside another parameter."""
    return PydanticCustomError("conflict", "{message}", {"message": message, "param": param})


class Body(BaseModel):
    """An endpoint's body: what is neutral is dropped, what is unknown is refused."""

    model_config = ConfigDict(extra="forbid")
    neutral: ClassVar[Mapping[str, Neutral]] = {}
    """Parameters of others that ask for nothing with these values."""

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict):
            if len(value) > MAX_FIELDS:
                raise ValueError(f"the object has more than {MAX_FIELDS} fields")
            return drop_neutral(value, cls.neutral)
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler.resolve_ref_schema(reference := handler(schema))
        for name, field in described["properties"].items():
            if name not in described.get("required", ()):
                _allow_null(field)
        return reference


def _allow_null(field: JsonSchemaValue) -> None:
    """Say in a property's schema that null is as good as leaving it out."""
    kinds = field.get("anyOf")
    if kinds is None:
        # what says the same of any type stays where it is
        about = {key: field.pop(key) for key in ("title", "description", "default", "examples") if key in field}
        kinds = [dict(field)]
        field.clear()
        field.update(anyOf=kinds, **about)
    if {"type": "null"} not in kinds:
        kinds.append({"type": "null"})


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: Bool = Field(default=False, description="Send a last chunk with `usage` and no choices.")
    continuous_usage_stats: Bool = Field(
        default=False,
        description="Let every chunk have the `usage` so far, of all choices; only with `include_usage`.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.continuous_usage_stats and not self.include_usage:
            raise conflict("continuous_usage_stats", "is only allowed with include_usage: true")
        return self


class Speculation(Body):
    """How much may be drafted for a request.  It changes the speed, never the text."""

    enabled: Bool = Field(default=True, description="Whether anything may be drafted; false decodes plainly.")
    max_nodes: Int | None = Field(
        default=None,
        ge=0,
        le=MAX_DRAFTED,
        description="Most drafted tokens verified in a round; 0 decodes plainly. If left out, the engine decides.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.enabled and self.max_nodes:
            raise ValueError("enabled: false and max_nodes above 0 contradict each other")
        return self


class GenerationRequest(Body):
    """What both endpoints take."""

    model: str = Field(description="Name of the model, as `/v1/models` lists it.")
    temperature: Number = Field(default=1.0, ge=0, le=2, description="0 is greedy.")
    top_p: Number = Field(
        default=1.0, gt=0, le=1, description="Keep the likeliest tokens whose probabilities reach this sum."
    )
    top_k: Int = Field(default=0, ge=-1, lt=2**31, description="Keep this many tokens; 0 and -1 keep all.")
    min_p: Number = Field(
        default=0.0, ge=0, le=1, description="Keep tokens at least this likely, relative to the likeliest."
    )
    seed: Int | None = Field(
        default=None,
        ge=-(2**63),
        lt=2**64,
        description="Same request and seed, same text, whatever else the server does. Drawn at random if left out.",
    )
    stop: Annotated[tuple[str, ...], PlainValidator(_stops, json_schema_input_type=str | list[str])] = Field(
        default=(),
        description=f"Up to {MAX_STOPS} texts of up to {MAX_STOP_CHARS} characters; "
        "the reply ends before the first that appears.",
    )
    include_stop_str_in_output: Bool = Field(
        default=False, description="Let the reply end behind the stop string instead of before it."
    )
    skip_special_tokens: Bool = Field(
        default=True,
        description="Leave special tokens out of the text. The token that ends a reply shows only if this is false and "
        "`include_stop_str_in_output` is true.",
    )
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

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise conflict("stream_options", "is only allowed with stream: true")
        if self.include_metrics and self.n > 1:
            raise conflict("include_metrics", "is only allowed for one choice")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream has a usage."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def max_nodes(self) -> int | None:
        """Most drafted nodes to verify in a round; None leaves it to the engine."""
        if self.speculation is None:
            return None
        return self.speculation.max_nodes if self.speculation.enabled else 0


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`."""

    neutral: ClassVar[Mapping[str, Neutral]] = {**NEUTRAL, **NEUTRAL_OUTSIDE_CHAT}
    model_config = ConfigDict(
        json_schema_extra={
            "example": {"model": "smollm2-135m", "prompt": "1, 2, 3,", "max_tokens": 8, "temperature": 0}
        }
    )

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(_prompts, json_schema_input_type=Prompt)] = Field(
        description="A text, a list of token ids, or a list of either. Each of several prompts gives `n` choices."
    )
    suffix: str = Field(
        default="",
        description="What comes behind the text to be made; refused unless the model has tokens for infilling.",
    )
    add_special_tokens: Bool = Field(
        default=True, description="Let the tokenizer add the special tokens that it puts around a prompt given as text."
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
            raise conflict("n", f"times the number of prompts must be at most {MAX_CHOICES}")
        if self.include_metrics and len(self.prompt) > 1:
            raise conflict("include_metrics", "is only allowed for one choice")
        return self
