from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router_training.pictures import PLACEHOLDER, parts_of

IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


def test_placeholders_become_pictures_and_take_their_line_breaks_with_them():
    assert parts_of("<image>\nWhat?") == [IMAGE, text("What?")]
    assert parts_of("a <image><image>\n\nb") == [text("a "), IMAGE, IMAGE, text("b")]
    assert parts_of("none") == [text("none")]
    assert parts_of("") == []


@given(st.lists(st.text(alphabet="ab <>\n", max_size=8), min_size=1, max_size=5))
def test_there_are_as_many_pictures_as_placeholders_and_no_other_text_is_lost(pieces):
    whole = PLACEHOLDER.join(pieces)
    parts = parts_of(whole)
    assert parts.count(IMAGE) == whole.count(PLACEHOLDER)
    said = "".join(part.get("text", "") for part in parts).replace("\n", "")
    assert said == whole.replace(PLACEHOLDER, "").replace("\n", "")
