"""The description of the routes: valid, complete, and what real answers are checked against (conftest.py)."""

import json

import openapi_spec_validator
import pytest
from jsonschema.exceptions import ValidationError
from starlette.routing import Route

from gateway.http.app import ROUTES
from gateway.http.openai.request import EDIT_FIELDS, GENERATION_FIELDS, VARIATION_FIELDS
from tests.gateway.http.description import DESCRIPTION, check, operation_of


def test_it_is_valid():
    openapi_spec_validator.validate(DESCRIPTION)


def test_it_has_every_route_and_no_other():
    served = {
        (method, route.path.replace(":path}", "}"))
        for route in ROUTES
        if isinstance(route, Route)
        for method in route.methods - {"HEAD"}
    }
    described = {
        (method.upper(), path)
        for path, item in DESCRIPTION["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert described == served


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        ("ImageGeneration", GENERATION_FIELDS),
        ("ImageEdit", (*EDIT_FIELDS, "image")),
        ("ImageVariation", (*VARIATION_FIELDS, "image")),
    ],
)
def test_it_has_every_field_of_openai_s_requests(schema, fields):
    assert set(DESCRIPTION["components"]["schemas"][schema]["properties"]) == set(fields)


async def test_it_is_served(web):
    answer = await web.http.get("/openapi.json")
    assert answer.json() == DESCRIPTION


async def test_events_are_as_described(web):
    body = {"spec": {"prompt": "a red house", "generate": {"count": 2}, "refine": {"count": 1}}}
    location = (await web.http.post("/runs", json=body)).headers["location"]
    text = (await web.http.get(f"{location}/events")).text
    events = [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data")
    ]
    assert events
    for event in events:
        check(event, {"$ref": "#/components/schemas/Event"})


async def test_openai_s_events_are_as_described(painter):
    body = {"prompt": "x", "stream": True, "partial_images": 2}
    answer = await painter.http.post("/v1/images/generations", json=body)
    operation = operation_of("POST", "/v1/images/generations")
    described = operation["responses"]["200"]["content"]["text/event-stream"]["x-events"]
    data = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert len(data) == 3
    for line in data:
        check(json.loads(line.removeprefix("data: ")), {"oneOf": described})


def test_a_wrong_answer_would_be_noticed():
    with pytest.raises(ValidationError):
        check({"runs": [{"nmae": "x"}]}, {"$ref": "#/components/schemas/ListRunsResponse"})
