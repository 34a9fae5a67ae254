from __future__ import annotations

import io
import json
import os
import zipfile

import datasets
import PIL.Image
import pytest

from router_runtime.errors import ConfigError, DataError, MissingDependencyError
from router_training.labelling import source_readers, sources
from router_training.labelling.config import SourceConfig
from router_training.labelling.sources import describe, locate, read_source
from router_training.sharded import ShardWriter


def png(colour, side=4):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png("red"), png("blue")
QA = {"prompt": [f"q{n}" for n in range(6)], "answer": [f"a{n}" for n in range(6)]}


@pytest.fixture(autouse=True)
def _own_cache_and_no_network(tmp_path, monkeypatch):
    datasets.disable_progress_bars()
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", cache / "extracted")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def rows(path, seed=0, **config):
    source = SourceConfig.model_validate({"path": str(path), **config})
    return list(read_source(source, seed=seed))


def values(path, key="prompt", **config):
    found = rows(path, **config)
    bad = [row.value for row in found if isinstance(row.value, DataError)]
    assert not bad, bad
    return [row.value[key] for row in found]


def with_pictures():
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "texts": datasets.List(
                {"user": datasets.Value("string"), "assistant": datasets.Value("string")}
            ),
        }
    )
    table = {
        "images": [[RED], [RED, BLUE]],
        "texts": [
            [{"user": "which?", "assistant": "red"}],
            [{"user": "a?", "assistant": "A"}, {"user": "b?", "assistant": "B"}],
        ],
    }
    return datasets.Dataset.from_dict(table, features=features)


def save(dataset, folder, kind):
    """Write a data set in one of its forms and return where it is."""
    folder.mkdir(exist_ok=True)
    if kind == "disk":
        dataset.save_to_disk(folder / "saved")
        return folder / "saved"
    path = folder / f"rows.{kind}"
    getattr(dataset, {"parquet": "to_parquet", "csv": "to_csv"}.get(kind, "to_json"))(path)
    return path


@pytest.mark.parametrize("kind", ["disk", "parquet", "jsonl", "csv"])
def test_every_form_that_the_library_writes_is_read_alike(tmp_path, kind):
    path = save(datasets.Dataset.from_dict(QA), tmp_path / "d", kind)
    found = rows(path)
    assert [row.number for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row.value["prompt"] for row in found] == QA["prompt"]
    assert [row.value["answer"] for row in found] == QA["answer"]


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_pictures_arrive_as_the_bytes_that_were_stored(tmp_path, kind):
    path = save(with_pictures(), tmp_path / "d", kind)
    images = [[image["bytes"] for image in row] for row in values(path, "images")]
    assert images == [[RED], [RED, BLUE]]
    assert values(path, "answer") == ["red", "B"]


def test_a_saved_data_set_with_splits_asks_for_one(tmp_path):
    whole = datasets.Dataset.from_dict(QA)
    both = datasets.DatasetDict(train=whole.select(range(4)), test=whole.select([4, 5]))
    both.save_to_disk(tmp_path / "d")
    assert values(tmp_path / "d", split="test") == ["q4", "q5"]
    for split in (None, "validation"):
        with pytest.raises(DataError, match="train, test"):
            rows(tmp_path / "d", split=split)
    whole.save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match="no splits"):
        rows(tmp_path / "one", split="train")


def test_a_format_that_the_data_set_was_saved_with_does_not_matter(tmp_path):
    datasets.Dataset.from_dict(QA).with_format("numpy").save_to_disk(tmp_path / "d")
    assert values(tmp_path / "d") == QA["prompt"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_files_is_read_as_a_hub_data_set(tmp_path, streaming):
    folder = tmp_path / "d"
    folder.mkdir()
    whole = datasets.Dataset.from_dict(QA)
    whole.select(range(4)).to_parquet(folder / "train-00000.parquet")
    whole.select([4, 5]).to_parquet(folder / "test-00000.parquet")
    assert values(folder, split="test", streaming=streaming) == ["q4", "q5"]
    assert values(folder, split="train", streaming=streaming, limit=2) == ["q0", "q1"]
    with pytest.raises(DataError, match=r"data\.split"):
        rows(folder, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_pictures_that_are_files_of_a_folder_or_an_archive_are_read(tmp_path, streaming, packed):
    folder = tmp_path / "d"
    folder.mkdir()
    lines = [{"file_name": f"{name}.png", "prompt": f"{name}?"} for name in ("red", "blue")]
    files = {"red.png": RED, "blue.png": BLUE}
    files["metadata.jsonl"] = "\n".join(map(json.dumps, lines)).encode()
    if packed:
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    found = rows(folder, streaming=streaming)
    shown = {row.value["prompt"]: row.value["images"] for row in found}
    assert shown == {"red?": [RED], "blue?": [BLUE]}


def test_a_row_cannot_name_other_pictures_of_this_machine(tmp_path):
    (tmp_path / "secret.png").write_bytes(RED)
    folder = tmp_path / "d"
    folder.mkdir()
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "image": datasets.Value("string")}
    )
    places = [str(tmp_path / "secret.png"), "file:///etc/hostname", "hf://datasets/x/y/a.png"]
    table = {"prompt": ["p"] * 3, "image": places}
    dataset = datasets.Dataset.from_dict(table, features=features)
    pointing = dataset.map(lambda row: {"image": {"bytes": None, "path": row["image"]}})
    pointing.to_parquet(folder / "train.parquet")
    read = [image for images in values(folder, "images") for image in images]
    assert [image["path"] for image in read] == places  # left for Pictures, which refuses them
    assert all(image["bytes"] is None for image in read)


def test_classes_become_their_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    table = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "d")
    found = values(tmp_path / "d", "answer", columns={"answer": "label"})
    assert found == ["good", "bad", None]


def test_turns_of_mixed_content_arrive_as_they_were_written(tmp_path):
    part = [{"type": "text", "text": "x"}]
    turns = [[{"role": "user", "content": "plain"}], [{"role": "user", "content": part}]]
    table = {"messages": turns}
    dataset = datasets.Dataset.from_dict(table, on_mixed_types="use_json")
    path = save(dataset, tmp_path / "d", "parquet")
    assert [row.value.get("prompt") for row in rows(path)] == ["plain", "x"]


def test_json_and_csv_keep_what_looks_like_dates_and_numbers(tmp_path):
    table = {"prompt": ["2024-01-01", "007"], "answer": ["NA", "1.0"]}
    for kind in ("jsonl", "csv"):
        path = save(datasets.Dataset.from_dict(table), tmp_path / kind, kind)
        assert values(path) == table["prompt"]
        assert values(path, "answer") == table["answer"]


def test_an_empty_cell_of_csv_is_missing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,answer\np,\n")
    assert values(path, "answer") == [None]


def test_a_bad_line_is_a_bad_row_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p"}\n{broken\n{"prompt": 5}\n{"prompt": "q"}\n')
    found = rows(path)
    assert [row.number for row in found] == [1, 2, 3, 4]
    bad = [row.number for row in found if isinstance(row.value, DataError)]
    assert bad == [2, 3]


def test_files_of_a_pattern_are_read_by_name_and_numbered_through(tmp_path):
    for name, lines in (("b", ['{"prompt": "b1"}', "{"]), ("a", ['{"prompt": "a1"}'])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    found = rows(tmp_path / "*.jsonl")
    assert [row.number for row in found] == [1, 2, 3]
    assert found[1].value["prompt"] == "b1"
    assert "row 2 of b.jsonl" in str(found[2].value)
    (tmp_path / "c.csv").write_text("prompt\nx\n")
    with pytest.raises(DataError, match="csv and json"):
        rows(tmp_path / "[a-c].*")
    with pytest.raises(DataError, match="No file matches"):
        rows(tmp_path / "*.parquet")


def test_records_that_we_wrote_are_read_back_from_their_folder(tmp_path):
    columns = {"idx": "string", "prompt": "string", "images": ["binary"]}
    with ShardWriter(tmp_path / "records", columns, rows_per_shard=2) as shards:
        for at in range(5):
            shards.write({"idx": str(at), "prompt": f"q{at}", "images": [RED]})
        shards.add("_labels.json", b"{}")
    assert values(tmp_path / "records", "idx") == list("01234")
    assert values(tmp_path / "records", "images")[0] == [RED]


@pytest.mark.parametrize("kind", ["disk", "parquet", "jsonl"])
def test_limit_takes_the_first_rows_or_seeded_ones_of_all(tmp_path, kind):
    table = {"prompt": [f"q{n}" for n in range(300)]}
    path = save(datasets.Dataset.from_dict(table), tmp_path / "d", kind)
    assert values(path, limit=3) == ["q0", "q1", "q2"]
    taken = {seed: rows(path, seed, limit=30, shuffle=True) for seed in (0, 1)}
    names = [row.value["prompt"] for row in taken[0]]
    assert names == values(path, limit=30, shuffle=True)
    assert names != [row.value["prompt"] for row in taken[1]]
    assert [f"q{row.number - 1}" for row in taken[0]] == names
    assert max(row.number for row in taken[0]) > 200
    fewer = values(path, limit=10, shuffle=True)
    assert set(fewer) < set(names)
    assert len(values(path, limit=1000, shuffle=True)) == 300


def test_the_same_rows_are_taken_of_every_form(tmp_path):
    dataset = datasets.Dataset.from_dict({"prompt": [f"q{n}" for n in range(50)]})
    taken = [
        values(save(dataset, tmp_path / kind, kind), limit=9, shuffle=True)
        for kind in ("disk", "parquet", "jsonl", "csv")
    ]
    assert taken == [taken[0]] * 4


def test_a_stream_is_shuffled_by_its_seed(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    table = {"prompt": [f"q{n}" for n in range(50)]}
    datasets.Dataset.from_dict(table).to_json(folder / "train.jsonl")
    settings = {"streaming": True, "shuffle": True, "limit": 20}
    orders = [[r.value["prompt"] for r in rows(folder, seed, **settings)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) == 20


def test_columns_are_looked_for_in_the_first_rows_together(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p"}\n{"prompt": "q", "image": "a.png"}\n')
    assert values(path, "images") == [[], ["a.png"]]
    with pytest.raises(DataError, match=r"a\.jsonl.*'prompt', 'image'"):
        rows(path, columns={"answer": "label"})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"split": "train"}, "split"),
        ({"name": "x"}, "name"),
        ({"revision": "main"}, "revision"),
        ({"streaming": True}, "streaming"),
        ({"kind": "csv"}, "kind"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(tmp_path, config, words):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n')
    with pytest.raises(ConfigError, match=rf"data\.{words}"):
        rows(tmp_path / "a.jsonl", **config)


@pytest.mark.parametrize("name", ["a.pkl", "a.py", "missing.parquet", "./nothing", "a/b/c"])
def test_what_is_no_data_set_is_an_error_without_a_look_at_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(b"")
    (tmp_path / "a.py").write_text("raise SystemExit")
    with pytest.raises(DataError, match=name if "/" not in name else "hub id"):
        rows(name)


def test_a_hub_data_set_that_cannot_be_had_is_one_error(tmp_path):
    with pytest.raises(DataError, match=r"nobody/nothing-here.*no file or folder of that name"):
        rows("nobody/nothing-here")


def test_the_commit_of_a_hub_data_set_is_read_and_told(monkeypatch):
    asked = []

    class Info:
        sha = "c0ffee"

    def dataset_info(self, path, *, revision, timeout):
        asked.append((path, revision))
        return Info()

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    source = locate(SourceConfig(path="someone/something", revision="v1"))
    assert (source.kind, source.state, asked) == ("hub", "c0ffee", [("someone/something", "v1")])
    assert describe(source)["state"] == "c0ffee"
    assert source.dataset == "something"
    loaded = []
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **given: ["train"])
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *args, **given: loaded.append(given) or datasets.Dataset.from_dict(QA),
    )
    assert len(list(sources.read_located(source, seed=0))) == 6
    assert loaded[0]["revision"] == "c0ffee"


def test_a_changed_file_changes_the_description_and_an_untouched_one_does_not(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p"}\n')
    config = SourceConfig(path=str(path))
    before = describe(locate(config))
    assert describe(locate(config)) == before
    path.write_text('{"prompt": "q!"}\n')
    assert describe(locate(config)) != before
    folder = save(datasets.Dataset.from_dict(QA), tmp_path / "d", "disk")
    config = SourceConfig(path=str(folder))
    before = describe(locate(config))
    file = next(folder.glob("*.arrow"))
    os.utime(file, ns=(1, 1))
    assert describe(locate(config)) != before


@pytest.mark.parametrize(
    ("path", "config", "name"),
    [
        ("sub/rows.jsonl.gz", {}, "rows"),
        ("sub/*.jsonl", {}, "sub"),
        ("sub/rows.csv", {"dataset": "mine"}, "mine"),
    ],
)
def test_the_data_set_is_named_by_its_place_unless_the_config_does(tmp_path, path, config, name):
    (tmp_path / "sub").mkdir()
    for file in ("rows.jsonl.gz", "rows.csv", "a.jsonl"):
        (tmp_path / "sub" / file).write_text("")
    source = locate(SourceConfig.model_validate({"path": str(tmp_path / path), **config}))
    assert source.dataset == name


def test_a_missing_library_is_explained(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(source_readers.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"model-router\[label\]"):
        source_readers.library()


def test_a_damaged_parquet_file_is_an_error_of_one_line(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing else")
    with pytest.raises(DataError) as caught:
        rows(tmp_path / "a.parquet")
    assert "a.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_source_without_rows_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        rows(tmp_path / "a.jsonl")
    path = save(datasets.Dataset.from_dict({"prompt": []}), tmp_path / "d", "parquet")
    with pytest.raises(DataError, match="no rows"):
        rows(path)


@pytest.mark.parametrize("config", [{}, {"columns": {"images": ["image"]}}])
def test_what_only_late_rows_of_json_have_is_not_left_out(tmp_path, config):
    path = tmp_path / "a.jsonl"
    lines = [{"prompt": f"q{n}"} for n in range(150)] + [{"prompt": "see", "image": "a.png"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert values(path, "images", **config)[-2:] == [[], ["a.png"]]
    assert values(path, "images", limit=3) == [[]] * 3
    with pytest.raises(DataError, match="'prompt'"):  # of the rows that are taken none has it
        rows(path, limit=3, columns={"images": ["image"]})


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_good_rows_after_many_bad_ones_are_read(tmp_path, name):
    bad, good = ("{x", '{"prompt": "q"}') if name == "a.jsonl" else ("1,2", "q")
    head = [] if name == "a.jsonl" else ["prompt"]
    (tmp_path / name).write_text("\n".join([*head, *[bad] * 120, good]) + "\n")
    found = rows(tmp_path / name)
    assert [isinstance(row.value, DataError) for row in found] == [True] * 120 + [False]
    assert (found[-1].value["prompt"], found[-1].value["images"]) == ("q", [])


def test_a_subset_is_read_by_its_name(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    listed = "".join(f"- config_name: {n}\n  data_files: {n}.csv\n" for n in ("easy", "hard"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    for name in ("easy", "hard"):
        (folder / f"{name}.csv").write_text(f"prompt\n{name}?\n")
    assert values(folder, name="hard") == ["hard?"]
    assert values(folder, "dataset", name="easy") == ["parts/easy"]
