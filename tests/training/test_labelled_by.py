from __future__ import annotations

import json
from dataclasses import replace

import pytest

from router_runtime.errors import DataError
from router_training.labelled_by import (
    SUFFIX,
    AskedModel,
    JudgedBy,
    LabelledBy,
    LabelledCells,
    labels_path,
    read_labelled_by,
    records_digest,
    write_labelled_by,
)
from router_training.labelling.trust import measure_trust


def content(**changes) -> LabelledBy:
    asked = AskedModel("cheap", "vllm", "served-name", "0" * 64)
    found = LabelledBy(
        rows=3,
        records_sha256="1" * 64,
        candidates=(asked,),
        judge=JudgedBy((asked,), "correctness", 1, "2" * 64, 1, "majority", None, ("cheap",)),
        scorers={"match": "exact"},
        scoring_sha256="3" * 64,
        cells={
            "cheap": LabelledCells(6, {"failed": 1, "ineligible": 7, "no verdict": 1}, 0.5),
            "blind": LabelledCells(0, {"ineligible": 3}, float("nan")),
        },
        trust=measure_trust([]),
    )
    return replace(found, **changes)


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"idx": 0}\n')
    return path


def test_it_lies_beside_a_file_and_in_a_folder(records, tmp_path):
    assert labels_path(records) == tmp_path / f"records.jsonl{SUFFIX}"
    assert labels_path(tmp_path) == tmp_path / "_labels.json"


def test_what_is_written_is_read_where_the_records_are_the_same(records):
    assert read_labelled_by(records) is None
    written = content(records_sha256=records_digest(records))
    write_labelled_by(written, records)
    assert repr(read_labelled_by(records)) == repr(written)
    json.loads(labels_path(records).read_text(), parse_constant=pytest.fail)


def test_ineligible_cells_are_no_lack():
    assert content().unscored_share == 2 / 8
    nothing = content(cells={"blind": LabelledCells(0, {"ineligible": 3}, float("nan"))})
    assert str(nothing.unscored_share) == "nan"


def test_a_folder_is_known_by_the_names_and_contents_of_its_shards(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for at in range(2):
            (tmp_path / name / f"part-0000{at}.parquet").write_bytes(bytes([at]))
    first, second = (records_digest(tmp_path / name) for name in ("a", "b"))
    assert first == second
    (tmp_path / "b/part-00001.parquet").write_bytes(b"other")
    assert records_digest(tmp_path / "b") != first
    (tmp_path / "a/_labels.json").write_text("{}")
    assert records_digest(tmp_path / "a") == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "schema version 1"),
        ('{"schema_version": 2}', "schema version 1"),
        ('{"schema_version": 1}', "trust report"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_malformed_file_is_told_with_its_name_and_remedy(records, text, message):
    labels_path(records).write_text(text)
    with pytest.raises(DataError, match=f"records.jsonl.labels.json.*{message}.*elete it"):
        read_labelled_by(records)


def test_a_missing_field_is_named(records):
    broken = content().to_json()
    del broken["judge"]["rubric"]
    labels_path(records).write_text(json.dumps(broken))
    with pytest.raises(DataError, match=r"'judge\.rubric'"):
        read_labelled_by(records)
