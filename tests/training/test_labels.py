from __future__ import annotations

import base64
import gzip
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import DataError
from router_training.formats import Row
from router_training.labels import (
    Evaluations,
    LabelMatrix,
    SkippedRow,
    evaluations_from_rows,
    read_evaluations,
    write_evaluations,
)
from router_training.pictures import Pictures

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def png(colour="red"):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2, 2), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def record(idx, prompt="Hi", **fields):
    return {"idx": idx, "prompt": prompt, "model_scores": {"a": 1, "b": 0}} | fields


RICH = [
    record(0, answer="yes", images=[base64.b64encode(png()).decode()], dataset="d"),
    record(
        1,
        model_scores={"a": None, "b": 0.5},
        model_costs={"a": 0.001},
        model_usage={"b": {"input_tokens": 3, "output_tokens": 4}},
        model_seconds={"b": 0.75},
        group="g",
    ),
    record(
        "two",
        images=[base64.b64encode(png("blue")).decode()],
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "tool", "content": "42"},
        ],
        contaminated=True,
    ),
]


def write(path, records):
    text = (
        json.dumps(records)
        if ".jsonl" not in path.name
        else "".join(json.dumps(one) + "\n" for one in records)
    )
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["e.json", "e.jsonl", "e.json.gz", "e.jsonl.gz"])
def test_json_and_json_lines_plain_and_gzipped_read_alike(tmp_path, name):
    found = read_evaluations(write(tmp_path / name, RICH))
    assert found.model_ids == ("a", "b")
    assert [sample.id for sample in found.samples] == ["0", "1", "two"]
    np.testing.assert_array_equal(found.labels.Y, [[1, 0], [np.nan, 0.5], [1, 0]])
    np.testing.assert_array_equal(found.labels.cost_usd[1], [0.001, np.nan])
    np.testing.assert_array_equal(found.labels.output_tokens[1], [np.nan, 4])


def test_json_lines_in_a_json_file_are_read_too(tmp_path):
    path = tmp_path / "e.json"
    path.write_text("\n".join(json.dumps(record(at)) for at in range(2)))
    assert len(read_evaluations(path)) == 2


@pytest.mark.parametrize("name", ["e.json", "e.jsonl", "e.jsonl.gz", "e.parquet"])
def test_what_is_written_reads_back_equal(tmp_path, name):
    first = read_evaluations(write(tmp_path / "in.json", RICH))
    write_evaluations(first, tmp_path / "out" / name)
    second = read_evaluations(tmp_path / "out" / name)
    assert second.fingerprint == first.fingerprint
    assert second.samples == first.samples
    np.testing.assert_array_equal(second.labels.Y, first.labels.Y)


def test_equal_content_gives_equal_bytes_and_no_temporary_file_stays(tmp_path):
    evaluations = read_evaluations(write(tmp_path / "in.json", RICH))
    for name in ("x.jsonl.gz", "y.jsonl.gz"):
        write_evaluations(evaluations, tmp_path / "out" / name)
    assert (tmp_path / "out/x.jsonl.gz").read_bytes() == (tmp_path / "out/y.jsonl.gz").read_bytes()
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "e.json"
    path.write_text("old")
    evaluations = read_evaluations(write(tmp_path / "in.json", RICH))
    broken = Evaluations((*evaluations.samples[:2], None), evaluations.labels)
    with pytest.raises(AttributeError):
        write_evaluations(broken, path)
    assert path.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e.json", "in.json"]


def test_parquet_with_picture_structs_and_null_scores(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(
        [
            {"idx": 0, "prompt": "Hi", "images": [{"bytes": png(), "path": "a.png"}]}
            | {"model_scores": {"a": 1.0, "b": None}, "image": None},
            {"idx": 1, "prompt": "Ho", "images": None, "model_scores": {"a": None, "b": 0.0}},
        ]
    )
    pq.write_table(table, tmp_path / "e.parquet")
    found = read_evaluations(tmp_path / "e.parquet")
    np.testing.assert_array_equal(found.labels.Y, [[1, np.nan], [np.nan, 0]])
    assert found.queries[0].images[0].data == png()


def test_a_row_without_any_score_is_kept_and_counted(tmp_path):
    rows = [record(0), record(1, model_scores={"a": None}), record(2, model_scores={})]
    found = read_evaluations(write(tmp_path / "e.json", rows))
    assert (len(found), found.n_unscored) == (3, 2)
    assert np.isnan(found.labels.Y[1:]).all()


def test_models_come_in_order_of_first_appearance_or_as_asked(tmp_path):
    rows = [record(0, model_scores={"z": 1}), record(1, model_scores={"a": 0, "z": 1})]
    path = write(tmp_path / "e.json", rows)
    assert read_evaluations(path).model_ids == ("z", "a")
    asked = read_evaluations(path, model_ids=["n", "a", "z"])
    np.testing.assert_array_equal(asked.labels.Y, [[np.nan, np.nan, 1], [np.nan, 0, 1]])


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("bad", "field", "words"),
    [
        (record(0), "id", "already that of row 1"),
        (record(1, model_scores={"x": 1}), "model_scores", "'x' is unknown"),
        (record(1, model_costs={"x": 1}), "model_costs", "'x' is unknown"),
        (record(1, model_scores={"a": 2}), "model_scores.a", "outside"),
        (record(1, images=["@"]), "images[0]", "no picture file"),
        (record(1, prompt=""), "prompt", "no prompt"),
        ({"a": 1}, None, "shape is unknown"),
        (17, None, "int"),
    ],
)
def test_a_bad_row_is_an_error_with_file_row_and_field_or_a_listed_skip(
    tmp_path, suffix, bad, field, words
):
    path = write(tmp_path / f"e.{suffix}", [record(0), bad, record(5)])
    with pytest.raises(DataError, match=words) as caught:
        read_evaluations(path, model_ids=["a", "b"])
    error = caught.value
    assert (error.file, error.row, error.field) == (str(path), 2, field)
    found = read_evaluations(path, model_ids=["a", "b"], on_bad_row="skip")
    assert [sample.id for sample in found.samples] == ["0", "5"]
    assert found.skipped == (SkippedRow(2, field, error.reason),)


def test_a_cost_for_a_model_that_no_row_scores_is_an_error(tmp_path):
    path = write(tmp_path / "e.json", [record(0), record(1, model_costs={"total": 3})])
    with pytest.raises(DataError, match="'total' is unknown"):
        read_evaluations(path)


def test_an_invalid_line_is_named_and_can_be_skipped(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_text(f'{json.dumps(record(0))}\n\n{{"idx": 1,\n{{"a": 1, "a": 2}}\n')
    with pytest.raises(DataError, match="Invalid JSON in line 3") as caught:
        read_evaluations(path)
    assert caught.value.row == 3
    skipped = read_evaluations(path, on_bad_row="skip").skipped
    assert [row.row for row in skipped] == [3, 4]
    assert "'a' is repeated" in skipped[1].reason


def test_an_unknown_model_is_an_error_that_names_the_row_s_own_field(tmp_path):
    rows = {
        "scores": {"prompt": "Hi", "scores": {"c": 1}},
        "model_scores": {"prompt": "Hi", "model_scores": {"c": 1}},
        "costs": {"prompt": "Hi", "scores": {"a": 1}, "costs": {"c": 1}},
        "category": {"query": "Hi", "category": "c"},
        "adapter": {"conversations": [{"from": "human", "value": "Hi"}], "adapter": "c"},
    }
    for field, row in rows.items():
        with pytest.raises(DataError, match="'c' is unknown") as caught:
            read_evaluations(write(tmp_path / "e.json", [row]), model_ids=["a"])
        assert caught.value.field == field


def test_an_id_of_many_digits_stays_text(tmp_path):
    digits = "9" * 5000
    found = read_evaluations(write(tmp_path / "e.json", [record(digits)]))
    write_evaluations(found, tmp_path / "out.json")
    assert read_evaluations(tmp_path / "out.json").samples[0].id == digits


def test_a_parquet_file_with_two_columns_of_one_name_is_an_error(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = [pa.array(["one"]), pa.array(["two"]), pa.array([{"a": 1.0}])]
    table = pa.Table.from_arrays(columns, names=["prompt", "prompt", "model_scores"])
    pq.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(DataError, match="'prompt' occurs twice"):
        read_evaluations(tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("e.json", b"", "empty"),
        ("e.json", b'{\n "data": []}', "write a list of records"),
        ("e.json", b"[{}] {}", "Extra data"),
        ("e.json", b"[{} {}]", "Expecting ','"),
        ("e.json", b'["\xff"]', "not UTF-8"),
        ("e.json", b"[]", "empty list"),
        ("e.json", b"[{", "Invalid JSON in line 1"),
        ("e.json", b"[" * 100_000, "Invalid JSON"),
        ("e.jsonl", b" \n", "empty"),
        ("e.jsonl", b"\xff\xfe{}", "not UTF-8"),
        ("e.jsonl.gz", b"no gzip", "gzip"),
        ("e.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:-9], "gzip"),
        ("e.parquet", b"no parquet", "Parquet"),
        ("e.xlsx", b"x", "suffix"),
        ("e.pkl", b"x", "pickle"),
    ],
)
def test_an_unreadable_file_is_one_clear_error(tmp_path, name, data, words):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read_evaluations(path, on_bad_row="skip")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lone_surrogates_are_replaced_so_that_the_data_can_be_written(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_text('{"idx": 0, "prompt": "a\\ud800b", "model_scores": {"m": 1}}')
    found = read_evaluations(path)
    assert found.samples[0].prompt == "a?b"
    write_evaluations(found, tmp_path / "out.jsonl")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_evaluations(tmp_path / "e.json")


def test_nothing_usable_is_an_error_that_gives_the_first_reason(tmp_path):
    path = write(tmp_path / "e.json", [{"a": 1}, {"a": 2}])
    with pytest.raises(DataError, match=r"all 2 were left out.*row 1.*shape is unknown"):
        read_evaluations(path, on_bad_row="skip")


def test_contaminated_rows_are_left_out_only_when_asked_and_are_listed(tmp_path):
    path = write(tmp_path / "e.json", RICH)
    assert len(read_evaluations(path)) == 3
    found = read_evaluations(path, drop_contaminated=True)
    assert len(found) == 2
    assert [(row.row, row.field) for row in found.skipped] == [(3, "contaminated")]


class TestClasses:
    def rows(self):
        return [
            {"query": "2+2?", "category": "math"},
            {"query": "sort a list", "category": "code"},
            {"query": "3+3?", "category": "math"},
        ]

    def test_classes_become_one_hot_scores_in_alphabetical_columns(self, tmp_path):
        found = read_evaluations(write(tmp_path / "e.jsonl", self.rows()))
        assert found.model_ids == ("code", "math")
        np.testing.assert_array_equal(found.labels.Y, [[0, 1], [1, 0], [0, 1]])

    def test_an_unknown_class_is_a_bad_row(self, tmp_path):
        with pytest.raises(DataError, match="'code' is unknown"):
            read_evaluations(write(tmp_path / "e.jsonl", self.rows()), model_ids=["math", "x"])

    def test_positions_follow_the_given_models(self, tmp_path):
        turns = [{"from": "human", "value": "Hi"}]
        rows = [{"id": at, "conversations": turns, "label": at} for at in range(2)]
        path = write(tmp_path / "e.json", rows)
        with pytest.raises(DataError, match="give model_ids"):
            read_evaluations(path)
        found = read_evaluations(path, model_ids=["x", "y", "z"])
        np.testing.assert_array_equal(found.labels.Y, [[1, 0, 0], [0, 1, 0]])
        with pytest.raises(DataError, match="label 1 has no model"):
            read_evaluations(path, model_ids=["x"])

    def test_scores_and_classes_do_not_mix(self, tmp_path):
        with pytest.raises(DataError, match="split the file"):
            read_evaluations(write(tmp_path / "e.json", [record(0), *self.rows()]))


def test_take_keeps_rows_together_and_in_the_order_asked(tmp_path):
    found = read_evaluations(write(tmp_path / "e.json", RICH)).take([2, 0])
    assert [sample.id for sample in found.samples] == ["two", "0"]
    np.testing.assert_array_equal(found.labels.Y, [[1, 0], [1, 0]])
    assert len(found.queries) == len(found.groups) == 2
    assert found.take(np.array([False, True])).samples[0].id == "0"


@pytest.mark.parametrize(
    "changed", [{"prompt": "Ho"}, {"model_scores": {"a": 1, "b": 0.1}}, {"idx": 8}, {"group": "h"}]
)
def test_the_fingerprint_follows_the_content(tmp_path, changed):
    same = [read_evaluations(write(tmp_path / "e.json", [record(0)])) for _ in range(2)]
    other = read_evaluations(write(tmp_path / "o.json", [record(0) | changed]))
    assert same[0].fingerprint == same[1].fingerprint != other.fingerprint


def test_label_arrays_are_read_only_and_checked():
    labels = LabelMatrix.of_scores(["a", "b"], np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="read-only"):
        labels.Y[0, 0] = 0
    with pytest.raises(DataError, match="shape"):
        LabelMatrix.of_scores(["a"], np.zeros((1, 2)))
    with pytest.raises(DataError, match="repeated"):
        LabelMatrix.of_scores(["a", "a"], np.zeros((1, 2)))


scores = st.dictionaries(
    st.sampled_from("abc"), st.none() | st.floats(0, 1) | st.booleans(), min_size=1
)


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(st.text(min_size=1).filter(str.strip), scores), min_size=1))
def test_any_records_survive_writing_and_reading(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    records = [
        Row(at, {"idx": at, "prompt": text, "model_scores": found})
        for at, (text, found) in enumerate(rows)
    ]
    first = evaluations_from_rows(records, source="test", pictures=Pictures(folder))
    for name in ("e.jsonl", "e.parquet"):
        write_evaluations(first, folder / name)
        assert read_evaluations(folder / name).fingerprint == first.fingerprint


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared tables are not here")
@pytest.mark.parametrize(
    ("name", "image_root", "shape", "n_groups", "n_pictures"),
    [
        ("routerbench_0shot_arc_mbpp_winogrande.jsonl.gz", None, (3150, 11), 3148, 0),
        ("routellm_mmlu_gpt4_mixtral.jsonl.gz", None, (14042, 2), 13937, 0),
        ("blindtest_4vlm.jsonl.gz", "blindtest_images", (10240, 4), 4740, 4740),
    ],
)
def test_the_tables_of_real_outcomes_are_read_whole(name, image_root, shape, n_groups, n_pictures):
    found = read_evaluations(SHARED / name, image_root=image_root and SHARED / image_root)
    assert found.labels.Y.shape == shape
    assert len(set(found.groups)) == n_groups
    pictures = {id(image) for query in found.queries for image in query.images}
    assert len(pictures) == n_pictures
    assert not found.skipped


def test_durations_are_read_and_missing_ones_are_not_zero(tmp_path):
    found = read_evaluations(write(tmp_path / "e.json", RICH))
    np.testing.assert_array_equal(found.labels.seconds[1], [np.nan, 0.75])
    assert np.isnan(found.labels.seconds[[0, 2]]).all()
    np.testing.assert_array_equal(found.labels.take([1]).seconds, [[np.nan, 0.75]])


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        ({"a": -1}, "model_seconds.a.*at least 0"),
        ({"a": "soon"}, "The duration 'soon' is not a number"),
        ({"c": 1}, "The model 'c' is unknown"),
        (3, "must be an object"),
    ],
)
def test_what_is_no_duration_is_refused(tmp_path, seconds, message):
    with pytest.raises(DataError, match=message):
        read_evaluations(write(tmp_path / "e.json", [record(0, model_seconds=seconds)]))


def test_durations_change_the_digest_and_their_absence_does_not(tmp_path):
    plain = read_evaluations(write(tmp_path / "e.json", [record(0)]))
    timed = read_evaluations(write(tmp_path / "e.json", [record(0, model_seconds={"a": 1.5})]))
    null = read_evaluations(write(tmp_path / "e.json", [record(0, model_seconds={"a": None})]))
    assert plain.fingerprint == null.fingerprint != timed.fingerprint
