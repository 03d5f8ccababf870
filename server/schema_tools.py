"""Tools as a client describes them, and calls as it repeats them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, StringConstraints, ValidationError
from pydantic_core import from_json

from redraft.server.limits import MAX_ID_CHARS, MAX_NAME_CHARS
from redraft.server.refuse import NEUTRAL_IN_FUNCTION, Neutral
from redraft.server.schema_body import Body

Name = Annotated[str, StringConstraints(pattern=rf"^[a-zA-Z0-9_.-]{{1,{MAX_NAME_CHARS}}}$")]
Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]


def _arguments(value: Any) -> str:
    try:
        if isinstance(value, str) and isinstance(from_json(value, allow_inf_nan=False), dict):
            return value
    except ValueError:
        pass
    raise ValueError("must be the text of a JSON object")


def _parameters(value: Any) -> dict[str, Any]:
    """A schema of an object, as far as this server reads it: the template and the model get the whole of it."""
    if not isinstance(value, dict) or value.get("type", "object") != "object":
        raise ValueError("must be a JSON schema of an object")
    if not isinstance(value.get("properties", {}), dict):
        raise ValueError("must have an object of properties")
    return value


class FunctionCall(Body):
    """What was called, and with what."""

    name: Name = Field(description="The tool's name.")
    arguments: Annotated[str, PlainValidator(_arguments, json_schema_input_type=str)] = Field(
        description="The arguments: a text that is a JSON object."
    )

    @property
    def parsed(self) -> dict[str, Any]:
        """The arguments as templates read them."""
        arguments: dict[str, Any] = from_json(self.arguments)
        return arguments


class ToolCall(Body):
    """A call that the assistant made in an earlier turn."""

    neutral: ClassVar[Mapping[str, Neutral]] = {"index": lambda given, body: isinstance(given, int)}
    id: Id | None = Field(default=None, description="As it came in the reply.")
    type: Literal["function"] = Field(default="function", description="Nothing else can be called.")
    function: FunctionCall = Field(description="What was called.")


class Function(Body):
    """A function that the model may ask to be called."""

    neutral: ClassVar[Mapping[str, Neutral]] = NEUTRAL_IN_FUNCTION
    name: Name = Field(description="How the model calls it.")
    description: str | None = Field(default=None, description="What it does, for the model to read.")
    parameters: Annotated[dict[str, Any], PlainValidator(_parameters, json_schema_input_type=dict[str, Any])] | None = (
        Field(default=None, description="JSON schema of its arguments, which is an object's.")
    )


class Tool(Body):
    """Something that the model may use."""

    type: Literal["function"] = Field(description="There is nothing else.")
    function: Function = Field(description="The function.")


class NamedFunction(Body):
    """Names a function."""

    name: Name = Field(description="One of the names in `tools`.")


class NamedTool(Body):
    """The one tool that is to be called."""

    type: Literal["function"] = Field(description="There is nothing else.")
    function: NamedFunction = Field(description="The function.")


def _choice(value: Any) -> str | NamedTool:
    if isinstance(value, str) and value in ("none", "auto", "required"):
        return value
    try:
        return NamedTool.model_validate(value)
    except ValidationError:
        pass
    raise ValueError('must be "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}')


ToolChoice = Annotated[
    str | NamedTool, PlainValidator(_choice, json_schema_input_type=Literal["none", "auto", "required"] | NamedTool)
]
