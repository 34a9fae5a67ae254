from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from router_runtime.errors import ConfigError, DataError
from router_training.importers import detect_format, import_file

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

ROUTERBENCH = """\
sample_id,prompt,eval_name,gpt-4,small/model,gpt-4|model_response,small/model|model_response,\
gpt-4|total_cost,small/model|total_cost,oracle_model_to_route_to
mmlu.1,"['First line.\\nIt\\'s here.', 'Second turn.']",mmlu,1.0,0.25,"['A']","['B']",\
0.00074,1.46e-05,gpt-4
mbpp.2,Write code,mbpp,0.0,,"['x, y']","['z']",0.001,,no_model_correct
"""

ROUTELLM = """\
prompt,mixtral-8x7b-instruct-v0.1,gpt-4-1106-preview
"Which?
A. 1
B. 2
Answer:",False,True
Seen before,True,True
"""

GSM8K = """\
prompt,mistralai/Mixtral-8x7B-Instruct-v0.1,gpt-4-1106-preview,\
mistralai/Mixtral-8x7B-Instruct-v0.1_response,gpt-4-1106-preview_response
How many eggs?,True,False,"Long
text",Other
"""

NOTDIAMOND = """\
prompt,openai/gpt-4o/score,openai/gpt-4o/response,openai/gpt-4o/cost,acme/small/score
Explain,0.95,text,0.002,0.5
Write,1,text,,
"""


@pytest.fixture
def save(tmp_path):
    def save(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return save


def test_routerbench_as_csv(save):
    path = save("rb.csv", ROUTERBENCH)
    assert detect_format(path) == "routerbench"
    found = import_file(path)
    assert found.model_ids == ("gpt-4", "small/model")
    np.testing.assert_array_equal(found.labels.Y, [[1, 0.25], [0, np.nan]])
    np.testing.assert_array_equal(found.labels.cost_usd, [[0.00074, 1.46e-05], [0.001, np.nan]])
    assert [sample.id for sample in found.samples] == ["mmlu.1", "mbpp.2"]
    assert found.datasets == ("mmlu", "mbpp")
    assert found.queries[0].text == "First line.\nIt's here.\n\nSecond turn."
    assert found.queries[1].text == "Write code"


def test_routerbench_as_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    row = {"sample_id": "x", "prompt": "Hi", "eval_name": "e", "m": 1.0, "m|model_response": "r"}
    rows = [row | {"m|total_cost": 0.5, "oracle_model_to_route_to": "m"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rb.parquet")
    assert detect_format(tmp_path / "rb.parquet") == "routerbench"
    found = import_file(tmp_path / "rb.parquet")
    assert (found.labels.Y.tolist(), found.labels.cost_usd.tolist()) == ([[1.0]], [[0.5]])


def test_a_column_of_routerbench_without_companion_is_no_model(save):
    path = save("rb.csv", "sample_id,prompt,hardness,m,m|total_cost\nx,Hi,0.5,1,0.1\n")
    assert import_file(path).model_ids == ("m",)


def test_backslashes_in_a_prompt_raise_no_warning(save, recwarn):
    path = save("rb.csv", "sample_id,prompt,m,m|total_cost\nx,['\\d'],1,0.1\n")
    assert import_file(path).queries[0].text == "\\d"
    assert not recwarn.list


def test_routerbench_s_pickle_is_never_opened_and_the_remedy_is_named(tmp_path):
    path = tmp_path / "routerbench_0shot.pkl"
    path.write_bytes(b"cposix\nsystem\n(S'touch owned'\ntR.")
    for source in ("auto", "routerbench"):
        with pytest.raises(DataError, match=r"pickle.*to_parquet"):
            import_file(path, source=source)
    assert not list(tmp_path.glob("owned"))


def test_routellm_mmlu_with_and_without_contaminated_prompts(save):
    path = save("mmlu/responses/mmlu_anatomy.csv", ROUTELLM)
    save("mmlu/contaminated_prompts.jsonl", json.dumps({"eval_prompt": "Seen before"}))
    assert detect_format(path) == "routellm"
    found = import_file(path)
    assert found.model_ids == ("mixtral-8x7b-instruct-v0.1", "gpt-4-1106-preview")
    np.testing.assert_array_equal(found.labels.Y, [[0, 1]])
    assert [row.field for row in found.skipped] == ["contaminated"]
    assert len(import_file(path, drop_contaminated=False)) == 2
    assert found.samples[0].id == "mmlu_anatomy:1"
    assert found.datasets == ("mmlu",)


def test_a_folder_of_routellm_files_is_one_data_set(save, tmp_path):
    for name in ("mmlu_a.csv", "mmlu_b.csv"):
        save(f"responses/{name}", ROUTELLM)
    found = import_file(tmp_path / "responses")
    assert [sample.id for sample in found.samples] == [
        "mmlu_a:1",
        "mmlu_a:2",
        "mmlu_b:1",
        "mmlu_b:2",
    ]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no CSV"):
        import_file(tmp_path)


def test_routellm_gsm8k_ignores_the_responses(save):
    found = import_file(save("gsm8k_responses.csv", GSM8K))
    assert found.model_ids == ("mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview")
    np.testing.assert_array_equal(found.labels.Y, [[1, 0]])
    assert found.datasets == ("gsm8k",)


def test_an_id_of_0_is_an_id(save):
    path = save("nd.csv", "id,prompt,a/b/score\n1,Hi,1\n0,Ho,1\n")
    assert [sample.id for sample in import_file(path).samples] == ["1", "0"]


def test_not_diamond(save):
    path = save("nd.csv", NOTDIAMOND)
    assert detect_format(path) == "notdiamond"
    found = import_file(path)
    assert found.model_ids == ("openai/gpt-4o", "acme/small")
    np.testing.assert_array_equal(found.labels.Y, [[0.95, 0.5], [1, np.nan]])
    np.testing.assert_array_equal(found.labels.cost_usd, [[0.002, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,a/b/score\nHi,good\n", "row 1, field 'a/b/score'.*not a number"),
        ("prompt,a/b/score\nHi,3\n", "row 1, field 'scores.a/b'.*outside"),
        ("prompt,a/b/score\nHi,1,2\n", "row 1: The row has 3 cells"),
        ("prompt,a/b/score\n,1\n", "row 1, field 'prompt'"),
        ("prompt,a/b/score,a/b/score\nHi,1,1\n", "occurs twice"),
        ("prompt,a/b/score\n", "no rows"),
        ('prompt,a/b/score\n"Hi,1\n', "Invalid CSV"),
        ("a,b\n1,2\n", "no known format"),
        ("", "empty"),
    ],
)
def test_a_bad_csv_is_an_error_that_names_the_place(save, text, words):
    with pytest.raises(DataError, match=words):
        import_file(save("x.csv", text))


def test_bad_rows_can_be_skipped(save):
    found = import_file(save("x.csv", NOTDIAMOND + "Bad,3,,,\nCells,1\n"), on_bad_row="skip")
    assert [row.row for row in found.skipped] == [3, 4]
    assert len(found) == 2


def test_cells_longer_than_the_csv_module_s_default_limit_are_read(save):
    text = "long " * 50_000
    assert import_file(save("x.csv", f"prompt,a/b/score\n{text},1\n")).samples[0].prompt == text


def test_records_are_the_source_of_json_files(save):
    row = {"idx": 0, "prompt": "Hi", "model_scores": {"a": 1}}
    path = save("e.jsonl", json.dumps(row))
    assert detect_format(path) == "records"
    assert len(import_file(path, source="records")) == 1


def test_an_unknown_source_is_a_config_error(save):
    with pytest.raises(ConfigError, match="routerbench"):
        import_file(save("e.jsonl", "{}"), source="routerbank")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared tables are not here")
def test_the_shared_mmlu_table_drops_and_lists_contaminated_rows():
    found = import_file(SHARED / "routellm_mmlu_gpt4_mixtral.jsonl.gz")
    assert len(found) + len(found.skipped) == 14042
    assert {row.field for row in found.skipped} == {"contaminated"}
