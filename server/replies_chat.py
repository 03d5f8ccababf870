"""What `/v1/chat/completions` answers: OpenAI's objects, with `reasoning_content` as others have it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from redraft.server.replies import EXAMPLE_USAGE, Envelope, Finish
from redraft.server.reply_logprobs import ChatLogprobs, PromptLogprobs


class CalledFunction(BaseModel):
    """What is to be called."""

    name: str = Field(description="One of the tools' names.")
    arguments: str = Field(description="As the model wrote them: JSON, which may be cut off or not fit the schema.")


class CalledTool(BaseModel):
    """A tool call."""

    id: str = Field(description="For the `tool_call_id` of the message that brings the result.")
    type: Literal["function"] = Field(default="function", description="Nothing else is called.")
    function: CalledFunction = Field(description="Name and arguments.")


class AssistantMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = Field(default="assistant", description="Whose turn it is.")
    content: str | None = Field(description="The text; null where there are tool calls and no text.")
    refusal: None = Field(default=None, description="Always null; for compatibility.")
    reasoning_content: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="What the model thought first; absent where it did not.",
    )
    tool_calls: list[CalledTool] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="In order; absent where there are none."
    )


class ChatChoice(BaseModel):
    """One choice."""

    index: int = Field(description="Number of the choice.")
    message: AssistantMessage = Field(description="The assistant's whole turn.")
    logprobs: ChatLogprobs | None = Field(default=None, description="Of every token made, if asked for.")
    finish_reason: Finish = Field(description="Why the choice ended.")


class ChatCompletion(Envelope):
    """Reply of `/v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "chatcmpl-1",
                "created": 1795447371,
                "model": "smollm2-135m",
                "system_fingerprint": "fp_1",
                "usage": EXAMPLE_USAGE,
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "Air scatters blue light.", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
            }
        }
    )

    object: Literal["chat.completion"] = Field(default="chat.completion", description="What this is.")
    choices: list[ChatChoice] = Field(description="All choices, in order.")
    prompt_logprobs: PromptLogprobs | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Of the prompt's tokens, if asked for."
    )


class FunctionDelta(BaseModel):
    """What is new of a call's function."""

    name: str | None = Field(
        default=None, exclude_if=lambda value: value is None, description="With the call's first delta."
    )
    arguments: str = Field(description="More of the arguments.")


class ToolDelta(BaseModel):
    """What is new of a tool call."""

    index: int = Field(description="Number of the call within its reply.")
    id: str | None = Field(
        default=None, exclude_if=lambda value: value is None, description="With the call's first delta."
    )
    type: Literal["function"] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="With the call's first delta."
    )
    function: FunctionDelta = Field(description="What is new of it.")


class ChatDelta(BaseModel):
    """What is new of a turn."""

    role: Literal["assistant"] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="With the choice's first chunk."
    )
    content: str | None = Field(default=None, exclude_if=lambda value: value is None, description="More of the text.")
    reasoning_content: str | None = Field(
        default=None, exclude_if=lambda value: value is None, description="More of what the model thinks first."
    )
    tool_calls: list[ToolDelta] | None = Field(
        default=None, exclude_if=lambda value: value is None, description="More of tool calls."
    )


class ChatChunkChoice(BaseModel):
    """What is new of one choice."""

    index: int = Field(description="Number of the choice.")
    delta: ChatDelta = Field(description="More of the assistant's turn.")
    logprobs: ChatLogprobs | None = Field(default=None, description="Of the tokens behind the delta, if asked for.")
    finish_reason: Finish | None = Field(default=None, description="Why the choice ended; null as long as it goes on.")


class ChatChunk(Envelope):
    """Chunk of a stream of `/v1/chat/completions`."""

    object: Literal["chat.completion.chunk"] = Field(default="chat.completion.chunk", description="What this is.")
    choices: list[ChatChunkChoice] = Field(description="What is new of one choice; none in the chunk with `usage`.")
