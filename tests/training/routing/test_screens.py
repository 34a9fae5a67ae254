from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from router_runtime.errors import ConfigError
from router_training.routing.options import AdapterOptions
from router_training.routing.screen_canvas import Canvas, Drawn, click
from router_training.routing.screens import DEFAULT_ADAPTERS, SCREENS, DrawOptions, draw_screens
from router_training.routing.sources import PictureStore, read_adapter

ALL = tuple(SCREENS)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "screens"
    draw_screens(folder, DrawOptions(rows=48, seed=5, adapters=ALL))
    return folder


def test_rows_are_divided_evenly_and_usable_as_an_adapters_data_set(drawn, tmp_path):
    for adapter in ALL:
        path = drawn / adapter / "train.jsonl"
        store = PictureStore(tmp_path / adapter)
        found = read_adapter(AdapterOptions(adapter, str(path)), store=store)
        assert len(found.rows) == 12
        assert all(row.metadata["drawn"] is True for row in found.rows)
        assert all(turn["value"] for row in found.rows for turn in row.conversations)


def test_what_tells_a_row_has_the_stated_shares(tmp_path):
    options = DrawOptions(40, adapters=("calendar", "claim-window"), blank_share=0.25)
    for path in draw_screens(tmp_path / "x", options):
        told = Counter(row["metadata"]["told_by"] for row in rows_of(path))
        assert told == {"both": 11, "picture": 4, "text": 5}


def test_vague_requests_are_the_same_for_all_screens(tmp_path):
    options = DrawOptions(40, adapters=("calendar", "claim-window"), ambiguous_share=1.0,
                          blank_share=0.0)  # fmt: skip
    asked = [
        {row["conversations"][0]["value"] for row in rows_of(path)}
        for path in draw_screens(tmp_path / "x", options)
    ]
    assert len(asked[0] & asked[1]) >= 4
    assert not any("claim" in text or "calendar" in text for text in asked[0] | asked[1])


def test_equal_seeds_draw_equal_bytes_and_others_do_not(tmp_path):
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        draw_screens(tmp_path / name, DrawOptions(rows=8, seed=seed, adapters=ALL))
    assert digests(tmp_path / "x") == digests(tmp_path / "y")
    assert digests(tmp_path / "x") != digests(tmp_path / "z")


def test_another_adapter_changes_no_picture_of_the_others(tmp_path):
    draw_screens(tmp_path / "x", DrawOptions(rows=9))
    draw_screens(tmp_path / "y", DrawOptions(rows=12, adapters=(*DEFAULT_ADAPTERS, "chandra-ocr")))
    before, after = digests(tmp_path / "x"), digests(tmp_path / "y")
    assert {name: after[name] for name in before if name != "drawn.json"} == {
        name: digest for name, digest in before.items() if name != "drawn.json"
    }


def test_a_folder_drawn_with_equal_options_is_kept_and_any_other_refused(drawn):
    before = digests(drawn)
    draw_screens(drawn, DrawOptions(rows=48, seed=5, adapters=ALL))
    assert digests(drawn) == before
    with pytest.raises(ConfigError, match="was not drawn with these options"):
        draw_screens(drawn, DrawOptions(rows=48, seed=6, adapters=ALL))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapters": ("calendar", "radio")}, "No screen is drawn for 'radio'; known: calendar"),
        ({"adapters": ()}, "at least one, each once"),
        ({"adapters": ("calendar", "calendar")}, "at least one, each once"),
        ({"rows": 2}, "rows is 2; draw at least 3"),
        ({"seed": -1}, "seed is -1"),
        ({"blank_share": 1.5}, "blank_share is 1.5"),
        ({"blank_share": 0.7, "ambiguous_share": 0.7}, "their sum is 1.4"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        DrawOptions(**options)


@pytest.mark.parametrize("name", ALL)
def test_every_kind_of_screen_shows_what_it_is_asked_about(name):
    kind = SCREENS[name]
    for seed in range(12):
        canvas = (Canvas.page if kind.is_page else Canvas.screen)(np.random.default_rng(seed))
        width, height = canvas.image.size
        shown: Drawn = kind.draw(canvas)
        assert len({asked.prompt for asked in shown.asked}) >= 3
        assert shown.entries
        assert np.asarray(canvas.image.convert("L")).std() > 5
        for entry in shown.entries:
            assert 0 <= entry.box.left < entry.box.right <= width + 1, (seed, entry)
            assert 0 <= entry.box.top < entry.box.bottom <= height + 1, (seed, entry)


@pytest.mark.parametrize("name", DEFAULT_ADAPTERS)
def test_a_click_lands_where_something_is_drawn(name):
    canvas = Canvas.screen(np.random.default_rng(2))
    for entry in SCREENS[name].draw(canvas).entries:
        call = json.loads(click(entry.box))["arguments"]
        assert entry.box.left <= call["x"] <= entry.box.right
        assert entry.box.top <= call["y"] <= entry.box.bottom
        assert np.asarray(canvas.image.crop(tuple(map(round, entry.box)))).std() > 0


def test_sizes_and_formats_vary(drawn):
    pictures = list(drawn.rglob("*.png")) + list(drawn.rglob("*.jpg"))
    sizes = {Image.open(path).size for path in pictures}
    assert {path.suffix for path in pictures} == {".png", ".jpg"}
    assert len(sizes) > len(pictures) / 2
    assert all(480 <= width <= 1280 for width, _ in sizes)
