from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import safetensors.numpy

from router_runtime.errors import ConfigError, MissingDependencyError, RouterError
from router_training.store import StageStore, digest_of, write_whole


def writer(text: str, calls: list):
    def make(folder):
        calls.append(text)
        (folder / "result.txt").write_text(text)

    return make


def reader(folder):
    return (folder / "result.txt").read_text()


def test_a_stage_is_made_once_and_again_when_its_inputs_change(tmp_path):
    store, calls = StageStore(tmp_path / "work"), []
    for inputs in ({"seed": 0}, {"seed": 0}, {"seed": 1}, {"seed": 0}):
        text = store.stage("fit", inputs, make=writer(str(inputs), calls), load=reader)
        assert text == str(inputs)
    assert calls == ["{'seed': 0}", "{'seed': 1}"]


def test_stages_of_another_name_do_not_collide(tmp_path):
    store, calls = StageStore(tmp_path), []
    store.stage("embed", {}, make=writer("a", calls), load=reader)
    assert store.stage("fit", {}, make=writer("b", calls), load=reader) == "b"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_stage_leaves_nothing_and_is_made_again(tmp_path, error):
    store, calls = StageStore(tmp_path), []

    def dies(folder):
        (folder / "result.txt").write_text("half")
        raise error

    with pytest.raises(error):
        store.stage("fit", {}, make=dies, load=reader)
    assert list(tmp_path.iterdir()) == []
    assert store.stage("fit", {}, make=writer("whole", calls), load=reader) == "whole"


def test_a_work_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RouterError, match="cannot be written"):
        StageStore(tmp_path / "file").stage("fit", {}, make=writer("", []), load=reader)


def test_two_runs_that_make_the_same_stage_do_not_collide(tmp_path):
    store, calls = StageStore(tmp_path), []

    def overtaken(folder):
        writer("mine", calls)(folder)
        store.stage("fit", {}, make=writer("theirs", calls), load=reader)

    assert store.stage("fit", {}, make=overtaken, load=reader) == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stage_keeps_how_long_it_took_and_not_how_long_it_took_to_find(tmp_path, monkeypatch):
    ticks = iter([10.0, 12.5, 100.0, 109.0])
    monkeypatch.setattr("router_training.store.time.perf_counter", lambda: next(ticks))
    store = StageStore(tmp_path)
    assert store.seconds("fit", {}) is None
    for _ in range(2):
        store.stage("fit", {}, make=writer("a", []), load=reader)
        assert StageStore(tmp_path).seconds("fit", {}) == 2.5
    store.stage("fit", {"seed": 1}, make=writer("b", []), load=reader)
    assert store.seconds("fit", {"seed": 1}) == 9.0


def test_a_stage_that_went_on_with_earlier_work_has_no_time(tmp_path):
    def went_on(folder):
        writer("a", [])(folder)
        return False

    store = StageStore(tmp_path)
    store.stage("fit", {}, make=went_on, load=reader)
    assert store.seconds("fit", {}) is None


@pytest.mark.parametrize("told", ["", "{", "[]", "{}", '{"seconds": "1"}', '{"seconds": -1}'])
def test_what_is_no_time_is_not_known(tmp_path, told):
    store = StageStore(tmp_path)
    store.stage("fit", {}, make=writer("a", []), load=reader)
    next(tmp_path.glob("fit-*/made.json")).write_text(told)
    assert store.seconds("fit", {}) is None
    assert store.stage("fit", {}, make=writer("b", []), load=reader) == "a"


def test_a_full_disk_is_an_error_that_names_the_stage(tmp_path):
    def full(folder):
        (folder / "result.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RouterError, match=r"Stage 'fit' cannot be kept .* No space left"):
        StageStore(tmp_path).stage("fit", {}, make=full, load=reader)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda folder: json.loads((folder / "result.txt").read_text()), "Expecting value"),
        (lambda folder: np.load(folder / "result.txt"), "pickle"),
        (lambda folder: safetensors.numpy.load_file(folder / "result.txt"), "header"),
        (lambda folder: (folder / "lost.txt").read_text(), "No such file"),
    ],
)
def test_a_damaged_stage_names_its_folder_and_the_remedy(tmp_path, read, words):
    with pytest.raises(RouterError, match=rf"stage 'fit' .*fit-.*{words}.*Delete that folder"):
        StageStore(tmp_path).stage("fit", {}, make=writer("garbage", []), load=read)


def test_a_missing_package_is_not_called_damage(tmp_path):
    def needs(folder):
        raise MissingDependencyError("xgboost-cpu", "train")

    with pytest.raises(MissingDependencyError):
        StageStore(tmp_path).stage("fit", {}, make=writer("", []), load=needs)


def test_the_digest_is_of_content_not_of_order():
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_nothing_is_written_into_an_artifacts_folder(tmp_path):
    write_whole(tmp_path / "free" / "x.json", b"1")
    assert (tmp_path / "free" / "x.json").read_bytes() == b"1"
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an artifact's folder"):
        write_whole(tmp_path / "manifest.json", b"1")
    assert (tmp_path / "manifest.json").read_text() == "{}"
