from __future__ import annotations

import base64
import io

import PIL.Image

from router_runtime.types import Image, Query
from router_training.labelling.samples import chat_messages
from router_training.samples import Sample


def picture(colour):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return Image(buffer.getvalue(), "image/png")


RED, BLUE = picture("red"), picture("blue")


def sample(prompt, images=(), messages=None):
    query = Query(prompt, tuple(images))
    return Sample("1", query, None, "g", None, prompt, messages)


def part(image):
    data = base64.b64encode(image.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def test_a_prompt_without_pictures_is_one_text():
    assert chat_messages(sample("Why?")) == ({"role": "user", "content": "Why?"},)


def test_pictures_stand_before_the_prompt_as_they_were_received():
    (turn,) = chat_messages(sample("Which?", [RED, BLUE]))
    assert turn["content"] == [part(RED), part(BLUE), {"type": "text", "text": "Which?"}]


def test_placeholders_are_filled_in_order_and_other_turns_stay():
    messages = (
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "this?"}]},
        {"role": "assistant", "content": "red", "name": "x"},
        {"role": "user", "content": ["and ", {"type": "image"}]},
    )
    first, second, third = chat_messages(sample("and", [RED, BLUE], messages))
    assert first["content"] == [part(RED), {"type": "text", "text": "this?"}]
    assert second == messages[1]
    assert third["content"] == [{"type": "text", "text": "and "}, part(BLUE)]
    assert messages[0]["content"][0] == {"type": "image"}


def test_the_system_prompt_stands_before_conversations_that_have_none():
    system = {"role": "system", "content": "Be brief."}
    assert chat_messages(sample("Why?"), "Be brief.")[0] == system
    for role in ("system", "developer"):
        own = ({"role": role, "content": "Be long."}, {"role": "user", "content": "Why?"})
        assert chat_messages(sample("Why?", messages=own), "Be brief.") == own
