"""What a graph file may hold, as a JSON schema: editors complete and check graphs by it."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from lima2py import plugins
from lima2py.graph.definition import DETECTOR
from lima2py.graph.kinds import task_class
from lima2py.units import metres, seconds, size_in_bytes


class _AsWritten(GenerateJsonSchema):
    """Times, sizes and lengths may be text with a unit."""

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        if schema["function"]["function"] in (seconds, size_in_bytes, metres):
            return {"anyOf": [inner, {"type": "string"}]}
        return inner


def graph_schema() -> dict[str, Any]:
    """The JSON schema of a graph file with all known tasks, for editors to complete and check."""
    kinds = {do: task_class(do, "graph schema") for do in plugins.known(plugins.TASKS)}
    references, document = models_json_schema(
        [(kind, "validation") for kind in kinds.values()], schema_generator=_AsWritten
    )
    definitions: dict[str, Any] = document.get("$defs", {})
    cases = []
    for do, kind in kinds.items():
        reference = references[kind, "validation"]
        fields = definitions[reference["$ref"].rpartition("/")[2]]
        own = fields.get("properties", {})
        fields["properties"] = {"do": {"const": do}, "from": {"$ref": "#/$defs/from"}, **own}
        fields["required"] = ["do", "from", *fields.get("required", [])]
        cases.append(
            {"if": {"required": ["do"], "properties": {"do": {"const": do}}}, "then": reference}
        )
    definitions["from"] = {
        "description": f"The task the frames come from, or {DETECTOR}.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lima2py graph",
        "type": "object",
        "additionalProperties": False,
        "required": ["tasks"],
        "properties": {
            "graph": {"type": "string", "description": "The name of the graph."},
            "about": {"type": "string", "description": "What it is for, in a sentence."},
            "tasks": {
                "type": "object",
                "description": "By name: what is done, and to what.",
                "minProperties": 1,
                "additionalProperties": {
                    "type": "object",
                    "required": ["do", "from"],
                    "properties": {"do": {"description": "What is done.", "enum": list(kinds)}},
                    "allOf": cases,
                },
            },
        },
        "$defs": definitions,
    }


if __name__ == "__main__":
    print(json.dumps(graph_schema(), indent=2, ensure_ascii=False))  # noqa: T201
