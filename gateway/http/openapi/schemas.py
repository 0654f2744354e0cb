"""OpenAPI schemas of the contract's messages."""

from http import HTTPStatus
from typing import Any


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def json_of(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": ref(name)}}


def answer(name: str, status: str = "200", *errors: tuple[str, Any]) -> dict[str, Any]:
    """The answers of a route: its own, and how it may fail."""
    return {status: {"description": name, "content": json_of(name)}, **dict(errors)}


def error(*statuses: int, schema: str = "Error") -> list[tuple[str, Any]]:
    """Answers that say what went wrong."""
    return [
        (str(status), {"description": HTTPStatus(status).phrase, "content": json_of(schema)})
        for status in statuses
    ]


def body(name: str) -> dict[str, Any]:
    return {"required": True, "content": json_of(name)}


def query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def path_parameter(name: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": description,
    }
