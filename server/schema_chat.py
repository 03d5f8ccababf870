"""What a client may send to `POST /v1/chat/completions`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, PlainValidator, model_validator

from redraft.server.limits import MAX_MESSAGES, MAX_PARTS, MAX_TOOLS
from redraft.server.refuse import NEUTRAL, NEUTRAL_IN_CHAT, NEUTRAL_IN_MESSAGE, Neutral
from redraft.server.schema_body import Body
from redraft.server.schema_sampling import Bool, ChatSampling, Int, conflict
from redraft.server.schema_tools import Id, Name, NamedTool, Tool, ToolCall, ToolChoice
from redraft.server.schemas import GenerationRequest

TEMPLATE_VARIABLES: Mapping[str, tuple[object, ...]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "preserve_thinking": (True, False),
    "clear_thinking": (True, False),
    "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh"),
}
"""Variables that a request may set in the model's chat template, and their values: what published templates of
reasoning models read.  Others could change what a template is trusted with."""
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


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


def _variables(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    for name, given in value.items():
        allowed = TEMPLATE_VARIABLES.get(name)
        if allowed is None:
            raise conflict(name, f"only {', '.join(TEMPLATE_VARIABLES)} may be set")
        if not any(given == known and type(given) is type(known) for known in allowed):
            raise conflict(name, f"must be one of {json.dumps(allowed)[1:-1]}")
    return value


class Message(Body):
    """One turn of a conversation."""

    neutral: ClassVar[Mapping[str, Neutral]] = NEUTRAL_IN_MESSAGE
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="`developer` is taken as `system`; `tool` brings the result of a call."
    )
    content: Annotated[str | None, PlainValidator(_content, json_schema_input_type=str | list[dict[str, str]])] = Field(
        default=None,
        description="A text, or a list of parts of the form `{type: text, text: ...}`; may only be missing beside "
        "`tool_calls`.",
    )
    reasoning_content: str | None = Field(
        default=None,
        description="Of an assistant's turn, as it came in the reply. The template says whether it is shown again.",
    )
    tool_calls: list[ToolCall] | None = Field(
        default=None, min_length=1, max_length=MAX_TOOLS, description="Of an assistant's turn, as it came in the reply."
    )
    tool_call_id: Id | None = Field(default=None, description="Of a tool's turn: which call this answers.")
    name: Name | None = Field(default=None, description="Of a tool's turn: the tool's name.")

    @model_validator(mode="after")
    def _by_role(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise conflict("content", "is required")
        owners = {"reasoning_content": "assistant", "tool_calls": "assistant", "tool_call_id": "tool", "name": "tool"}
        for field, role in owners.items():
            if getattr(self, field) is not None and self.role != role:
                raise conflict(field, f"is only allowed with role: {role}")
        return self


class Conversation(Body):
    """What becomes a prompt by the model's chat template."""

    messages: list[Message] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The conversation so far, oldest first."
    )
    tools: list[Tool] = Field(
        default_factory=list,
        max_length=MAX_TOOLS,
        description="What the model may call; only for models whose chat template knows tools.",
    )
    add_generation_prompt: Bool = Field(
        default=True, description="End the prompt with the opening of the assistant's turn."
    )
    continue_final_message: Bool = Field(
        default=False,
        description="End the prompt within the last message, which the reply goes on with; only with "
        "`add_generation_prompt: false`.",
    )
    add_special_tokens: Bool = Field(
        default=False,
        description="Let the tokenizer add its special tokens, too; templates write them themselves.",
    )
    chat_template_kwargs: Annotated[
        dict[str, Any], PlainValidator(_variables, json_schema_input_type=dict[str, bool | str])
    ] = Field(
        default_factory=dict,
        description=f"Variables for the chat template: {', '.join(TEMPLATE_VARIABLES)}. Only those that it reads.",
    )

    @model_validator(mode="after")
    def _conversable(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise conflict("continue_final_message", "is only allowed with add_generation_prompt: false")
        if self.continue_final_message and self.messages[-1].content is None:
            raise conflict("continue_final_message", "needs a last message that has content")
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise conflict("tools", "has two functions of one name")
        return self


class ChatRequest(Conversation, ChatSampling, GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    neutral: ClassVar[Mapping[str, Neutral]] = {**NEUTRAL, **NEUTRAL_IN_CHAT}
    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "smollm2-135m",
                "messages": [{"role": "user", "content": "Why is the sky blue?"}],
                "max_completion_tokens": 64,
                "stream": True,
            },
            "examples": [
                {
                    "model": "smollm2-135m",
                    "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
                    "tools": [
                        {
                            "type": "function",
                            "function": {
                                "name": "get_weather",
                                "description": "The weather in a city.",
                                "parameters": {
                                    "type": "object",
                                    "properties": {"city": {"type": "string"}},
                                    "required": ["city"],
                                },
                            },
                        }
                    ],
                }
            ],
        }
    )

    tool_choice: ToolChoice = Field(
        default="auto",
        description="Whether tools may be called (`auto`) or not (`none`: the model is not shown them), must be "
        "(`required`), or which one must be.",
    )
    parallel_tool_calls: Bool = Field(
        default=True, description="Whether a reply may have several calls; false ends it behind the first."
    )
    reasoning_effort: Effort | None = Field(
        default=None, description="How much to think; only for models whose chat template reads it."
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
            raise conflict("max_tokens", "differs from max_completion_tokens; give one of them")
        return self

    @model_validator(mode="after")
    def _one_effort(self) -> Self:
        name = "reasoning_effort"
        effort = self.reasoning_effort
        if effort is not None and self.chat_template_kwargs.get(name, effort) != effort:
            raise conflict(name, f"differs from chat_template_kwargs.{name}; give one of them")
        return self

    @model_validator(mode="after")
    def _chosen(self) -> Self:
        names = {tool.function.name for tool in self.tools}
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise conflict("tool_choice", "names none of the tools")
        if self.tool_choice == "required" and not names:
            raise conflict("tool_choice", "is only allowed with tools")
        return self
