"""The document describes what is served: every path and method, and what answers look like."""

from __future__ import annotations

import json

import pytest

from router_runtime.service.openapi import openapi_document

DOCUMENT = openapi_document()


def test_every_described_path_is_answered_and_no_other_method(site):
    for path, methods in DOCUMENT["paths"].items():
        path = path.replace("{model}", "auto")
        for method in ("get", "post"):
            body = {} if method == "post" else None
            status = site.http(method.upper(), path, body)[0]
            described = method in methods
            assert (status != 405) is described, (method, path, status)


def test_every_reference_leads_somewhere():
    def references(value):
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for entry in value.values():
                yield from references(entry)
        elif isinstance(value, list):
            for entry in value:
                yield from references(entry)

    for reference in references(DOCUMENT):
        name = reference.removeprefix("#/components/schemas/")
        assert name in DOCUMENT["components"]["schemas"]


def test_ids_of_operations_are_unique():
    ids = [o["operationId"] for p in DOCUMENT["paths"].values() for o in p.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/route", {"messages": [{"role": "user", "content": "Hi"}]}, "Explanation"),
        (
            "/sfc_router/chat/completions",
            {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]},
            "Completion",
        ),
        ("/v1/route", {"messages": []}, "Error"),
    ],
)
def test_answers_have_what_their_schema_requires(site, path, body, name):
    answer = json.loads(site.http("POST", path, body)[2])
    schema = DOCUMENT["components"]["schemas"][name]
    assert set(schema["required"]) <= set(answer)
    if name == "Explanation":
        assert set(answer) <= set(schema["properties"])


def test_the_caps_in_force_are_told(open_site):
    site = open_site(service={"requests": {"max_output_tokens": 77, "max_messages": 5}})
    document = json.loads(site.http("GET", "/openapi.json")[2])
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["max_tokens"]["maximum"] == 77
    assert fields["messages"]["maxItems"] == 5
