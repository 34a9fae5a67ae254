"""The OpenAPI document: what the service takes and answers, and nothing that it does not.

It is written by hand because the bodies are checked by hand: a chat request has fields that belong
to the candidates, which are passed through and described as free.
"""

from __future__ import annotations

from typing import Final

from router_runtime import __version__
from router_runtime.service.body import MOST_CHOICES
from router_runtime.service_config import RequestLimits
from router_runtime.types import Json

_REF: Final = "#/components/schemas/"

_EVERYWHERE: Final = ("401", "403", "503")
"""Refusals that any endpoint with a key may give."""


def openapi_document(limits: RequestLimits = RequestLimits()) -> dict[str, Json]:
    """Return the document as plain values.

    Parameters
    ----------
    limits : RequestLimits
        Caps that are told in the schemas.
    """
    count = {**_COUNT, "maximum": limits.max_output_tokens}
    asked = {**_ASKED, "max_tokens": count, "max_completion_tokens": count}
    messages = {**_MESSAGES, "maxItems": limits.max_messages}
    chat = {**asked, "messages": messages, "router": _CONTROLS}
    schemas = {
        "ChatRequest": {"type": "object", "required": ["model", "messages"], "properties": chat},
        "RouteRequest": {"type": "object", "required": ["messages"], "properties": chat},
        "SfcRequest": {
            "type": "object",
            "required": ["messages"],
            "properties": {**chat, "model": {"description": "What names no model means `auto`."}},
        },
        "CompletionsRequest": {"type": "object", "required": ["model"], "properties": asked},
        **_SCHEMAS,
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "model-router",
            "version": __version__,
            "description": "Routes chat requests to the cheapest model that is good enough.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _chat()},
            "/sfc_router/chat/completions": {"post": _sfc()},
            "/v1/completions": {"post": _through("completions", "prompt")},
            "/v1/embeddings": {"post": _through("embeddings", "input")},
            "/v1/route": {"post": _route()},
            "/v1/feedback": {"post": _feedback()},
            "/v1/models": {"get": _models()},
            "/v1/models/{model}": {"get": _model()},
            "/metrics": {"get": _metrics()},
            "/healthz": {"get": _health("healthz", "Is the process alive?")},
            "/readyz": {"get": _health("readyz", "May requests be sent here?")},
            "/startupz": {"get": _health("startupz", "Are config, artifact and encoders loaded?")},
            "/openapi.json": {"get": _document()},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


# --------------------------------------------------------------------------- operations


def _chat() -> dict[str, Json]:
    return {
        "operationId": "createChatCompletion",
        "summary": "Answer a chat; `model: auto` lets the router choose.",
        "parameters": [_DEBUG],
        "requestBody": _json_body("ChatRequest"),
        "responses": {
            "200": {
                "description": "The candidate's answer as it came, or with `router.dry_run` the "
                "explanation of the decision.",
                "headers": _HEADERS,
                "content": {
                    "application/json": {
                        "schema": {"anyOf": [_ref("Completion"), _ref("Explanation")]}
                    },
                    "text/event-stream": {"schema": _EVENTS},
                },
            },
            **_calling_errors(),
        },
    }


def _sfc() -> dict[str, Json]:
    return {
        "operationId": "chooseModelAsChat",
        "summary": "Answer with the chosen model's name as content; nothing is called.",
        "requestBody": _json_body("SfcRequest"),
        "responses": {
            "200": {
                "description": "A chat completion whose content is a name.",
                "headers": _HEADERS,
                "content": {"application/json": {"schema": _ref("Completion")}},
            },
            **_errors("400", "402", "404", "408", "413", "415", "422", "429"),
        },
    }


def _through(name: str, needed: str) -> dict[str, Json]:
    return {
        "operationId": f"create_{name}",
        "summary": f"Pass a request for {name} through to the named model.",
        "requestBody": _json_body(f"{name.capitalize()}Request"),
        "responses": {
            "200": {
                "description": f"The model's answer as it came ({needed} in, {name} out).",
                "headers": _HEADERS,
                "content": {
                    "application/json": {"schema": {}},
                    **({"text/event-stream": {"schema": _EVENTS}} if name == "completions" else {}),
                },
            },
            **_calling_errors(),
        },
    }


def _route() -> dict[str, Json]:
    return {
        "operationId": "explainRoute",
        "summary": "Decide as for a chat, explain, and call nobody.",
        "requestBody": _json_body("RouteRequest"),
        "responses": {
            "200": {
                "description": "The decision with every step and reason.",
                "headers": _HEADERS,
                "content": {"application/json": {"schema": _ref("Explanation")}},
            },
            **_errors("400", "402", "404", "408", "413", "415", "422", "429"),
        },
    }


def _feedback() -> dict[str, Json]:
    done = {"content": {"application/json": {"schema": _ref("FeedbackAnswer")}}}
    return {
        "operationId": "giveFeedback",
        "summary": "Score an answer by its decision id; the last word counts.",
        "requestBody": _json_body("Feedback"),
        "responses": {
            "200": {"description": "It was known, or replaced an earlier one.", **done},
            "201": {"description": "It is new.", **done},
            **_errors("400", "404", "408", "413", "415"),
        },
    }


def _models() -> dict[str, Json]:
    return {
        "operationId": "listModels",
        "summary": "List what `model` may be.",
        "responses": {
            "200": {
                "description": "`auto`, a name per policy, and the configured models.",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["object", "data"],
                            "properties": {
                                "object": {"const": "list"},
                                "data": {"type": "array", "items": _ref("Model")},
                            },
                        }
                    }
                },
            },
            **_errors(),
        },
    }


def _model() -> dict[str, Json]:
    return {
        "operationId": "retrieveModel",
        "summary": "Describe one of them.",
        "parameters": [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ],
        "responses": {
            "200": {
                "description": "The model.",
                "content": {"application/json": {"schema": _ref("Model")}},
            },
            **_errors("404"),
        },
    }


def _metrics() -> dict[str, Json]:
    return {
        "operationId": "metrics",
        "summary": "Metrics in Prometheus' text format.",
        "responses": {
            "200": {
                "description": "Metrics.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **_errors(),
        },
    }


def _health(name: str, question: str) -> dict[str, Json]:
    answer = {"content": {"application/json": {"schema": _ref("Health")}}}
    return {
        "operationId": name,
        "summary": question,
        "security": [],
        "responses": {
            "200": {"description": "Yes.", **answer},
            "503": {"description": "No.", **answer},
        },
    }


def _document() -> dict[str, Json]:
    return {
        "operationId": "openapi",
        "summary": "This document.",
        "security": [],
        "responses": {
            "200": {
                "description": "OpenAPI 3.1.",
                "content": {"application/json": {"schema": {"type": "object"}}},
            }
        },
    }


# --------------------------------------------------------------------------- parts


def _ref(name: str) -> dict[str, Json]:
    return {"$ref": _REF + name}


def _json_body(name: str) -> dict[str, Json]:
    return {"required": True, "content": {"application/json": {"schema": _ref(name)}}}


def _error(description: str) -> dict[str, Json]:
    return {
        "description": description,
        "content": {"application/json": {"schema": _ref("Error")}},
    }


def _errors(*statuses: str) -> dict[str, Json]:
    return {status: _error(_MEANINGS[status]) for status in sorted({*statuses, *_EVERYWHERE})}


def _calling_errors() -> dict[str, Json]:
    """Return the refusals of an endpoint that calls candidates.

    What a candidate says of the request itself is passed on as it came, under whichever status.
    """
    ours = _errors("402", "404", "408", "429", "502", "504")
    either = {"anyOf": [_ref("Error"), _CANDIDATES_OWN]}
    shared = {
        status: {
            "description": f"{_MEANINGS[status]} Or the candidate's own refusal.",
            "content": {"application/json": {"schema": either}, "*/*": {}},
        }
        for status in ("400", "403", "413", "415", "422")
    }
    return {**ours, **shared, "default": _UPSTREAM}


_CANDIDATES_OWN: Final = {"description": "The candidate's refusal as it came."}

_MEANINGS: Final = {
    "400": "The request is wrong.",
    "401": "No valid key was sent.",
    "402": "The key's budget, or the request's own, does not allow it.",
    "403": "The key may not use the model, or the host name is not this machine's.",
    "404": "There is no such model or decision.",
    "408": "The body did not come in time.",
    "413": "The body is too long.",
    "415": "The body is not said to be JSON, or is compressed.",
    "422": "No candidate can serve the request; the message says why.",
    "429": "The key's or the candidate's limit is reached; see Retry-After.",
    "502": "Every candidate that was tried failed.",
    "503": "Too many requests are in flight, or the service is starting; see Retry-After.",
    "504": "No candidate answered in time.",
}

_UPSTREAM: Final = {
    "description": "The candidate refused the request itself; its status and body as they came.",
    "content": {"application/json": {"schema": _CANDIDATES_OWN}, "*/*": {}},
}

_DEBUG: Final = {
    "name": "x-router-debug",
    "in": "header",
    "description": "`true` asks for the headers that explain the decision.",
    "schema": {"type": "string"},
}

_HEADERS: Final = {
    name: {"schema": {"type": "string"}, "description": text}
    for name, text in {
        "x-router-schema-version": "Version of these headers.",
        "x-router-decision-id": "Names the request, for feedback.",
        "x-router-model": "The candidate that answered.",
        "x-router-reason": "Why it was chosen.",
        "x-router-attempts": "How many candidates were called.",
    }.items()
}

_EVENTS: Final = {
    "description": "Server-sent events as they came; the last is `[DONE]`, or an error where the "
    "candidate broke off."
}
_TEXT: Final = {"type": "string"}
_PROBABILITY: Final = {"type": "number", "minimum": 0, "maximum": 1}
_COUNT: Final = {"type": ["integer", "null"], "minimum": 1}
_NAMES: Final = {"type": "array", "items": _TEXT}

_CONTROLS: Final = {
    "type": ["object", "null"],
    "additionalProperties": False,
    "properties": {
        "policy": {"type": ["string", "null"]},
        "thresholds": {"type": ["object", "null"], "additionalProperties": _PROBABILITY},
        "max_cost_usd": {"type": ["number", "null"], "minimum": 0},
        "min_probability": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "allow": {"type": ["array", "null"], "items": _TEXT},
        "deny": {"type": ["array", "null"], "items": _TEXT},
        "dry_run": {"type": ["boolean", "null"]},
    },
}

_ASKED: Final = {
    "model": {"type": "string", "minLength": 1},
    "stream": {"type": ["boolean", "null"]},
    "stream_options": {"type": ["object", "null"]},
    "n": {**_COUNT, "maximum": MOST_CHOICES},
}

_MESSAGES: Final = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
            "content": {"type": ["string", "array", "null"]},
        },
    },
}

_SCHEMAS: Final[dict[str, Json]] = {
    "EmbeddingsRequest": {
        "type": "object",
        "required": ["model"],
        "properties": {"model": _ASKED["model"]},
    },
    "Completion": {
        "type": "object",
        "required": ["choices"],
        "properties": {"choices": {"type": "array"}, "model": _TEXT, "usage": {}},
    },
    "Explanation": {
        "type": "object",
        "required": ["object", "decision_id", "model", "ranking", "reason", "steps"],
        "properties": {
            "object": {"const": "router.decision"},
            "decision_id": _TEXT,
            "model": _TEXT,
            "ranking": _NAMES,
            "reason": _TEXT,
            "policy": {"type": ["string", "null"]},
            "artifact_id": _TEXT,
            "novelty": {"type": ["number", "null"]},
            "cost_unit": {"type": ["string", "null"]},
            "thresholds": {"type": "object"},
            "candidates": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["model", "eligible"],
                    "properties": {
                        "model": _TEXT,
                        "eligible": {"type": "boolean"},
                        "reason": {"type": ["string", "null"]},
                        "probability": {"type": ["number", "null"]},
                        "threshold": {"type": ["number", "null"]},
                        "expected_cost": {"type": ["number", "null"]},
                    },
                },
            },
            "steps": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "reason"],
                    "properties": {"name": _TEXT, "reason": _TEXT, "detail": {"type": "object"}},
                },
            },
        },
    },
    "Feedback": {
        "type": "object",
        "additionalProperties": False,
        "required": ["decision_id"],
        "properties": {
            "decision_id": {"type": "string", "minLength": 1, "maxLength": 128},
            "score": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "verdict": {"enum": ["good", "bad", None]},
            "comment": {"type": ["string", "null"], "maxLength": 4096},
        },
        "oneOf": [
            {"required": ["score"], "properties": {"score": {"type": "number"}}},
            {"required": ["verdict"], "properties": {"verdict": {"type": "string"}}},
        ],
    },
    "FeedbackAnswer": {
        "type": "object",
        "required": ["decision_id", "status"],
        "properties": {
            "object": {"const": "feedback"},
            "decision_id": _TEXT,
            "status": {"enum": ["created", "unchanged", "replaced"]},
        },
    },
    "Model": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": _TEXT,
            "modalities": _NAMES,
            "context_window": {"type": ["integer", "null"]},
            "tools": {"type": "boolean"},
            "json_mode": {"type": "boolean"},
        },
    },
    "Health": {
        "type": "object",
        "required": ["status", "checks"],
        "properties": {"status": _TEXT, "checks": {"type": "object"}},
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": _TEXT,
                },
            }
        },
    },
}
