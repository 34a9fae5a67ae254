from __future__ import annotations

import hashlib
import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from router_runtime.errors import ConfigError, DataError
from router_training.importers import import_file
from router_training.routing.checks import check_routing
from router_training.routing.generating import RoutingOptions, generate
from router_training.routing.options import AdapterOptions, Quota

NOW = datetime(2025, 11, 24, 15, 3, 34)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def options(adapters, **more) -> RoutingOptions:
    train, held = more.pop("train", Quota()), more.pop("held_out", Quota(8))
    named = tuple(AdapterOptions(n, str(p), None, train, held) for n, p in adapters.items())
    return RoutingOptions(named, **more)


@pytest.fixture
def made(adapters, tmp_path):
    return generate(options(adapters), output_dir=tmp_path / "out", now=NOW)


def test_the_folder_is_named_by_the_time_and_holds_the_parts(made):
    assert made.folder.name == "routing_20251124_150334"
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "eval.jsonl",
        "images",
        "metadata.json",
        "train.jsonl",
        "val.jsonl",
    ]
    names = ("calendar", "claim-window", "provider-select")
    assert made.check.rows == {
        "train": dict.fromkeys(names, 26),
        "val": dict.fromkeys(names, 6),
        "eval": dict.fromkeys(names, 8),
    }


def test_a_row_has_the_seeds_keys_and_the_sources_conversation(made, adapters):
    row = rows_of(made.folder / "train.jsonl")[0]
    assert list(row) == ["id", "image", "conversations", "metadata", "label", "adapter"]
    source = rows_of(adapters[row["adapter"]])[row["metadata"]["routing"]["source_row"] - 1]
    assert row["conversations"] == source["conversations"]
    assert row["metadata"]["routing"]["source_id"] == source["id"]
    assert row["label"] == list(adapters).index(row["adapter"])
    picture = (made.folder / row["image"]).read_bytes()
    assert picture == (adapters[row["adapter"]].parent / source["image"]).read_bytes()


def test_pictures_are_there_once_and_only_those_that_rows_show(write_adapter, tmp_path):
    adapters = {
        "a": write_adapter("a", 40, first_shade=0, per_picture=4),
        "b": write_adapter("b", 40, first_shade=100),
    }
    made = generate(
        options(adapters, train=Quota(10), held_out=Quota()), output_dir=tmp_path, now=NOW
    )
    rows = [row for part in ("train", "val") for row in rows_of(made.folder / f"{part}.jsonl")]
    kept = {f"images/{path.name}" for path in (made.folder / "images").iterdir()}
    assert kept == {row["image"] for row in rows}
    assert made.unused == {"a": 30, "b": 30}
    assert not (made.folder / "eval.jsonl").exists()


def test_the_metadata_says_what_was_made_of_what(made, adapters):
    found = json.loads((made.folder / "metadata.json").read_text())
    assert found["labels"] == {"calendar": 0, "claim-window": 1, "provider-select": 2}
    assert found["sources"][0]["dataset"] == str(adapters["calendar"])
    data = hashlib.sha256(adapters["calendar"].read_bytes()).digest()
    assert found["sources"][0]["digest"] == hashlib.sha256(data).hexdigest()
    assert found["rows"]["eval"] == dict.fromkeys(adapters, 8)
    assert found["check"]["leaks"] == []
    assert found["created"] == "2025-11-24T15:03:34"


def test_equal_seeds_give_equal_files(adapters, tmp_path):
    folders = [
        generate(options(adapters, seed=seed), output_dir=tmp_path / name, now=NOW).folder
        for seed, name in ((3, "x"), (3, "y"), (4, "z"))
    ]
    texts = [(folder / "train.jsonl").read_bytes() for folder in folders]
    assert texts[0] == texts[1] != texts[2]


def test_the_train_share_is_followed(adapters, tmp_path):
    made = generate(options(adapters, train_share=0.5), output_dir=tmp_path, now=NOW)
    assert made.check.rows["val"] == dict.fromkeys(adapters, 16)


def test_a_picture_that_two_adapters_show_is_in_one_part(write_adapter, tmp_path):
    same = {n: write_adapter(n, 40, first_shade=0) for n in ("a", "b")}
    made = generate(options(same), output_dir=tmp_path, now=NOW)
    assert made.check.leaks == ()
    assert sum(made.check.pictures.values()) == 40


def test_a_missing_picture_is_an_error_that_names_file_and_row(adapters, tmp_path):
    (adapters["calendar"].parent / "shots" / "3.png").unlink()
    with pytest.raises(DataError, match=r"calendar/train.jsonl, row 4, field 'image\[0\]': There"):
        generate(options(adapters), output_dir=tmp_path / "out", now=NOW)
    assert list((tmp_path / "out").iterdir()) == []
    made = generate(options(adapters, on_bad_row="skip"), output_dir=tmp_path / "out", now=NOW)
    assert [(bad.adapter, bad.row) for bad in made.bad] == [("calendar", 4)]
    listed = json.loads((made.folder / "metadata.json").read_text())["left_out"]
    assert listed[0]["row"] == 4
    assert "no picture file" in listed[0]["reason"]


def test_a_folder_that_exists_is_never_touched(made, adapters):
    before = (made.folder / "train.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="exists; wait a second"):
        generate(options(adapters, seed=9), output_dir=made.folder.parent, now=NOW)
    assert (made.folder / "train.jsonl").read_bytes() == before


@pytest.mark.parametrize(("key", "value"), [("train_share", 1.0), ("seed", -1)])
def test_options_out_of_range_are_named(key, value, adapters):
    with pytest.raises(ConfigError, match=f"{key} is {value:g}"):
        options(adapters, **{key: value})


class TestReadingItAsRecords:
    def test_train_and_val_become_records_in_the_order_of_the_labels(self, made):
        found = import_file(made.folder)
        assert found.model_ids == ("calendar", "claim-window", "provider-select")
        assert len(found) == 96
        assert (found.labels.Y.sum(axis=1) == 1).all()
        assert {s.dataset for s in found.samples} == set(found.model_ids)
        sample = found.samples[0]
        asked, _, _ = sample.query.text.partition(" request")
        assert found.labels.Y[0, found.model_ids.index(asked)] == 1
        assert "done()" not in sample.query.text

    def test_eval_is_read_by_its_name_in_the_same_order(self, made):
        found = import_file(made.folder / "eval.jsonl")
        assert (len(found), found.model_ids[0]) == (24, "calendar")

    def test_rows_with_a_common_picture_are_one_group(self, write_adapter, tmp_path):
        paths = {n: write_adapter(n, 40, first_shade=s, per_picture=2) for n, s in
                 (("a", 0), ("b", 500))}  # fmt: skip
        made = generate(options(paths), output_dir=tmp_path, now=NOW)
        found = import_file(made.folder)
        shown = {(s.group, s.query.images[0].sha256) for s in found.samples}
        assert len(shown) == len(set(found.groups)) < len(found)

    def test_a_folder_that_lists_no_adapters_is_refused(self, made):
        (made.folder / "metadata.json").write_text("{}")
        with pytest.raises(DataError, match="does not list the adapters"):
            import_file(made.folder, source="routing")

    def test_a_row_of_an_unlisted_adapter_is_named(self, made):
        row = rows_of(made.folder / "val.jsonl")[0]
        (made.folder / "val.jsonl").write_text(json.dumps({**row, "adapter": "other"}))
        with pytest.raises(DataError, match=r"row 1, field 'adapter': It is 'other'; known: cal"):
            import_file(made.folder / "val.jsonl")


class TestTheCheck:
    def test_a_picture_in_two_parts_is_a_leak_also_under_another_name(self, made):
        row, other = (rows_of(made.folder / f"{part}.jsonl") for part in ("train", "val"))
        copy = made.folder / "images" / "copy.png"
        shutil.copy(made.folder / row[0]["image"], copy)
        other[0]["image"] = "images/copy.png"
        (made.folder / "val.jsonl").write_text("\n".join(map(json.dumps, other)))
        found = check_routing(made.folder)
        assert len(found.leaks) == 1
        assert f"is in train ({row[0]['id']}) and in val ({other[0]['id']})" in found.leaks[0]

    def test_a_repeated_row_is_a_leak(self, made):
        row = rows_of(made.folder / "train.jsonl")[0]
        with (made.folder / "eval.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        assert len(check_routing(made.folder).leaks) == 3  # picture, id and group

    def test_one_request_under_two_adapters_is_counted(self, made):
        rows = rows_of(made.folder / "train.jsonl")
        twin = {**rows[0], "id": "twin", "adapter": "other", "label": 3}
        (made.folder / "train.jsonl").write_text("\n".join(map(json.dumps, [*rows, twin])))
        found = check_routing(made.folder)
        assert (found.contradictions, found.leaks) == (1, ())
        assert made.check.contradictions == 0

    def test_a_missing_picture_is_named_by_file_and_row(self, made):
        row = rows_of(made.folder / "val.jsonl")[2]
        (made.folder / row["image"]).unlink()
        with pytest.raises(DataError, match=r"val.jsonl, row 3, field 'image': There is no pict"):
            check_routing(made.folder)

    def test_a_folder_without_routing_data_is_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"no train\.jsonl"):
            check_routing(tmp_path)
