"""What the server answers: OpenAI's objects, and ``metrics`` for those who ask."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from redraft.server.rounds import Round

Finish = Literal["stop", "length"]


class PromptTokensDetails(BaseModel):
    """What became of the prompt's tokens."""

    cached_tokens: int = Field(
        description="Of `prompt_tokens`, those whose KV was there already; before any of its choices."
    )


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int = Field(description="Of all prompts, each counted once.")
    completion_tokens: int = Field(description="Of all choices, up to each finish, the end-of-turn token included.")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class SpeculationMetrics(BaseModel):
    """How speculation went for this reply, in vLLM's layout; steps are rounds, those that drafted nothing included."""

    mean_acceptance_length: float = Field(description="1 + accepted / steps.")
    draft_acceptance_rate: float = Field(description="accepted / drafted.")
    acceptance_histogram: list[int] = Field(description="Steps that accepted 0, 1, 2 ... drafted tokens.")
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int = Field(description="Largest number of tokens drafted in a step.")


class ReplyMetrics(BaseModel):
    """The reply's own statistics, by the server's clock."""

    speculative_decoding: SpeculationMetrics
    time_to_first_token_ms: float = Field(description="From submission to the first token.")
    generation_time_ms: float = Field(description="From the first token to the last.")
    queue_time_ms: float = Field(description="From submission to the first token, prefill not counted.")
    mean_itl_ms: float = Field(description="Generation time by tokens after the first event.")
    tokens_per_second: float = Field(description="Tokens by the time from submission to the last token.")


class Envelope(BaseModel):
    """What every reply and chunk carries."""

    id: str
    created: int = Field(description="Seconds since 1970.")
    model: str
    system_fingerprint: str = Field(description="Same fingerprint, request and seed: same tokens, bit for bit.")
    usage: Usage | None = None
    metrics: ReplyMetrics | None = Field(default=None, description="With `include_metrics`, absent otherwise.")
    rounds: list[Round] | None = Field(
        default=None, description="With `include_rounds`, absent otherwise: all rounds, or a chunk's."
    )


class CompletionChoice(BaseModel):
    """One choice, or what is new of it."""

    index: int = Field(description="Prompt number times n, plus the choice's number.")
    text: str
    logprobs: None = None
    finish_reason: Finish | None = None


class Completion(Envelope):
    """Reply of `/v1/completions`, and each chunk of its stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class AssistantMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One choice."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Finish


class ChatCompletion(Envelope):
    """Reply of `/v1/chat/completions`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ChatDelta(BaseModel):
    """What is new of a turn."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=lambda value: value is None)
    content: str | None = Field(default=None, exclude_if=lambda value: value is None)


class ChatChunkChoice(BaseModel):
    """What is new of one choice."""

    index: int
    delta: ChatDelta
    logprobs: None = None
    finish_reason: Finish | None = None


class ChatChunk(Envelope):
    """Chunk of a stream of `/v1/chat/completions`."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class Model(BaseModel):
    """A model that this server serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "redraft"
    max_model_len: int = Field(description="Tokens that prompt and reply may have together.")


class ModelList(BaseModel):
    """Reply of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Reply of `/health` and `/ready`."""

    status: Literal["ok", "loading", "draining", "dead"]


class Version(BaseModel):
    """Reply of `/version`."""

    version: str
    system_fingerprint: str | None = Field(description="Null while the engine is loading.")
    draft: str | None = Field(description="Name and version of the draft; null while the engine is loading.")
