from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_training.config import TrainingConfig, load_training_config
from router_training.leave_out import leave_out, split_without
from router_training.reading import read_records

WORDS = {
    "sums": "add subtract plus minus number total seven eleven".split(),
    "trees": "oak birch maple forest leaf branch root bark".split(),
    "stars": "nova comet orbit galaxy planet moon saturn venus".split(),
}


def records(*, seed: int = 0) -> list[dict]:
    """Three kinds of questions; `steady` is right on 80 % of each, `moody` by the kind."""
    rng = np.random.default_rng(seed)
    rate = {"sums": 0.95, "trees": 0.1, "stars": 0.5}
    return [
        {
            "idx": f"{kind}-{i}",
            "dataset": kind,
            "prompt": " ".join(rng.choice(words, 40)),
            "model_scores": {
                "steady": float(rng.random() < 0.8),
                "moody": float(rng.random() < rate[kind]),
            },
            "model_costs": {"steady": 0.01, "moody": 0.001},
        }
        for kind, words in WORDS.items()
        for i in range(240)
    ]


def config_for(folder: Path, rows: list[dict], extra: str = "") -> TrainingConfig:
    folder.mkdir(exist_ok=True)
    (folder / "records.json").write_text(json.dumps(rows))
    (folder / "train.yml").write_text(
        "data: {path: records.json}\noutput: artifact\nwork_dir: work\nhead: logistic\n"
        "features: {encoders: [{kind: embedded, text_components: 16, thumbnail_components: 8}]}\n"
        + extra
    )
    return load_training_config(folder / "train.yml")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return config_for(tmp_path_factory.mktemp("leave-out") / "x", records())


@pytest.fixture(scope="module")
def found(config):
    return {entry.dataset: entry for entry in leave_out(config)}


def test_each_data_set_is_left_out_once_with_all_its_rows(found):
    assert list(found) == ["stars", "sums", "trees"]
    assert {entry.n for entry in found.values()} == {240}


def test_the_yardsticks_are_what_the_other_data_sets_teach(found):
    rows = records()
    for name, entry in found.items():
        inside = [row["model_scores"] for row in rows if row["dataset"] == name]
        assert entry.default_model == "steady"
        expected = np.mean([scores["steady"] for scores in inside])
        assert entry.default_accuracy == pytest.approx(expected)
        assert entry.default_cost == pytest.approx(0.01)
    # `moody` is good on sums and bad on trees: each is a bad guide to the other
    assert found["trees"].prior_brier > found["stars"].prior_brier


def test_unseen_kinds_are_novel_and_cost_little_accuracy(found):
    # 48 held-out rows make coarse percentiles; real tables are measured in the benchmark
    for entry in found.values():
        assert entry.novel_share > 0.8
        assert entry.accuracy >= entry.default_accuracy - 0.02
        assert entry.brier <= entry.prior_brier + 0.01
        assert entry.gap.low <= entry.gap.estimate <= entry.gap.high


def test_without_novelty_the_share_is_unknown_and_wrong_confidence_costs_brier(config, found):
    off = config.model_copy(
        update={"novelty": config.novelty.model_copy(update={"enabled": False})}
    )
    plain = {entry.dataset: entry for entry in leave_out(off)}
    assert all(np.isnan(entry.novel_share) for entry in plain.values())
    worst = [max(e.brier - e.prior_brier for e in some.values()) for some in (plain, found)]
    assert worst[0] > worst[1] + 0.02
    assert plain["trees"].to_json()["novel_share"] is None


def test_a_second_call_finds_what_the_first_one_kept(config, found):
    before = {entry.name for entry in config.work_dir.iterdir()}
    assert {entry.dataset: entry for entry in leave_out(config)} == found
    assert {entry.name for entry in config.work_dir.iterdir()} == before
    assert sum(name.startswith("fit-") for name in before) == 3


def test_nothing_of_the_left_out_data_set_is_trained_on(tmp_path):
    rows = records()
    rows[0] |= {"prompt": "the same words", "dataset": "sums"}
    rows[300] |= {"prompt": "the same words", "dataset": "trees"}
    config = config_for(tmp_path, rows)
    data = read_records(config)
    split = split_without(data, "trees", config)
    used = np.concatenate([split.train, split.validation, split.calibration])
    assert {data.datasets[row] for row in used} == {"sums", "stars"}
    assert 0 not in used  # its twin is in the left-out data set
    assert len(used) == 479
    assert len(split.test) == 240
    assert {data.datasets[row] for row in split.test} == {"trees"}


def test_a_single_data_set_cannot_be_left_out(tmp_path):
    rows = [row for row in records() if row["dataset"] == "sums"]
    with pytest.raises(DataError, match="at least two; the records name \\['sums'\\]"):
        leave_out(config_for(tmp_path, rows))
