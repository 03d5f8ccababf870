"""What every object that a client may send has in common: neutral values are dropped, unknown fields refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from redraft.server.limits import MAX_FIELDS
from redraft.server.refuse import Neutral, drop_neutral


class Body(BaseModel):
    """An endpoint's body: what is neutral is dropped, what is unknown is refused."""

    model_config = ConfigDict(extra="forbid")
    neutral: ClassVar[Mapping[str, Neutral]] = {}
    """Parameters of others that ask for nothing with these values."""

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict):
            if len(value) > MAX_FIELDS:
                raise ValueError(f"the object has more than {MAX_FIELDS} fields")
            return drop_neutral(value, cls.neutral)
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler.resolve_ref_schema(reference := handler(schema))
        for name, field in described["properties"].items():
            if name not in described.get("required", ()):
                _allow_null(field)
        return reference


def _allow_null(field: JsonSchemaValue) -> None:
    """Say in a property's schema that null is as good as leaving it out."""
    kinds = field.get("anyOf")
    if kinds is None:
        # what says the same of any type stays where it is
        about = {key: field.pop(key) for key in ("title", "description", "default", "examples") if key in field}
        kinds = [dict(field)]
        field.clear()
        field.update(anyOf=kinds, **about)
    if {"type": "null"} not in kinds:
        kinds.append({"type": "null"})
