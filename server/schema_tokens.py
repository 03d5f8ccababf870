"""What `POST /tokenize` and `POST /detokenize` take and answer; vLLM's shapes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag

from redraft.server.errors import kind
from redraft.server.limits import MAX_TOKENIZED
from redraft.server.schema_body import Body
from redraft.server.schema_chat import Conversation
from redraft.server.schema_sampling import Bool, is_ids


def _ids(value: Any) -> list[int]:
    if not is_ids(value):
        raise ValueError("must be a list of token ids")
    if len(value) > MAX_TOKENIZED:
        raise ValueError(f"at most {MAX_TOKENIZED} token ids are taken")
    return value


class _Tokenize(Body):
    """What both forms of a tokenize request take."""

    model: str | None = Field(default=None, description="Name of the model, as `/v1/models` lists it; may be left out.")
    return_token_strs: Bool = Field(default=False, description="Answer with each token as the vocabulary writes it.")


class TokenizeText(_Tokenize):
    """Body of `POST /tokenize` for a text."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "smollm2-135m", "prompt": "1, 2, 3", "return_token_strs": True}}
    )

    prompt: str = Field(max_length=MAX_TOKENIZED, description="The text.")
    add_special_tokens: Bool = Field(
        default=True, description="Let the tokenizer add the special tokens that it puts around a text."
    )


class TokenizeConversation(_Tokenize, Conversation):
    """Body of `POST /tokenize` for a conversation: the prompt that `/v1/chat/completions` would make of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
        }
    )


TEXT, CONVERSATION = kind("text"), kind("conversation")


def _kind(value: Any) -> str:
    messages = value.get("messages") if isinstance(value, dict) else getattr(value, "messages", None)
    return TEXT if messages is None else CONVERSATION


TokenizeRequest = Annotated[
    Annotated[TokenizeText, Tag(TEXT)] | Annotated[TokenizeConversation, Tag(CONVERSATION)], Discriminator(_kind)
]


class TokenizeReply(BaseModel):
    """Reply of `/tokenize`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"count": 2, "max_model_len": 8192, "tokens": [33, 28], "token_strs": ["1", ","]}}
    )

    count: int = Field(description="How many tokens there are.")
    max_model_len: int = Field(description="How many prompt and reply may have together.")
    tokens: list[int] = Field(description="Their ids.")
    token_strs: list[str] | None = Field(
        default=None, description="How the vocabulary writes each; null unless asked for with `return_token_strs`."
    )


class DetokenizeRequest(Body):
    """Body of `POST /detokenize`."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "smollm2-135m", "tokens": [33, 28]}})

    model: str | None = Field(default=None, description="Name of the model, as `/v1/models` lists it; may be left out.")
    tokens: Annotated[list[int], PlainValidator(_ids, json_schema_input_type=list[int])] = Field(
        description=f"Up to {MAX_TOKENIZED} token ids."
    )


class DetokenizeReply(BaseModel):
    """Reply of `/detokenize`."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "1,"}})

    prompt: str = Field(description="Their text, special tokens included.")
