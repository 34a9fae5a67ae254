from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.artifacts import MANIFEST, load_artifact, read_manifest
from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactIntegrityError, ConfigError, DataError
from router_runtime.model_router import ModelRouter
from router_runtime.router_inference import CategoryConfig, InferenceSettings, RouterInference
from router_runtime.types import Query, Reason
from router_training.importers import import_file
from router_training.sequence.categories import fit_categories, read_categories, read_rows


def quiet(done, total):
    pass


def test_it_learns_to_tell_categories_apart_far_above_chance(router_model, files):
    folder, learned = router_model
    assert learned.log["validation"]["accuracy"] > 0.9
    router = RouterInference.from_pretrained(folder, device="cpu")
    test = read_categories(files / "test.jsonl", categories=router.categories)
    said = router.route_batch([query.text for query in test.queries])
    truth = [test.model_ids[at] for at in test.labels.Y.argmax(axis=1)]
    right = [told["category"] == category for told, category in zip(said, truth, strict=True)]
    assert sum(right) / len(right) > 0.9  # chance is a third


def test_the_best_epoch_is_kept_and_every_epoch_is_told(router_model):
    folder, learned = router_model
    epochs = learned.log["epochs"]
    best = max(epochs, key=lambda epoch: (epoch["macro_f1"], -epoch["loss"]))
    assert learned.log["best_epoch"] == best["epoch"]
    assert learned.log["validation"]["loss"] == pytest.approx(best["loss"])
    training = read_manifest(folder).training
    assert training["predictor"]["epochs"] == epochs
    assert read_manifest(folder).metrics["validation"]["categories"]["math"]["rows"] == 20


def test_what_is_saved_predicts_the_same_to_the_bit(router_model):
    folder, learned = router_model
    texts = ["please sum a triangle", "compile the loop of python", "an enzyme in a cell"]
    runtime = EncoderRuntime(device="cpu")
    before = learned.parts.network(runtime).logits(texts)
    after = load_artifact(folder).parts.network(runtime).logits(texts)
    np.testing.assert_array_equal(before, after)


def test_a_query_has_a_category_and_a_confidence(router_model):
    folder, _ = router_model
    router = RouterInference.from_pretrained(folder, device="cpu")
    told = router.route_query("compile the python loop please")
    assert set(told) == {"category", "confidence"}
    assert told["category"] == "code"
    assert 1 / 3 < told["confidence"] < 1
    assert json.dumps(told)


def test_the_model_router_routes_by_the_same_confidence(router_model):
    folder, _ = router_model
    text = "compile the python loop please"
    told = RouterInference.from_pretrained(folder, device="cpu").route_query(text)
    decision = ModelRouter(folder, device="cpu").decide(text)
    assert decision.model_id == told["category"]
    assert decision.probabilities["code"] == pytest.approx(told["confidence"], rel=1e-6)
    assert sum(decision.probabilities.values()) == pytest.approx(1.0)
    assert decision.reason is Reason.HIGHEST_PROBABILITY


def test_no_text_and_no_path_is_in_the_artifact(router_model, files, base):
    folder, _ = router_model
    content = b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())
    for row in (files / "train.jsonl").read_text().splitlines()[:20]:
        assert json.loads(row)["query"].encode() not in content
    assert str(base.parent).encode() not in content
    assert load_artifact(folder).parts.description.base == "tiny-distilbert"


def test_a_changed_weight_is_refused(router_model, tmp_path):
    folder, _ = router_model
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = bytearray((tmp_path / "sequence.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "sequence.safetensors").write_bytes(weights)
    with pytest.raises(ArtifactIntegrityError, match=r"sequence\.safetensors' was changed"):
        RouterInference.from_pretrained(tmp_path)
    assert (tmp_path / MANIFEST).exists()


def mapped_artifact(files, base, folder, settings_of, *, divided=True, **settings):
    config = CategoryConfig(
        categories=("math", "science", "code"),
        model_mappings={"math": "thinker", "science": "thinker", "code": "coder"},
        router_config=InferenceSettings(**settings),
    )
    val_data = None if divided else files / "val.jsonl"
    rows = read_rows(files / "train.jsonl", val_data, categories=config.categories, seed=0)
    assert rows.divided is divided
    assert len(rows.validation) == (24 if divided else 60)
    fit_categories(
        rows,
        folder,
        settings_of(base, epochs=1),
        mapped=config,
        seed=0,
        runtime=EncoderRuntime(device="cpu"),
        progress=quiet,
    )
    return folder


@pytest.fixture(scope="module")
def mapped(files, base, settings_of, tmp_path_factory):
    """Two models for three categories; after one epoch it is unsure of everything."""
    folder = tmp_path_factory.mktemp("mapped") / "router"
    return mapped_artifact(
        files, base, folder, settings_of, confidence_threshold=0.99, fallback="code"
    )


def test_a_model_has_the_probability_of_all_its_categories(mapped):
    router = RouterInference.from_pretrained(mapped, device="cpu")
    assert dict(router.model_mappings) == {"math": "thinker", "science": "thinker", "code": "coder"}
    text = "the gravity of a planet"
    math, science, code = router.probabilities([text])[0]
    P = ModelRouter(mapped, device="cpu").probabilities([Query(text)])
    np.testing.assert_allclose(P, [[math + science, code]], rtol=1e-6)


def test_below_the_confidence_threshold_the_fallback_is_chosen(mapped):
    router = ModelRouter(mapped, device="cpu")
    decision = router.decide("the gravity of a planet")
    assert max(decision.probabilities.values()) < 0.99
    assert decision.model_id == "coder"
    assert decision.reason is Reason.LOW_CONFIDENCE
    quality = router.decide("the gravity of a planet")
    assert quality.ranking == ("coder", "thinker")


def test_the_most_frequent_category_is_the_fallback_where_none_is_named(
    files, base, settings_of, tmp_path
):
    rows = [json.loads(line) for line in (files / "train.jsonl").read_text().splitlines()]
    more = [row for row in rows if row["category"] == "science"]
    again = [{**row, "query": row["query"] + " now"} for row in more]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows + again))
    (tmp_path / "val.jsonl").write_text((files / "val.jsonl").read_text())
    folder = mapped_artifact(
        tmp_path, base, tmp_path / "router", settings_of, confidence_threshold=0.4, divided=False
    )
    fallback = read_manifest(folder).recommended_policy["fallback"]
    assert fallback == {"model": "thinker", "novelty_above": None, "confidence_below": 0.4}


def test_rows_of_scores_are_no_categories(tmp_path):
    file = tmp_path / "records.jsonl"
    rows = [{"prompt": f"p{at}", "scores": {"a": 1.0, "b": 1.0}} for at in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(import_file(file)) == 30
    with pytest.raises(DataError, match="must name one category"):
        read_categories(file)


def test_an_unknown_category_is_named_with_its_row(files, tmp_path):
    file = tmp_path / "val.jsonl"
    file.write_text('{"query": "x y", "category": "math"}\n{"query": "z", "category": "art"}\n')
    with pytest.raises(DataError, match="art") as caught:
        read_rows(files / "train.jsonl", file, categories=None, seed=0)
    assert caught.value.row == 2


def test_other_artifacts_tell_no_categories(trained):
    with pytest.raises(ConfigError, match="kind 'features'"):
        RouterInference.from_pretrained(trained[0].output)
