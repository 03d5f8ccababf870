"""What the server answers: OpenAI's objects, and ``metrics`` for those who ask."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from redraft.server.reply_logprobs import CompletionLogprobs, PromptLogprobs
from redraft.server.rounds import Round

Finish = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(BaseModel):
    """What became of the prompt's tokens."""

    cached_tokens: int = Field(
        description="Of `prompt_tokens`, those whose KV was there already; before any of its choices."
    )


class CompletionTokensDetails(BaseModel):
    """What the generated tokens were for."""

    reasoning_tokens: int = Field(
        description="Of `completion_tokens`, those up to the end of the reasoning, its tags included."
    )


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int = Field(description="Of all prompts, each counted once.")
    completion_tokens: int = Field(description="Of all choices, up to each finish, the end-of-turn token included.")
    total_tokens: int = Field(description="Of both.")
    prompt_tokens_details: PromptTokensDetails = Field(description="More of `prompt_tokens`.")
    completion_tokens_details: CompletionTokensDetails | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="For models that reason; absent otherwise.",
    )


EXAMPLE_USAGE: dict[str, JsonValue] = {
    "prompt_tokens": 8,
    "completion_tokens": 8,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 0},
}


class SpeculationMetrics(BaseModel):
    """How speculation went for this reply, in vLLM's layout; steps are rounds, those that drafted nothing included."""

    mean_acceptance_length: float = Field(description="1 + accepted / steps.")
    draft_acceptance_rate: float = Field(description="accepted / drafted.")
    acceptance_histogram: list[int] = Field(description="Steps that accepted 0 ... `num_spec_tokens` drafted tokens.")
    num_spec_steps: int = Field(description="Rounds.")
    num_accepted_draft_tokens: int = Field(description="Drafted tokens that became part of the text.")
    num_draft_tokens: int = Field(description="Drafted tokens that were verified.")
    num_spec_tokens: int = Field(description="Most tokens that a step may draft.")


class ReplyMetrics(BaseModel):
    """The reply's own statistics, by the server's clock."""

    speculative_decoding: SpeculationMetrics = Field(description="Rounds and drafted tokens.")
    time_to_first_token_ms: float = Field(description="From submission to the first token.")
    generation_time_ms: float = Field(description="From the first token to the last.")
    queue_time_ms: float = Field(description="From submission until the engine began with it.")
    mean_itl_ms: float = Field(description="Generation time by tokens after the first event.")
    tokens_per_second: float = Field(description="Tokens by the time from submission to the last token.")


class Envelope(BaseModel):
    """What every reply and chunk carries."""

    id: str = Field(description="Of this reply; every chunk of a stream has the same.")
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The model that was asked for.")
    system_fingerprint: str = Field(description="Same fingerprint, request and seed: same tokens, bit for bit.")
    usage: Usage | None = Field(
        default=None, description="Tokens; in streams with `stream_options.include_usage` only, null until it is there."
    )
    metrics: ReplyMetrics | None = Field(default=None, description="With `include_metrics`, absent otherwise.")
    rounds: list[Round] | None = Field(
        default=None, description="With `include_rounds`, absent otherwise: all rounds, or a chunk's."
    )


class CompletionChoice(BaseModel):
    """One choice, or what is new of it."""

    index: int = Field(description="Prompt number times n, plus the choice's number.")
    text: str = Field(description="The text, or more of it.")
    logprobs: CompletionLogprobs | None = Field(default=None, description="Of the tokens of `text`, if asked for.")
    prompt_logprobs: PromptLogprobs | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Of the prompt's tokens, if asked for."
    )
    finish_reason: Finish | None = Field(default=None, description="Why the choice ended; null as long as it goes on.")


class Completion(Envelope):
    """Reply of `/v1/completions`, and each chunk of its stream."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "cmpl-1",
                "created": 1795447371,
                "model": "smollm2-135m",
                "system_fingerprint": "fp_1",
                "usage": EXAMPLE_USAGE,
                "object": "text_completion",
                "choices": [{"index": 0, "text": " 4, 5, 6", "logprobs": None, "finish_reason": "length"}],
            }
        }
    )

    object: Literal["text_completion"] = Field(default="text_completion", description="What this is.")
    choices: list[CompletionChoice] = Field(description="All choices, or what is new of one.")


EXAMPLE_MODEL: dict[str, JsonValue] = {
    "id": "smollm2-135m",
    "object": "model",
    "created": 1795447371,
    "owned_by": "redraft",
    "max_model_len": 8192,
}


class Model(BaseModel):
    """A model that this server serves."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE_MODEL})

    id: str = Field(description="Its name, as a request's `model` has it.")
    object: Literal["model"] = Field(default="model", description="What this is.")
    created: int = Field(description="When this server started, in seconds since 1970.")
    owned_by: str = Field(default="redraft", description="Who serves it.")
    max_model_len: int = Field(description="Tokens that prompt and reply may have together.")


class ModelList(BaseModel):
    """Reply of `/v1/models`."""

    model_config = ConfigDict(json_schema_extra={"example": {"object": "list", "data": [EXAMPLE_MODEL]}})

    object: Literal["list"] = Field(default="list", description="What this is.")
    data: list[Model] = Field(description="The one model that is served.")


class Health(BaseModel):
    """Reply of `/health` and `/ready`."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "ok"}})

    status: Literal["ok", "loading", "draining", "dead"] = Field(
        description="`draining`: told to stop, finishes what it has; `dead`: the engine has ended."
    )


class Version(BaseModel):
    """Reply of `/version`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"version": "0.1.0", "system_fingerprint": "fp_1", "draft": "dflash-sft"}}
    )

    version: str = Field(description="Of this server.")
    system_fingerprint: str | None = Field(description="Null while the engine is loading.")
    draft: str | None = Field(description="Name and version of the draft; null while the engine is loading.")
