from __future__ import annotations

import gzip
import json

import pytest

from router_runtime.errors import DataError
from router_training.formats import read_rows

GOOD = b'{"a": 1}'


def outcomes(path):
    """Numbers of the rows that were read, and those of the rows that hold an error."""
    rows = list(read_rows(path))
    bad = [row.number for row in rows if isinstance(row.value, DataError)]
    return [row.number for row in rows if row.number not in bad], bad


def test_a_line_that_is_not_utf_8_is_a_bad_row_and_the_others_are_read(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_bytes(GOOD + b'\n{"a": "\xff"}\n' + GOOD)
    assert outcomes(path) == ([1, 3], [2])


def test_a_record_with_a_repeated_key_is_a_bad_row_of_a_list_too(tmp_path):
    path = tmp_path / "e.json"
    path.write_bytes(b'\xef\xbb\xbf\n [{"a": 1, "a": 2}, {"b": {"c": 1, "c": 1}} , 5, {"a": 1}]\n')
    assert outcomes(path) == ([4], [1, 2, 3])


def test_an_error_in_a_list_names_the_line_of_the_file(tmp_path):
    path = tmp_path / "e.json"
    path.write_bytes(b"\n\n[{},\n{]")
    with pytest.raises(DataError, match="line 4"):
        list(read_rows(path))


def test_line_ends_are_those_of_json_lines_and_not_of_unicode(tmp_path):
    path = tmp_path / "e.jsonl"
    texts = ["a\u2028b\u2029c\x85d", "\x1c"]
    lines = [json.dumps({"a": text}, ensure_ascii=False) for text in texts]
    path.write_bytes(b"\xef\xbb\xbf\r\n" + "\r\n\r\n".join(lines).encode())
    assert [row.value for row in read_rows(path)] == [{"a": text} for text in texts]


def test_lines_are_read_as_they_are_asked_for(tmp_path):
    path = tmp_path / "e.jsonl.gz"
    whole = gzip.compress(b"\n".join([GOOD] * 100_000))
    path.write_bytes(whole[:-8])  # the end is missing
    rows = read_rows(path)
    assert next(rows).value == {"a": 1}
    with pytest.raises(DataError, match="gzip file is damaged"):
        list(rows)


def test_a_csv_file_that_is_not_utf_8_or_blank_is_an_error(tmp_path):
    path = tmp_path / "e.csv"
    for data, words in ((b"a,b\n1,\xff\n", "not UTF-8"), (b"\n\n", "empty")):
        path.write_bytes(data)
        with pytest.raises(DataError, match=words):
            list(read_rows(path))
