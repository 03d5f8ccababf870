"""What a client may say about how tokens are chosen and where a text ends; both endpoints take it."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeGuard

from pydantic import AllowInfNan, BaseModel, BeforeValidator, Field, PlainValidator, Strict, model_validator
from pydantic_core import PydanticCustomError

from redraft.server.limits import MAX_CHOICES, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_CHARS, MAX_STOP_TOKENS, MAX_STOPS

Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]


def conflict(param: str, message: str) -> PydanticCustomError:
    """What is wrong with ``param`` only beside another parameter."""
    return PydanticCustomError("conflict", "{message}", {"message": message, "param": param})


def is_ids(value: object) -> TypeGuard[list[int]]:
    """Whether ``value`` is a list of integers."""
    # type() and not isinstance: true and false are no token ids
    return isinstance(value, list) and all(type(item) is int for item in value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a text or a list of texts")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings are taken")
    if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"each stop string must have 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


def _stop_tokens(value: Any) -> tuple[int, ...]:
    if not is_ids(value):
        raise ValueError("must be a list of token ids")
    if len(value) > MAX_STOP_TOKENS:
        raise ValueError(f"at most {MAX_STOP_TOKENS} stop tokens are taken")
    return tuple(value)


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of token id and bias."""
    if not isinstance(value, dict):
        raise ValueError("must be an object of token ids and numbers")
    if len(value) > MAX_LOGIT_BIAS:
        raise ValueError(f"at most {MAX_LOGIT_BIAS} tokens can be biased")
    # one way to write an id, so that none can come twice
    if not all(len(key) < 20 and key.isascii() and key.isdecimal() and str(int(key)) == key for key in value):
        raise ValueError("each key must be a token id")
    if not all(type(bias) in (int, float) and -100 <= bias <= 100 for bias in value.values()):
        raise ValueError("each value must be a number from -100 to 100")
    return tuple((int(key), float(bias)) for key, bias in value.items())


class SamplingFields(BaseModel):
    """How tokens are chosen and where the text ends.  All of it holds under speculation as without."""

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
    presence_penalty: Number = Field(
        default=0.0, ge=-2, le=2, description="Taken once from the logit of every token that was produced before."
    )
    frequency_penalty: Number = Field(
        default=0.0, ge=-2, le=2, description="Taken from the logit of a token for every time it was produced."
    )
    repetition_penalty: Number = Field(
        default=1.0,
        ge=0.01,
        le=100,
        description="Divides the positive logits of tokens in prompt or output, and multiplies their negative ones.",
    )
    logit_bias: Annotated[
        tuple[tuple[int, float], ...], PlainValidator(_bias, json_schema_input_type=dict[str, float])
    ] = Field(
        default=(),
        description=f"Up to {MAX_LOGIT_BIAS} token ids, each with a number from -100 to 100 to add to its logit.",
        examples=[{"50": -100}],
        json_schema_extra={"default": {}},
    )
    stop: Annotated[tuple[str, ...], PlainValidator(_stops, json_schema_input_type=str | list[str])] = Field(
        default=(),
        description=f"Up to {MAX_STOPS} texts of up to {MAX_STOP_CHARS} characters; "
        "the reply ends before the first that appears.",
    )
    stop_token_ids: Annotated[tuple[int, ...], PlainValidator(_stop_tokens, json_schema_input_type=list[int])] = Field(
        default=(), description=f"Up to {MAX_STOP_TOKENS} tokens that end the reply, beside the model's own."
    )
    include_stop_str_in_output: Bool = Field(
        default=False,
        description="Show what ended the reply: the stop string or, if it is no special one, the stop token.",
    )
    ignore_eos: Bool = Field(default=False, description="Go on behind the model's own end-of-turn tokens.")
    min_tokens: Int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="Tokens to make before the reply may end; stop strings are looked for in what comes after them.",
    )

    prompt_logprobs: Int | None = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Tell the log-probability of each of the prompt's tokens, and so many of the likeliest; not with "
        "`stream`. Nothing of the prompt is taken from what was computed before.",
    )

    @property
    def tops(self) -> int | None:
        """How many of the likeliest tokens to name with each one's log-probability; None if none is wanted.

        Each endpoint has its own parameters for it.
        """
        return None


class ChatSampling(SamplingFields):
    """What chats have besides."""

    logprobs: Bool = Field(
        default=False,
        description="Tell each token's log-probability: the model's own, before temperature, penalties and bias.",
    )
    top_logprobs: Int = Field(
        default=0, ge=0, le=MAX_LOGPROBS, description="Name so many of the likeliest tokens too. Only with `logprobs`."
    )

    @model_validator(mode="after")
    def _tops_with_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise conflict("top_logprobs", "top_logprobs is only allowed with logprobs: true")
        return self

    @property
    def tops(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


class CompletionSampling(SamplingFields):
    """What completions have besides."""

    logprobs: Annotated[Int | None, BeforeValidator(lambda value: None if value is False else value)] = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Tell each token's log-probability (the model's own, before temperature, penalties and bias), "
        "and so many of the likeliest.",
    )
    best_of: Int | None = Field(
        default=None,
        ge=1,
        le=MAX_CHOICES,
        description="Make so many choices of each prompt and show the `n` with the highest log-probability per token; "
        "not with `stream`. All of them count as completion tokens.",
    )
    echo: Bool = Field(default=False, description="Repeat the prompt before each choice, in `logprobs` too.")

    @property
    def tops(self) -> int | None:
        return self.logprobs
