from __future__ import annotations

import json
from io import BytesIO

import pytest
from PIL import Image

from router_runtime.errors import DataError
from router_training.routing.options import AdapterOptions
from router_training.routing.sources import PictureStore, read_adapter


def picture(shade, *, form="PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 6), (shade, 20, 77)).save(buffer, format=form)
    return buffer.getvalue()


def conversation(name, asked, **more) -> dict:
    human = f"<image>\n{asked}" if name else asked
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": "done()"}]
    return {**({"image": name} if name else {}), "conversations": turns, **more}


@pytest.fixture
def store(tmp_path):
    return PictureStore(tmp_path / "kept")


@pytest.fixture
def save(tmp_path):
    def save(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        (tmp_path / "a.png").write_bytes(picture(1))
        (tmp_path / "b.jpg").write_bytes(picture(2, form="JPEG"))
        return str(path)

    return save


def read(path, store, **options):
    return read_adapter(AdapterOptions("calendar", path), store=store, **options)


def test_conversations_are_kept_as_they_are(save, store):
    row = conversation("a.png", "Click", id=7, metadata={"screen": 1})
    found = read(save(row), store).rows[0]
    assert found.conversations == row["conversations"]
    assert (found.source_id, found.metadata, found.number) == ("7", {"screen": 1}, 1)


def test_equal_pictures_are_kept_once_under_their_content(save, store, tmp_path):
    rows = [conversation(name, "Click") for name in ("a.png", "b.jpg", "a.png")]
    found = read(save(*rows), store).rows
    assert found[0].pictures == found[2].pictures != found[1].pictures
    assert sorted(path.suffix for path in (tmp_path / "kept").iterdir()) == [".jpg", ".png"]
    assert found[0].keys == found[2].keys


def test_a_group_is_one_of_its_adapter_and_text_stands_for_rows_without_pictures(save, store):
    rows = [
        conversation("a.png", "One", group="g"),
        conversation("b.jpg", "Two", group="g"),
        conversation(None, "Three"),
        conversation(None, "Three"),
    ]
    found = read(save(*rows), store).rows
    assert "group calendar g" in found[0].keys & found[1].keys
    assert found[2].keys == found[3].keys
    assert len(found[2].keys) == 1


def test_several_pictures_of_a_row(save, store):
    row = conversation("a.png", "Compare")
    del row["image"]
    row["images"] = ["a.png", "b.jpg"]
    row["conversations"][0]["value"] = "<image>\n<image>\nCompare"
    assert len(read(save(row), store).rows[0].pictures) == 2


BAD = [
    (conversation("missing.png", "Click"), "image[0]", "no picture file 'missing.png'"),
    (conversation("broken.png", "Click"), "image[0]", "does not decode"),
    (conversation("../a.png", "Click"), "image[0]", "lies outside"),
    ({"conversations": [{"from": "human", "value": "<image>"}]}, "conversations", "picture"),
    ({"conversations": [{"from": "robot", "value": "x"}]}, "conversations", "A turn must have"),
    ({"prompt": "x"}, "conversations", "no conversation"),
]


@pytest.mark.parametrize(("row", "field", "reason"), BAD)
def test_a_bad_row_is_an_error_that_names_it_or_listed(row, field, reason, save, store, tmp_path):
    (tmp_path / "broken.png").write_bytes(picture(3)[:-30])
    path = save(conversation("a.png", "Click"), row)
    with pytest.raises(DataError) as caught:
        read(path, store)
    assert (caught.value.file, caught.value.row, caught.value.field) == (path, 2, field)
    assert reason in caught.value.reason
    found = read(path, store, on_bad_row="skip")
    assert len(found.rows) == 1
    assert [(bad.adapter, bad.row, bad.field) for bad in found.bad] == [("calendar", 2, field)]


def test_a_source_without_a_usable_row_is_an_error_also_when_skipping(save, store):
    path = save(conversation("missing.png", "Click"))
    with pytest.raises(DataError, match="No row can be used, the first because: There is no pic"):
        read(path, store, on_bad_row="skip")


def test_rows_of_another_shape_become_conversations(save, store):
    rows = [
        {"id": "p", "question": "How many?", "image": "a.png", "answer": "3"},
        {"id": "q", "question": "Which?", "answer": ["x", "y"]},
    ]
    first, second = read(save(*rows), store).rows
    assert first.conversations == [
        {"from": "human", "value": "<image>\nHow many?"},
        {"from": "gpt", "value": "3"},
    ]
    assert second.conversations[-1] == {"from": "gpt", "value": '["x", "y"]'}
    assert (first.source_id, len(first.pictures), second.pictures) == ("p", 1, ())


def test_messages_become_conversations_with_their_pictures_in_place(save, store):
    content = [{"type": "text", "text": "See"}, {"type": "image"}, {"type": "text", "text": "Go"}]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "ok()"},
    ]
    row = read(save({"messages": turns, "images": ["a.png"]}), store).rows[0]
    assert row.conversations == [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "See\n<image>\nGo"},
        {"from": "gpt", "value": "ok()"},
    ]


def test_a_turn_that_no_conversation_can_say_is_a_bad_row(save, store):
    turns = [
        {"role": "user", "content": "x"},
        {"role": "tool", "content": "y"},
        {"role": "user", "content": "z"},
    ]
    with pytest.raises(DataError, match="cannot be written as a conversation"):
        read(save({"messages": turns}), store)


def test_the_digest_follows_the_content(save, store, tmp_path):
    one = read(save(conversation(None, "x")), store)
    two = read(save(conversation(None, "y")), store)
    assert one.sha256 != two.sha256
    assert one.kind == "json"
