"""What a client may ask of a reply's form: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Strict, Tag, model_validator

from redraft.server.errors import kind
from redraft.server.limits import MAX_ALTERNATIVES, MAX_FORMAT_NAME_CHARS, MAX_GRAMMAR_CHARS
from redraft.server.schema_body import Body
from redraft.server.schema_sampling import conflict

GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


def _schema(value: Any) -> Any:
    if not isinstance(value, dict | bool):
        raise ValueError("must be a JSON schema: an object, true or false")
    return value


def _schema_or_text(value: Any) -> Any:
    if isinstance(value, str) and 0 < len(value) <= MAX_GRAMMAR_CHARS:
        return value
    if not isinstance(value, dict | bool):
        raise ValueError(
            "must be a JSON schema: an object, true or false, or the text of one, "
            f"of 1 to {MAX_GRAMMAR_CHARS} characters"
        )
    return value


JsonSchema = Annotated[dict[str, Any] | bool, PlainValidator(_schema, json_schema_input_type=dict[str, Any] | bool)]
SchemaOrText = Annotated[
    dict[str, Any] | bool | str,
    PlainValidator(_schema_or_text, json_schema_input_type=dict[str, Any] | bool | GrammarText),
]


class _Form(Body):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class NamedSchema(_Form):
    """A JSON schema as OpenAI wraps it."""

    name: str = Field(max_length=MAX_FORMAT_NAME_CHARS, description="What the client calls it; without effect.")
    description: str | None = Field(
        default=None, max_length=MAX_GRAMMAR_CHARS, description="Not shown to the model; say it in the prompt."
    )
    schema_: JsonSchema = Field(alias="schema", description="The JSON schema that the whole reply follows.")
    strict: Annotated[bool, Strict()] | None = Field(
        default=None, description="Replies always follow the schema, whatever is given here."
    )


class TextFormat(_Form):
    """No form at all, the default."""

    type: Literal["text"] = Field(description="Free text.")


class JsonObjectFormat(_Form):
    """Any JSON object."""

    type: Literal["json_object"] = Field(description="Any JSON object.")


class JsonSchemaFormat(_Form):
    """JSON that follows a schema."""

    type: Literal["json_schema"] = Field(description="JSON that follows a schema.")
    json_schema: NamedSchema = Field(description="The schema and its name.")


FORMATS = ("text", "json_object", "json_schema")


def _format(value: Any) -> str | None:
    name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind(name) if name in FORMATS else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag(kind("text"))]
    | Annotated[JsonObjectFormat, Tag(kind("json_object"))]
    | Annotated[JsonSchemaFormat, Tag(kind("json_schema"))],
    Discriminator(
        _format,
        custom_error_type="format_type",
        custom_error_message=f"must be an object whose type is one of {', '.join(FORMATS)}",
    ),
]


class StructuredOutputs(_Form):
    """A reply's form; exactly one of `json`, `json_object`, `regex`, `choice` and `grammar`."""

    json_: SchemaOrText | None = Field(
        default=None, alias="json", description="A JSON schema, as an object or as text, that the reply follows."
    )
    json_object: Annotated[bool, Strict()] | None = Field(default=None, description="true: any JSON object.")
    regex: GrammarText | None = Field(
        default=None,
        description="A regular expression that the whole reply matches (Rust's syntax; no look-around, no references).",
    )
    choice: list[GrammarText] | None = Field(
        default=None, min_length=1, max_length=MAX_ALTERNATIVES, description="The reply is one of these texts."
    )
    grammar: GrammarText | None = Field(default=None, description="A context-free grammar, in Lark's or GBNF's form.")
    whitespace_pattern: GrammarText | None = Field(
        default=None,
        description="Of JSON: a regular expression for the white space between tokens. "
        "If left out, one space follows each comma and each colon.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = [name for name in ("json_", "json_object", "regex", "choice", "grammar") if self._asks(name)]
        if len(given) != 1:
            raise ValueError("give exactly one of json, json_object, regex, choice and grammar")
        if self.whitespace_pattern is not None and given[0] not in ("json_", "json_object"):
            raise ValueError("whitespace_pattern goes with json and json_object only")
        return self

    def _asks(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and not (name == "json_object" and value is False)


Form = JsonObjectFormat | JsonSchemaFormat | StructuredOutputs


class Asked(NamedTuple):
    """A form, and the parameter that asked for it."""

    form: Form
    param: str


class StructuredFields(BaseModel):
    """The ways to ask for a form; one at a time."""

    response_format: ResponseFormat | None = Field(
        default=None, description="OpenAI's way: free text, any JSON object, or JSON that follows a schema."
    )
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="vLLM's way: a JSON schema, a regular expression, a choice of texts or a grammar."
    )
    guided_json: SchemaOrText | None = Field(default=None, description="Older name of `structured_outputs.json`.")
    guided_regex: GrammarText | None = Field(default=None, description="Older name of `structured_outputs.regex`.")
    guided_choice: list[GrammarText] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_ALTERNATIVES,
        description="Older name of `structured_outputs.choice`.",
    )
    guided_grammar: GrammarText | None = Field(default=None, description="Older name of `structured_outputs.grammar`.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        asked = self._asked()
        if len(asked) > 1:
            raise conflict(asked[1].param, f"cannot be given beside {asked[0].param}")
        return self

    @cached_property
    def form(self) -> Asked | None:
        """What was asked for; None for free text."""
        return next(iter(self._asked()), None)

    def _asked(self) -> list[Asked]:
        asked = []
        if self.response_format is not None and not isinstance(self.response_format, TextFormat):
            asked.append(Asked(self.response_format, "response_format"))
        if self.structured_outputs is not None:
            asked.append(Asked(self.structured_outputs, "structured_outputs"))
        for name in ("json", "regex", "choice", "grammar"):
            value = getattr(self, f"guided_{name}")
            if value is not None:
                asked.append(Asked(StructuredOutputs.model_validate({name: value}), f"guided_{name}"))
        return asked
