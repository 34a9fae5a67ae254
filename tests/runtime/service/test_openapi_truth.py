"""Requests drawn from the OpenAPI document: what comes back is what the document says."""

from __future__ import annotations

import json

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from router_runtime.service.openapi import openapi_document

MODELS = ("auto", "auto:small_first", "sim-small-text", "sim-small-vl", "sim-embedding")
OPERATIONS = [
    (path, m.upper()) for path, found in openapi_document()["paths"].items() for m in found
]
WITH_BODY = [(path, method) for path, method in OPERATIONS if method == "POST"]
NOT_PROMISED = [
    # 502 to 504 are described, and tell of the candidates; 500 is refused below.
    not_a_server_error,
    # What the router and the candidates ask of texts and pictures is more than a schema can say.
    positive_data_acceptance,
]
DRAWN = hypothesis.settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def schema_of(site, *, known_models):
    """The document as served; with ``known_models`` requests name models that there are."""
    document = json.loads(site.http("GET", "/openapi.json")[2])
    if known_models:
        for name, schema in document["components"]["schemas"].items():
            if name.endswith("Request"):
                schema["properties"]["model"] = {"enum": list(MODELS)}
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=site.url)
    return schema


def play(operation, mode):
    @DRAWN
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def played(case):
        response = case.call()
        assert response.status_code != 500, response.text
        case.validate_response(response, excluded_checks=NOT_PROMISED)

    played()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_is_as_described_is_answered_as_described(site, path, method):
    play(schema_of(site, known_models=True)[path][method], GenerationMode.POSITIVE)


@pytest.mark.parametrize(("path", "method"), WITH_BODY)
def test_what_is_not_as_described_is_refused_as_described(site, path, method):
    play(schema_of(site, known_models=False)[path][method], GenerationMode.NEGATIVE)
