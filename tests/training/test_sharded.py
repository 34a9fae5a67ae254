from __future__ import annotations

import json
import os

import pyarrow.parquet as pq
import pytest

from router_runtime.errors import ConfigError, DataError, RouterError
from router_training.formats import parquet_files, read_rows
from router_training.importers import detect_format, import_file
from router_training.labels import read_evaluations
from router_training.sharded import ShardWriter

COLUMNS = {"idx": "string", "prompt": "string", "model_scores": {"a": "float", "b": "float"}}


def record(at, score=1.0):
    return {"idx": str(at), "prompt": f"question {at}", "model_scores": {"a": score, "b": None}}


def write(folder, rows, rows_per_shard=2):
    with ShardWriter(folder, COLUMNS, rows_per_shard=rows_per_shard) as shards:
        for at in rows:
            shards.write(record(at))


def test_records_come_back_in_order_from_shards_of_the_wanted_size(tmp_path):
    write(tmp_path / "out", range(5))
    names = ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [path.name for path in parquet_files(tmp_path / "out")] == names
    assert [pq.read_metadata(tmp_path / "out" / name).num_rows for name in names] == [2, 2, 1]
    rows = list(read_rows(tmp_path / "out"))
    assert [(row.number, row.value["idx"]) for row in rows] == [(n + 1, str(n)) for n in range(5)]


def test_a_folder_of_records_is_read_wherever_a_file_is(tmp_path):
    write(tmp_path / "out", range(5))
    assert detect_format(tmp_path / "out") == "records"
    for evaluations in (read_evaluations(tmp_path / "out"), import_file(tmp_path / "out")):
        assert [sample.id for sample in evaluations.samples] == list("01234")
        assert evaluations.labels.Y[:, 0].tolist() == [1.0] * 5


def test_the_folder_appears_when_all_is_written_and_nothing_else_stays(tmp_path):
    folder = tmp_path / "deep" / "out"
    with ShardWriter(folder, COLUMNS, rows_per_shard=2) as shards:
        shards.write(record(0))
        assert not folder.exists()
    assert sorted(os.listdir(tmp_path / "deep")) == ["out"]
    assert sorted(os.listdir(folder)) == ["_records.json", "part-00000.parquet"]


def test_an_interrupted_writer_leaves_the_older_folder_as_it_was(tmp_path):
    write(tmp_path / "out", range(3))
    with (
        pytest.raises(KeyboardInterrupt),
        ShardWriter(tmp_path / "out", COLUMNS, rows_per_shard=2) as shards,
    ):
        shards.write(record(9))
        raise KeyboardInterrupt
    assert [row.value["idx"] for row in read_rows(tmp_path / "out")] == ["0", "1", "2"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_older_folder_of_records_is_replaced_whole(tmp_path):
    write(tmp_path / "out", range(9))
    write(tmp_path / "out", [7])
    assert [row.value["idx"] for row in read_rows(tmp_path / "out")] == ["7"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "part-00000.parquet", "_labels.json"])
def test_a_folder_that_others_wrote_is_never_replaced(tmp_path, name):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(ConfigError, match=name):
        write(folder, range(3))
    assert (folder / name).read_text() == "mine"


def test_a_file_put_among_records_protects_the_folder(tmp_path):
    write(tmp_path / "out", range(3))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        write(tmp_path / "out", range(3))


def test_an_empty_folder_is_filled_and_a_link_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", range(1))
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no folder"):
        write(tmp_path / "link", range(1))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RouterError, match="cannot be written"):
        write(tmp_path / "file" / "out", range(1))


def test_files_beside_the_records_are_kept_and_leave_with_them(tmp_path):
    with ShardWriter(tmp_path / "out", COLUMNS, rows_per_shard=2) as shards:
        shards.write(record(0))
        shards.add("_labels.json", b"{}")
        for name in ("labels.json", "_records.json", "_x/../../y.json"):
            with pytest.raises(ConfigError, match="must be"):
                shards.add(name, b"")
    assert (tmp_path / "out" / "_labels.json").read_bytes() == b"{}"
    write(tmp_path / "out", range(1))
    assert not (tmp_path / "out" / "_labels.json").exists()


def test_equal_records_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, range(5))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_missing_shard_is_an_error_and_not_fewer_records(tmp_path):
    write(tmp_path / "out", range(5))
    (tmp_path / "out" / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match="part-00001"):
        list(read_rows(tmp_path / "out"))


def test_parquet_files_of_others_are_read_by_name_and_a_folder_without_is_an_error(tmp_path):
    write(tmp_path / "out", range(4))
    plain = tmp_path / "plain"
    plain.mkdir()
    for name, shard in (("b.parquet", 0), ("a.parquet", 1)):
        (tmp_path / "out" / f"part-0000{shard}.parquet").rename(plain / name)
    assert [row.value["idx"] for row in read_rows(plain)] == ["2", "3", "0", "1"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no Parquet"):
        list(read_rows(tmp_path / "none"))


def test_heavy_rows_are_written_in_small_groups_and_read_back(tmp_path):
    with ShardWriter(tmp_path / "out", {"images": ["binary"]}, rows_per_shard=100) as shards:
        for at in range(20):
            shards.write({"images": [bytes([at]) * 2**22]})
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet")
    assert metadata.num_row_groups == 3
    read = [row.value["images"][0][0] for row in read_rows(tmp_path / "out")]
    assert read == list(range(20))


def test_the_list_of_files_counts_the_records(tmp_path):
    write(tmp_path / "out", range(5))
    listed = json.loads((tmp_path / "out" / "_records.json").read_text())
    assert listed["rows"] == 5
    assert [part["rows"] for part in listed["parts"]] == [2, 2, 1]
