from __future__ import annotations

import io
import json
import os

import datasets
import PIL.Image
import pytest

from router_runtime.errors import DataError, RouterError
from router_training.labelling.config import LabelConfig
from router_training.labelling.samples import chat_messages
from router_training.labelling.samples_stage import (
    ROWS_PER_SHARD,
    iter_samples,
    keep_samples,
    n_samples,
    n_shards,
    read_manifest,
)

TARGET = {"kind": "compatible", "base_url": "http://127.0.0.1:1/v1"}


def png(colour):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png("red"), png("blue")


def config(tmp_path, path, *, seed=0, **data):
    content = {
        "data": {"path": str(path), **data},
        "candidates": [{"id": "m", "target": TARGET}],
        "scoring": {"scorers": {"exact": "exact"}, "default": ["exact"]},
        "work_dir": str(tmp_path / "work"),
        "seed": seed,
    }
    return LabelConfig.model_validate(content)


def lines(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(folder, **given):
    return [entry.sample.id for entry in iter_samples(folder, **given)]


def test_samples_come_back_as_they_were_read(tmp_path):
    (tmp_path / "red.png").write_bytes(RED)
    turns = [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    ]
    rows = [
        {"id": 7, "prompt": "2+2?", "answer": 4, "scorer": "numeric judge", "group": "sums"},
        {"id": "x", "messages": turns, "images": ["red.png"], "answer": "red"},
        {"id": "y", "prompt": "Which?", "choices": ["a", "b"], "answer": 1, "dataset": "mc"},
    ]
    folder = keep_samples(config(tmp_path, lines(tmp_path, rows)))
    sums, seen, choice = iter_samples(folder)
    assert (sums.sample.id, sums.sample.prompt, sums.sample.reference) == ("7", "2+2?", "4")
    assert (sums.scorers, sums.sample.group, sums.sample.dataset) == (
        ("numeric", "judge"),
        "sums",
        "rows",
    )
    assert [image.data for image in seen.sample.query.images] == [RED]
    assert seen.sample.query.text == "brief\n\nwhat?"
    system, question = chat_messages(seen.sample)
    assert system["content"] == "brief"
    assert question["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (choice.choices, choice.sample.reference, choice.sample.dataset) == (
        ("a", "b"),
        "B",
        "mc",
    )
    assert choice.sample.prompt == "Which?\n\nA. a\nB. b"


def test_pictures_of_a_real_data_set_are_kept_byte_for_byte(tmp_path):
    features = datasets.Features(
        {"question": datasets.Value("string"), "images": datasets.List(datasets.Image())}
    )
    table = {"question": ["one", "two"], "images": [[RED], [RED, BLUE]]}
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "d")
    folder = keep_samples(config(tmp_path, tmp_path / "d"))
    kept = [[image.data for image in e.sample.query.images] for e in iter_samples(folder)]
    assert kept == [[RED], [RED, BLUE]]


def test_shards_are_bounded_and_read_alone_or_together(tmp_path):
    rows = [{"id": n, "prompt": f"q{n}"} for n in range(2 * ROWS_PER_SHARD + 5)]
    folder = keep_samples(config(tmp_path, lines(tmp_path, rows)))
    assert (n_samples(folder), n_shards(folder)) == (len(rows), 3)
    assert ids(folder) == [str(n) for n in range(len(rows))]
    assert ids(folder, shard=2) == [str(2 * ROWS_PER_SHARD + n) for n in range(5)]
    with pytest.raises(RouterError, match="no shard 3"):
        ids(folder, shard=3)


def test_a_source_is_read_once_and_again_when_it_or_its_settings_change(tmp_path):
    path = lines(tmp_path, [{"prompt": f"q{n}"} for n in range(9)])
    progress = []

    def keep(**data):
        return keep_samples(
            config(tmp_path, path, **data), progress=lambda *at: progress.append(at)
        )

    first = keep()
    assert progress == [(n, 0) for n in range(1, 10)]
    assert keep() == first
    assert keep(seed=5) == first  # nothing is shuffled
    assert len(progress) == 9
    assert keep(limit=4) != first
    assert progress[9:] == [(n, 4) for n in range(1, 5)]
    assert keep(limit=4, shuffle=True, seed=1) != keep(limit=4, shuffle=True, seed=2)
    path.write_text('{"prompt": "changed"}\n')
    assert n_samples(keep()) == 1


def test_rows_without_ids_are_named_by_their_number_whatever_is_taken(tmp_path):
    path = lines(tmp_path, [{"prompt": f"q{n}"} for n in range(50)])
    folder = keep_samples(config(tmp_path, path, limit=5, shuffle=True))
    for entry in iter_samples(folder):
        assert entry.sample.id == f"row-{int(entry.sample.prompt[1:]) + 1}"


def test_ids_that_repeat_are_made_unique_unless_the_config_names_them(tmp_path):
    path = lines(tmp_path, [{"id": "a", "prompt": "p"}, {"id": "a", "prompt": "q"}])
    assert ids(keep_samples(config(tmp_path, path))) == ["a", "a#2"]
    with pytest.raises(DataError, match=r"row 2, field 'id'.*data\.columns\.id"):
        keep_samples(config(tmp_path, path, columns={"id": "id"}))


BAD = [
    {"id": 1, "prompt": "good"},
    {"id": 2, "prompt": ""},
    {"id": 3, "prompt": "p", "images": ["missing.png"]},
    {"id": 4, "prompt": "p", "choices": ["a", "b"], "answer": "neither"},
    {"id": 5, "prompt": "p", "images": ["data:image/png;base64,AAAA"]},
    {"id": 6, "prompt": "good too"},
]


def test_a_bad_row_ends_the_reading_and_leaves_nothing(tmp_path):
    path = lines(tmp_path, BAD)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2"):
        keep_samples(config(tmp_path, path))
    assert os.listdir(tmp_path / "work") == []


def test_bad_rows_are_left_out_and_counted_where_the_config_says_so(tmp_path):
    folder = keep_samples(config(tmp_path, lines(tmp_path, BAD), on_bad_row="skip"))
    assert ids(folder) == ["1", "6"]
    manifest = read_manifest(folder)
    assert [row.row for row in manifest.skipped] == [2, 3, 4, 5]
    assert manifest.skipped[2].field == "answer"
    assert manifest.n_skipped == sum(manifest.reasons.values()) == 4
    assert manifest.source["config"]["on_bad_row"] == "skip"


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    path = lines(tmp_path, BAD[1:3])
    with pytest.raises(DataError, match=r"all 2 were left out, the first \(row 1\)"):
        keep_samples(config(tmp_path, path, on_bad_row="skip"))


def test_only_samples_and_their_manifest_stay_in_the_folder(tmp_path):
    folder = keep_samples(config(tmp_path, lines(tmp_path, [{"prompt": "p"}])))
    assert sorted(os.listdir(folder)) == ["made.json", "manifest.json", "part-00000.parquet"]
    assert folder.name.startswith("samples-")


def test_a_damaged_folder_of_samples_is_named_with_the_remedy(tmp_path):
    given = config(tmp_path, lines(tmp_path, [{"prompt": "p"}]))
    folder = keep_samples(given)
    (folder / "part-00000.parquet").unlink()
    with pytest.raises(RouterError, match="Delete that folder"):
        keep_samples(given)
    with pytest.raises(RouterError, match="part-00000"):
        ids(folder)


def test_our_own_records_can_be_labelled_anew(tmp_path):
    rows = [
        {"idx": 0, "prompt": "p", "messages": None, "images": [], "model_scores": {"m": 1}},
        {"idx": 1, "prompt": "b", "messages": [{"role": "user", "content": "b"}], "answer": "x"},
    ]
    folder = keep_samples(config(tmp_path, lines(tmp_path, rows)))
    assert [e.sample.prompt for e in iter_samples(folder)] == ["p", "b"]


def test_pictures_named_by_rows_lie_beside_the_file_or_where_the_config_says(tmp_path):
    path = lines(tmp_path, [{"prompt": "p", "image": "one.png"}])
    with pytest.raises(DataError, match=r"one\.png"):
        keep_samples(config(tmp_path, path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "one.png").write_bytes(RED)
    folder = keep_samples(config(tmp_path, path, image_root=str(tmp_path / "elsewhere")))
    assert [e.sample.query.images[0].data for e in iter_samples(folder)] == [RED]
