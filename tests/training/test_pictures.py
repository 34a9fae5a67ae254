from __future__ import annotations

import threading
from contextlib import closing

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime.errors import QueryError
from router_training.pictures import PLACEHOLDER, Pictures, parts_of

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


def test_pictures_of_coming_rows_are_loaded_by_threads_and_shared(tmp_path, monkeypatch):
    for i in range(4):
        PIL.Image.new("RGB", (9, 9), (i % 2, 0, 0)).save(tmp_path / f"{i}.png")
    rows = [["0.png"], ["1.png", "2.png"], [], ["3.png", "0.png"]]
    loaders = set()
    inner = Pictures._loaded

    def recorded(self, source):
        loaders.add(threading.current_thread())
        return inner(self, source)

    monkeypatch.setattr(Pictures, "_loaded", recorded)
    pictures = Pictures(tmp_path)
    found = []
    with closing(pictures.ahead(rows, list)) as ahead:
        for row in ahead:
            found.append([pictures.load(name) for name in row])
    assert [len(row) for row in found] == [1, 2, 0, 2]
    assert threading.main_thread() not in loaders
    assert found[0][0].sha256 == found[1][1].sha256 == found[3][1].sha256
    assert found[1][0] is pictures.load("1.png")


def test_a_picture_that_cannot_be_loaded_ahead_is_told_in_its_row(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    PIL.Image.new("RGB", (2, 2)).save(tmp_path / "good.png")
    pictures = Pictures(tmp_path)
    with closing(pictures.ahead(["good.png", "bad.png", "none.png"], lambda row: [row])) as rows:
        assert pictures.load(next(rows))
        for row in rows:
            with pytest.raises(QueryError):
                pictures.load(row)
