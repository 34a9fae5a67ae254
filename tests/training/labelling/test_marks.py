from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime.errors import DataError
from router_training.labelling.marks import guarded, read_marks, unguarded, write_csv


def marks_file(tmp_path, text: str):
    path = tmp_path / "marks.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_spelling_of_a_mark_is_understood(tmp_path):
    words = ["yes", "No", "TRUE", "0", "1", "0.25", "right", "unsure", ""]
    lines = "".join(f"{at},m,{word}\n" for at, word in enumerate(words))
    found = read_marks(marks_file(tmp_path, f"id,model,human\n{lines}"))
    assert [found.scores.get((str(at), "m")) for at in range(9)] == [
        *(1.0, 0.0, 1.0, 0.0, 1.0, 0.25, 1.0),
        *(None, None),
    ]
    assert found.n_unsure == 2


def test_what_a_spreadsheet_saved_is_read_with_its_separator_and_other_columns(tmp_path):
    text = "\ufeffhuman;note;Model;ID\r\n0,5;a, b;m;=1+1\r\n;;;\r\nyes;;m;'=1+1\r\n"
    with pytest.raises(DataError, match="another mark in an earlier row"):
        read_marks(marks_file(tmp_path, text))
    found = read_marks(marks_file(tmp_path, text.replace("yes", "0,5")))
    assert dict(found.scores) == {("=1+1", "m"): 0.5}


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "'=", "\uff1d", "\uff20"])
def test_no_cell_begins_a_formula_and_ids_come_back(tmp_path, sign):
    identity = f'{sign}cmd|" /C calc"!A0'
    data = write_csv(["id", "model", "human"], [[identity, "-m", "yes"]])
    (_, row) = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    assert all(cell[0] not in "=+-@\t\r\uff1d\uff20" for cell in row)
    path = tmp_path / "marks.csv"
    path.write_bytes(data)
    assert dict(read_marks(path).scores) == {(identity, "-m"): 1.0}


@given(st.text())
def test_guarding_is_undone_exactly(text):
    assert unguarded(guarded(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,model\n", "no column 'human'"),
        ("", "no column 'id'"),
        ("id,model,human\n1,m,maybe\n", "row 1, field 'human': The mark 'maybe'"),
        ("id,model,human\n1,m,7\n", "number from 0 to 1"),
        ("id,model,human\n1,m,nan\n", "number from 0 to 1"),
        ("id,model,human\n1,m\n", "2 cells"),
        ('id,model,human\n"1,m,yes\n', "Invalid CSV"),
    ],
)
def test_what_is_no_mark_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_marks(marks_file(tmp_path, text))


def test_a_missing_or_foreign_file_is_told(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_marks(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("id,model,human\nä,m,yes".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_marks(tmp_path / "latin.csv")
