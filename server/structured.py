"""From the form that a client asks for to the grammar that the engine enforces, checked before it goes there."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, grammar_from

from redraft.server.errors import ApiError, clip, invalid
from redraft.server.limits import MAX_GRAMMAR_CHARS, MAX_MESSAGE_CHARS
from redraft.server.schema_structured import Form, JsonObjectFormat, JsonSchemaFormat
from redraft.server.schemas import GenerationRequest

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

PLAIN_JSON: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
}
"""As most libraries write JSON on one line: models know it well, and much of it is then forced, so drafted for free.
With free white space small models are known to write nothing else."""


async def enforced(body: GenerationRequest) -> str | None:
    """The grammar that a reply to ``body`` has to follow, None for free text; 400 when there is no such."""
    if body.form is None:
        return None
    form, param = body.form
    check_ends(body, param)
    # large ones take a tenth of a second, in which others' streams go on
    return await asyncio.to_thread(grammar, form, param)


def check_ends(body: GenerationRequest, param: str) -> None:
    """400 when ``body`` wants another end than the form that ``param`` asks for has."""
    if body.ignore_eos or body.min_tokens:
        name = "ignore_eos" if body.ignore_eos else "min_tokens"
        raise invalid(name, f"{name} cannot be given beside {param}, which says itself where a reply ends.", "conflict")


def grammar(form: Form, param: str) -> str:
    """The grammar for ``form``, in llguidance's own notation; 400 when it cannot be honoured."""
    try:
        made = _grammar(form)
    except ValueError as error:
        raise refused(param, str(error)) from None
    if len(made) > MAX_GRAMMAR_CHARS:
        raise refused(param, f"it is longer than {MAX_GRAMMAR_CHARS} characters")
    failed, found = LLMatcher.validate_grammar_with_warnings(made)
    if failed:
        raise refused(param, found[0])
    if found:
        # all there are, of grammars without a tokenizer: special tokens, which would end up as text nobody sees
        raise refused(param, "special tokens are not taken in grammars")
    return made


def _grammar(form: Form) -> str:
    match form:
        case JsonObjectFormat():
            return _json({"type": "object"})
        case JsonSchemaFormat():
            return _json(form.json_schema.schema_)
    if form.regex is not None:
        return LLMatcher.grammar_from_regex(form.regex)
    if form.grammar is not None:
        return grammar_from("grammar", form.grammar)
    if form.choice is not None:
        return grammar_from(
            "lark", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in form.choice)
        )
    schema = {"type": "object"} if form.json_ is None else form.json_
    return _json(_parsed(schema) if isinstance(schema, str) else schema, form.whitespace_pattern)


def _json(schema: Any, whitespace: str | None = None) -> str:
    form: JsonCompileOptions = (
        PLAIN_JSON if whitespace is None else {"whitespace_pattern": whitespace, "lenient": False}
    )
    # llguidance keeps the form in the schema, which has to be an object for that
    return LLMatcher.grammar_from_json_schema(json.dumps({} if schema is True else schema), overrides=form)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("json is a text, but not one of valid JSON") from None


def refused(param: str, why: str) -> ApiError:
    """What is told of a form that cannot be enforced."""
    reason = clip(" ".join(why.split()), MAX_MESSAGE_CHARS // 2)
    return invalid(param, f"This form cannot be enforced: {reason}", "invalid_grammar")
