"""What is not honoured is refused, unless its value asks for nothing (design promise: nothing accepted and ignored).

Clients and frameworks send many parameters at their defaults.  A *neutral* value is one under which the parameter
could not have changed the reply: it is dropped before validation.  Every other parameter that no schema declares
stays where it is, and the schemas' ``extra="forbid"`` refuses it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Neutral = Callable[[Any, Mapping[str, Any]], bool]


def _is(*values: object) -> Neutral:
    """Equal to one of ``values`` and of its kind: ``False`` is not 0, but 0.0 is."""
    kinds = [(value, isinstance(value, bool)) for value in values]
    return lambda given, body: any(given == value and isinstance(given, bool) == kind for value, kind in kinds)


def _no_more_than_n(given: Any, body: Mapping[str, Any]) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given == (body.get("n") or 1)


def _no_special_tokens(given: Any, body: Mapping[str, Any]) -> bool:
    """No spaces are added anywhere; that only means something between special tokens that are shown."""
    return given is True or (given is False and body.get("skip_special_tokens") is not False)


NEUTRAL: Mapping[str, Neutral] = {
    "audio": _is(),
    "function_call": _is("none", "auto"),
    "functions": _is([]),
    "include_reasoning": _is(True),
    "metadata": _is({}),
    "modalities": _is(["text"]),
    "prediction": _is(),
    "prompt_cache_key": _is(),
    "safety_identifier": _is(),
    "service_tier": _is("auto", "default"),
    "spaces_between_special_tokens": _no_special_tokens,
    "store": _is(False),
    "verbosity": _is(),
    "web_search_options": _is(),
}
"""Parameters of OpenAI's and of vLLM's surface that this server knows and does not honour, with their neutral values;
null is neutral for every parameter, known or not."""

NEUTRAL_OUTSIDE_CHAT: Mapping[str, Neutral] = {
    "parallel_tool_calls": _is(True, False),
    "reasoning_effort": _is(),
    "tool_choice": _is("none", "auto"),
    "tools": _is([]),
    "top_logprobs": _is(0),
}
"""What only `/v1/chat/completions` honours."""

NEUTRAL_IN_CHAT: Mapping[str, Neutral] = {"best_of": _no_more_than_n, "echo": _is(False), "suffix": _is("")}
"""What only `/v1/completions` honours."""

NEUTRAL_IN_MESSAGE: Mapping[str, Neutral] = {"annotations": _is([]), "tool_calls": _is([]), "refusal": _is("")}
"""What clients echo in an assistant's message."""

NEUTRAL_IN_FUNCTION: Mapping[str, Neutral] = {"strict": _is(False)}
"""What frameworks say of a tool."""

_KNOWN = {*NEUTRAL, *NEUTRAL_OUTSIDE_CHAT, *NEUTRAL_IN_CHAT, *NEUTRAL_IN_FUNCTION}


def drop_neutral(given: Mapping[str, Any], neutral: Mapping[str, Neutral]) -> dict[str, Any]:
    """``given`` without nulls and without parameters whose value is neutral."""
    return {
        name: value
        for name, value in given.items()
        if value is not None and not (name in neutral and neutral[name](value, given))
    }


def refusal(quoted: str, name: str) -> str:
    """Why the parameter ``name``, written ``quoted``, was refused."""
    if name in _KNOWN:
        return f"{quoted} is not supported by this server with this value; leave it out."
    return f"{quoted} is not a parameter of this endpoint."
