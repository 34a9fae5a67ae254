from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from router_runtime.errors import ConfigError
from router_runtime.images import decode, load_image
from router_runtime.pricing import Usage
from router_runtime.simulator.known import read_answers
from router_runtime.simulator.skills import says
from router_runtime.types import Modality
from router_training.cli import app
from router_training.labels import read_evaluations, write_evaluations
from router_training.simulated import (
    SIMULATED_MODALITIES,
    SIMULATED_MODELS,
    SIMULATED_PRICES,
    simulate_workload,
    write_unlabelled,
    write_workload,
)


@pytest.fixture(scope="module")
def workload():
    return simulate_workload(600, seed=0)


def test_equal_seeds_give_equal_bytes_and_others_do_not():
    first, same, other = (simulate_workload(40, seed=seed) for seed in (5, 5, 6))
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_everything_is_called_simulated(workload):
    assert all(name.startswith("sim-") for name in workload.model_ids)
    assert all(name.startswith("simulated-") for name in workload.datasets)


def test_four_rows_in_ten_have_a_real_picture(workload):
    pictures = [query.images[0] for query in workload.queries if query.images]
    assert len(pictures) == 240
    assert {image.media_type for image in pictures} == {"image/png"}
    assert len({image.sha256 for image in pictures}) == 240
    assert len({decode(image).size for image in pictures}) > 50


def test_text_only_models_are_unscored_on_pictures_and_nothing_else_is(workload):
    has_picture = np.array([bool(query.images) for query in workload.queries])
    sees = np.array([Modality.IMAGE in SIMULATED_MODALITIES[name] for name in workload.model_ids])
    expected = has_picture[:, None] & ~sees[None, :]
    for values in (workload.labels.Y, workload.labels.cost_usd, workload.labels.output_tokens):
        np.testing.assert_array_equal(np.isnan(values), expected)
    assert sees.sum() == 2


def test_costs_are_the_stated_prices_times_the_recorded_tokens(workload):
    labels = workload.labels
    for row, column in np.argwhere(~np.isnan(labels.cost_usd))[:200]:
        tokens = (labels.input_tokens[row, column], labels.output_tokens[row, column])
        price = SIMULATED_PRICES[labels.model_ids[column]]
        assert labels.cost_usd[row, column] == float(price.cost(Usage(*map(int, tokens))))


def test_models_differ_by_what_they_are_good_at_and_by_price(workload):
    Y, cost = workload.labels.Y, workload.labels.cost_usd
    quality, price = np.nanmean(Y, axis=0), np.nanmean(cost, axis=0)
    by_name = dict(zip(workload.model_ids, quality, strict=True))
    assert by_name["sim-large-vl"] > by_name["sim-small-vl"] + 0.15
    assert price.max() > 10 * price.min()


def test_on_easy_tasks_the_cheap_model_nearly_does_and_on_hard_ones_it_does_not():
    large, small = (SIMULATED_MODELS[name].skills for name in ("sim-large-vl", "sim-small-vl"))
    assert all(small[topic][0] > large[topic][0] - 0.15 for topic in large)
    assert all(small[topic][1] < large[topic][1] - 0.15 for topic in large)


def test_knowing_only_the_topic_already_beats_the_best_single_model(workload):
    Y, topics = np.nan_to_num(workload.labels.Y), np.array(workload.datasets)
    reached = sum(Y[topics == topic].sum(axis=0).max() for topic in set(topics)) / len(Y)
    assert reached > Y.mean(axis=0).max() + 0.01


def test_it_survives_writing_and_reading(tmp_path, workload):
    part = workload.take(range(30))
    write_evaluations(part, tmp_path / "records.jsonl")
    assert read_evaluations(tmp_path / "records.jsonl").fingerprint == part.fingerprint


def test_no_rows_is_a_config_error():
    with pytest.raises(ConfigError):
        simulate_workload(0, seed=0)


def test_a_written_workload_holds_the_records_and_an_example_picture(tmp_path):
    path = write_workload(tmp_path / "data", rows=40, seed=2)
    assert read_evaluations(path).fingerprint == simulate_workload(40, seed=2).fingerprint
    assert (path.parent / "example.png").read_bytes().startswith(b"\x89PNG")


def unlabelled(folder, rows=60, seed=0):
    path = write_unlabelled(folder, rows=rows, seed=seed)
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    return samples, read_answers(folder / "answers.jsonl")


def test_unlabelled_samples_have_prompts_pictures_and_references_and_no_scores(tmp_path):
    samples, _ = unlabelled(tmp_path)
    assert [sample["idx"] for sample in samples] == list(range(60))
    assert all(set(each) == {"idx", "dataset", "prompt", "images", "answer"} for each in samples)
    assert all(each["answer"].strip() for each in samples)
    assert len({each["dataset"] for each in samples}) == 8
    assert 15 <= sum(bool(each["images"]) for each in samples) <= 33


def test_the_simulator_is_told_the_answer_to_every_unlabelled_sample(tmp_path):
    samples, known = unlabelled(tmp_path)
    for sample in samples:
        digests = [load_image(picture).sha256 for picture in sample["images"]]
        found = known.find(sample["prompt"], digests)
        assert says(found.text, sample["answer"]) and says(sample["answer"], found.text)
        assert sample["dataset"] == f"simulated-{found.topic}"
        assert 0 <= found.difficulty <= 1 and found.output_tokens > 0


def test_equal_seeds_give_equal_unlabelled_samples(tmp_path):
    first, same, other = (unlabelled(tmp_path / str(at), 20, at // 2)[0] for at in range(3))
    assert first == same != other
    with pytest.raises(ConfigError):
        write_unlabelled(tmp_path, rows=0)


def test_the_command_line_writes_unlabelled_samples_on_request(tmp_path):
    arguments = ["simulate", str(tmp_path), "--rows", "20", "--unlabelled"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"samples.jsonl", "answers.jsonl"}
