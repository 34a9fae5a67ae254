"""``POST /v1/feedback``: what a caller says of an answer that it got."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from router_runtime.errors import RequestError
from router_runtime.service.asgi import Receive, Send, send_json
from router_runtime.service.body import parse_object, read_body
from router_runtime.service.feedback import Feedbacks
from router_runtime.service.gateway import Exchange, Gateway, Work
from router_runtime.service.values import Feedback
from router_runtime.yaml_config import StrictModel

_MOST_BYTES = 64 * 1024
_SCORES = {"good": 1.0, "bad": 0.0}


class FeedbackBody(StrictModel):
    """The body: a ``score`` in [0, 1] or a ``verdict``, not both."""

    decision_id: str = Field(min_length=1, max_length=128)
    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)] | None = None
    verdict: Literal["good", "bad"] | None = None
    comment: str | None = Field(default=None, max_length=4096)

    @model_validator(mode="after")
    def _one_of_two(self) -> FeedbackBody:
        if (self.score is None) == (self.verdict is None):
            raise ValueError("give either 'score' (0 to 1) or 'verdict' (good or bad)")
        return self


def feedback_work(feedbacks: Feedbacks) -> Work:
    """Return the endpoint."""

    async def work(gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
        data = await read_body(exchange.headers, receive, max_bytes=_MOST_BYTES)
        body = _checked(data)
        score = _SCORES[body.verdict] if body.verdict is not None else body.score
        if score is None:  # the model asks for one of the two
            return
        given = Feedback(body.decision_id, score, body.comment)
        became = await feedbacks.give(exchange.caller, given)
        await send_json(
            send,
            {"object": "feedback", "decision_id": body.decision_id, "status": became},
            status=201 if became == "created" else 200,
        )

    return work


def _checked(data: bytes) -> FeedbackBody:
    content = parse_object(data, max_depth=4)
    try:
        return FeedbackBody.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        field = str(found["loc"][0]) if found["loc"] else None
        known = field if field in FeedbackBody.model_fields else None
        problem = found["msg"].removeprefix("Value error, ")
        raise RequestError(
            f"The feedback cannot be taken: {known or 'the body'}: {problem}.",
            status=400,
            code="invalid_request",
            param=known,
        ) from None
