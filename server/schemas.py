"""What a client may send.  Nothing that is declared here is ignored; everything else is refused (refuse.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, PlainValidator, model_validator

from redraft.server.limits import (
    MAX_CHOICES,
    MAX_DRAFTED,
    MAX_SALT_CHARS,
    MAX_USER_CHARS,
)
from redraft.server.refuse import NEUTRAL, NEUTRAL_OUTSIDE_CHAT, Neutral
from redraft.server.schema_body import Body
from redraft.server.schema_sampling import Bool, CompletionSampling, Int, SamplingFields, conflict, is_ids
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


class GenerationRequest(Body, SamplingFields, StructuredFields):
    """What both endpoints take."""

    model: str = Field(description="Name of the model, as `/v1/models` lists it.")
    skip_special_tokens: Bool = Field(
        default=True,
        description="Leave special tokens out of the text. The model's own end token shows only if this is false and "
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
        if self.prompt_logprobs is not None and self.stream:
            raise conflict("prompt_logprobs", "prompt_logprobs cannot be streamed")
        return self

    @property
    def made(self) -> int:
        """How many choices are made of each prompt, to show `n` of them."""
        return self.n

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


class CompletionRequest(CompletionSampling, GenerationRequest):
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
        if self.made < self.n:
            raise conflict("best_of", f"best_of must be at least n, which is {self.n}")
        if self.made > self.n and self.stream:
            raise conflict("best_of", "best_of above n cannot be streamed: which are best is known at the end")
        if len(self.prompt) * self.made > MAX_CHOICES:
            name = "n" if self.best_of is None else "best_of"
            raise conflict(name, f"times the number of prompts must be at most {MAX_CHOICES}")
        if self.include_metrics and len(self.prompt) * self.made > 1:
            raise conflict("include_metrics", "is only allowed for one choice")
        if self.echo and self.suffix:
            raise conflict("suffix", "cannot be given beside echo: the text would not stand between them")
        return self

    @property
    def made(self) -> int:
        return self.n if self.best_of is None else self.best_of
