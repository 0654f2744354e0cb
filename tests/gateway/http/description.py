"""The description of the routes, and answers checked against it."""

import json
import re

import httpx
from openapi_schema_validator import OAS31Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from gateway.http.openapi.document import to_text

DESCRIPTION = json.loads(to_text())
URI = "urn:triptych"
REGISTRY = Registry().with_resource(URI, Resource(contents=DESCRIPTION, specification=DRAFT202012))
PATHS = {
    re.compile(re.sub(r"\{[^}]+\}", "[^/]+", re.escape(path).replace(r"\{", "{").replace(r"\}", "}"))): path
    for path in DESCRIPTION["paths"]
}


def operation_of(method: str, path: str) -> dict | None:
    for pattern, template in PATHS.items():
        if pattern.fullmatch(path):
            return DESCRIPTION["paths"][template].get(method.lower())
    return None


def check(value: object, schema: dict) -> None:
    """Raises ValidationError."""
    absolute = json.loads(json.dumps(schema).replace('"#/', f'"{URI}#/'))
    OAS31Validator(absolute, registry=REGISTRY).validate(value)


async def check_answer(answer: httpx.Response) -> None:
    """An event hook: every answer of a described route is one of those that its description has."""
    operation = operation_of(answer.request.method, answer.request.url.path)
    if operation is None or answer.status_code in (405, 421, 500):
        return
    described = operation["responses"].get(str(answer.status_code))
    assert described, f"{answer.request.url.path} answered {answer.status_code}, which is not described"
    kind = answer.headers.get("content-type", "").partition(";")[0]
    assert not kind or kind in described.get("content", {}), f"{kind} is not described"
    if kind == "application/json":
        await answer.aread()
        check(answer.json(), described["content"][kind].get("schema", {}))
