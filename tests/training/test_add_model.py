"""Hide one of the simulated models, train on the others, and add it back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from router_runtime import ModelRouter
from router_runtime.artifacts import Artifact, load_artifact
from router_runtime.config import RuntimeConfig
from router_runtime.errors import ArtifactError, ArtifactIntegrityError, ConfigError, DataError
from router_runtime.prediction.calibration import NoneMap
from router_runtime.prediction.predictor import predict_features
from router_runtime.types import Head
from router_training.add_model import add_model, free_output, save_addition
from router_training.config import load_training_config
from router_training.fitting import FitData, LogisticConfig, fit_head
from router_training.held_out import marks_of
from router_training.labels import ARRAYS, Evaluations, LabelMatrix, write_evaluations
from router_training.metrics import auc
from router_training.pipeline import Walk
from router_training.simulated import simulate_workload

HIDDEN = "sim-small-vl"


@dataclass(frozen=True)
class Case:
    """What the tests share: an artifact without the hidden model, in memory and as a folder."""

    artifact: Artifact
    folder: Path
    work_dir: Path
    data: Evaluations
    X: np.ndarray
    train: np.ndarray
    test: np.ndarray
    joint: Head

    @property
    def y(self) -> np.ndarray:
        return scores(self.data, HIDDEN)


def scores(data: Evaluations, model_id: str) -> np.ndarray:
    return data.labels.Y[:, data.model_ids.index(model_id)]


def restricted(data: Evaluations, keep: list[str]) -> Evaluations:
    columns = [data.model_ids.index(name) for name in keep]
    arrays = [getattr(data.labels, name)[:, columns] for name in ARRAYS]
    return replace(data, labels=LabelMatrix(tuple(keep), *arrays))


def few_pictures(data: Evaluations) -> Evaluations:
    """Leave out most rows with a picture, which take the longest to encode."""
    with_picture = np.array([bool(query.images) for query in data.queries])
    return data.take(np.flatnonzero(~with_picture | (np.arange(len(data)) % 4 == 0)))


def trained_on(data: Evaluations, folder: Path) -> Walk:
    write_evaluations(data, folder / "records.jsonl")
    (folder / "train.yml").write_text(
        "data: {path: records.jsonl}\n"
        "features: {encoders: [{kind: embedded, text_components: 32, thumbnail_components: 16}]}\n"
        "head: logistic\noutput: artifact\nwork_dir: work\nseed: 3\n"
    )
    return Walk(load_training_config(folder / "train.yml"))


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("added")
    data = few_pictures(simulate_workload(1200, seed=5))
    others = [name for name in data.model_ids if name != HIDDEN]
    walk = trained_on(restricted(data, others), folder)
    walk.keep()
    train, validation = walk.split.train, walk.split.validation
    X, Y = np.array(walk.features.X), data.labels.Y
    joint = FitData(X[train], Y[train], X[validation], Y[validation], data.model_ids)
    return Case(
        artifact=load_artifact(walk.config.output),
        folder=walk.config.output,
        work_dir=walk.config.work_dir,
        data=data,
        X=X,
        train=train,
        test=walk.split.test,
        joint=fit_head(joint, LogisticConfig(), seed=3).head,
    )


def drawn(case: Case, n: int, *, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(case.train)[:n])


def added(case: Case, n: int = 100, *, seed: int = 0, **options):
    rows = drawn(case, n, seed=seed)
    return add_model(
        case.artifact, case.data.take(rows), model_id=HIDDEN, X=case.X[rows], **options
    )


def served(artifact: Artifact, X: np.ndarray) -> np.ndarray:
    return predict_features(
        X, head=artifact.head, calibrator=artifact.calibrator, novelty=artifact.novelty
    ).P


@pytest.mark.parametrize(("n", "margin"), [(100, 0.09), (200, 0.07), (400, 0.05)])
def test_some_hundred_scores_come_near_to_training_on_all(case, n, margin):
    y = case.y[case.test]
    joint = case.joint.predict_proba(case.X[case.test])[:, case.data.model_ids.index(HIDDEN)]
    aucs, gains = [], []
    for seed in range(4):
        artifact = added(case, n, seed=seed, folds=0).artifact
        p = served(artifact, case.X[case.test])[:, -1]
        base_rate = case.y[drawn(case, n, seed=seed)].mean()
        aucs.append(auc(p, y >= 0.5))
        gains.append(np.mean((base_rate - y) ** 2) - np.mean((p - y) ** 2))
    assert np.mean(aucs) > auc(joint, y >= 0.5) - margin
    assert min(gains) > 0.005  # in Brier score, below that of the base rate


def test_the_columns_of_the_others_stay_to_the_bit(case):
    before = served(case.artifact, case.X)
    np.testing.assert_array_equal(served(added(case).artifact, case.X)[:, :-1], before)


def test_the_new_model_has_everything_that_the_others_have(case):
    artifact = added(case).artifact
    assert artifact.model_ids == (*case.artifact.model_ids, HIDDEN)
    assert artifact.calibrator.maps[-1] == NoneMap()
    assert artifact.novelty.n_models == len(artifact.model_ids)
    assert artifact.scored_modalities[HIDDEN] == ("image", "text")
    assert artifact.cost_model.model_ids == artifact.model_ids
    assert artifact.cost_model.usd.learned.all()


def test_a_query_unlike_all_training_data_is_foretold_by_the_base_rate(case):
    artifact = added(case).artifact
    far = np.full((1, case.X.shape[1]), 1e3, np.float32)
    base_rate = artifact.training["added"][0]["method"]["base_rate"]
    assert artifact.novelty.novelty(far)[0] == 1.0
    assert served(artifact, far)[0, -1] == pytest.approx(base_rate)


def test_what_is_known_of_the_addition_is_kept_with_the_artifact(case):
    addition = added(case, 200, seed=1)
    (entry,) = addition.artifact.training["added"]
    assert (entry["model"], entry["labels"]) == (HIDDEN, 200)
    records = case.data.take(drawn(case, 200, seed=1))
    assert entry["data_sha256"] == records.fingerprint
    assert entry["seen"] == marks_of(records)
    figures = entry["held_out"]
    assert figures == addition.held_out.to_json()
    assert figures["labels"] == 200
    for name in ("auc", "brier", "ece"):
        assert figures[name]["low"] <= figures[name]["estimate"]
    assert figures["brier_gain"]["low"] > 0
    assert entry["uncertainty"] == addition.uncertainty
    assert addition.artifact.training["data_sha256"] == case.artifact.training["data_sha256"]
    assert addition.artifact.metrics == case.artifact.metrics


def test_figures_of_rows_that_the_head_was_trained_on_are_called_flattering(case):
    def notes(rows, **options):
        records, X = case.data.take(rows), case.X[rows]
        found = add_model(case.artifact, records, model_id=HIDDEN, X=X, **options).notes
        return " ".join(found)

    mixed = np.concatenate([case.train[:40], case.test[:60]])
    assert "trained or tuned on 40 of the 100 scored records" in notes(mixed)
    assert "flatter" not in notes(case.test[:100])
    assert "flatter" not in notes(mixed, folds=0)  # there are no figures


def test_more_scores_are_less_uncertainty(case):
    few, many = (added(case, n, folds=0).uncertainty for n in (50, 400))
    assert 0 < many < few < 0.5


def test_nothing_is_judged_where_nothing_is_held_out(case):
    addition = added(case, folds=0)
    assert addition.held_out is None
    assert addition.artifact.training["added"][0]["held_out"] is None


def test_equal_input_gives_equal_files(case, tmp_path):
    for name in ("one", "two"):
        save_addition(added(case, seed=2), source=case.folder, output=tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_features_encoded_here_are_those_of_training(case):
    rows = drawn(case, 60)
    records = case.data.take(rows)
    done = []
    addition = add_model(
        case.artifact,
        records,
        model_id=HIDDEN,
        cache_folder=case.work_dir / "embedding-cache",
        progress=lambda count, total: done.append((count, total)),
    )
    given = add_model(case.artifact, records, model_id=HIDDEN, X=case.X[rows])
    assert done == [(60, 60)]
    np.testing.assert_allclose(
        served(addition.artifact, case.X[case.test]),
        served(given.artifact, case.X[case.test]),
        atol=1e-6,
    )


def test_rows_without_a_score_of_the_new_model_do_not_matter(case):
    rows = drawn(case, 200)
    Y = case.data.labels.Y[rows].copy()
    column = case.data.model_ids.index(HIDDEN)
    Y[100:, column] = np.nan
    records = case.data.take(rows)
    some = replace(records, labels=replace(records.labels, Y=Y))
    first = add_model(case.artifact, some, model_id=HIDDEN, X=case.X[rows])
    second = add_model(
        case.artifact, records.take(np.arange(100)), model_id=HIDDEN, X=case.X[rows[:100]]
    )
    assert first.labels == 100
    np.testing.assert_array_equal(served(first.artifact, case.X), served(second.artifact, case.X))


def test_scores_of_the_other_models_may_be_absent(case):
    rows = drawn(case, 100)
    alone = restricted(case.data.take(rows), [HIDDEN])
    addition = add_model(case.artifact, alone, model_id=HIDDEN, X=case.X[rows])
    np.testing.assert_array_equal(
        served(addition.artifact, case.X), served(added(case).artifact, case.X)
    )


# --------------------------------------------------------------------------- serving


def test_a_router_loads_the_new_artifact_and_chooses_the_new_model(case, tmp_path):
    saved = save_addition(added(case, 200), source=case.folder, output=tmp_path / "new")
    router = ModelRouter(tmp_path / "new")
    assert load_artifact(tmp_path / "new").artifact_id == saved.artifact_id
    queries = case.data.take(case.test).queries
    decisions = router.decide_batch(queries)
    assert 0 < sum(decision.model_id == HIDDEN for decision in decisions) < len(decisions)
    for decision in decisions[:20]:
        assert 0 < decision.probabilities[HIDDEN] < 1
        assert decision.expected_cost[HIDDEN] > 0


def test_the_source_stays_as_it_is(case, tmp_path):
    before = {file.name: file.read_bytes() for file in case.folder.iterdir() if file.is_file()}
    save_addition(added(case), source=case.folder, output=tmp_path / "new")
    after = {file.name: file.read_bytes() for file in case.folder.iterdir() if file.is_file()}
    assert before == after


def test_a_second_model_joins_the_same_head(case, tmp_path):
    first = added(case, 200)
    save_addition(first, source=case.folder, output=tmp_path / "one")
    rows = drawn(case, 200, seed=4)
    records = restricted(case.data.take(rows), [HIDDEN])
    second = replace(records, labels=replace(records.labels, model_ids=("another",)))
    addition = add_model(
        load_artifact(tmp_path / "one"), second, model_id="another", X=case.X[rows]
    )
    save_addition(addition, source=tmp_path / "one", output=tmp_path / "one")
    artifact = load_artifact(tmp_path / "one")
    assert artifact.model_ids[-2:] == (HIDDEN, "another")
    assert artifact.head.base.kind == "logistic"
    P = served(artifact, case.X)
    np.testing.assert_array_equal(P[:, :-1], served(first.artifact, case.X))
    assert [entry["model"] for entry in artifact.training["added"]] == [HIDDEN, "another"]
    card = (tmp_path / "one" / "README.md").read_text()
    assert card.count("## Models added without retraining") == 1
    assert "`another`" in card


def test_a_price_in_the_config_needs_no_recorded_cost(case, tmp_path):
    rows = drawn(case, 100)
    records = case.data.take(rows)
    unpriced = replace(records, labels=LabelMatrix.of_scores(records.model_ids, records.labels.Y))
    addition = add_model(case.artifact, unpriced, model_id=HIDDEN, X=case.X[rows])
    assert np.isnan(addition.artifact.cost_model.usd.scale[-1])
    assert "price" in " ".join(addition.notes)
    save_addition(addition, source=case.folder, output=tmp_path / "new")
    price = {"input_mtok": 1, "output_mtok": 2}
    candidates = [{"id": name, "price": price} for name in addition.artifact.model_ids]
    config = {"artifact": tmp_path / "new", "candidates": candidates}
    router = ModelRouter.from_config(RuntimeConfig.model_validate(config))
    assert router.decide("What is 3 + 4?").expected_cost[HIDDEN] > 0


def test_thresholds_ask_as_much_of_the_new_model_as_of_the_strictest(case):
    names = case.artifact.model_ids

    def threshold(**thresholds) -> float:
        policy = {"kind": "cheapest_qualified", **thresholds}
        artifact = replace(case.artifact, recommended_policy=policy)
        rows = drawn(case, 60)
        addition = add_model(artifact, case.data.take(rows), model_id=HIDDEN, X=case.X[rows])
        return addition.artifact.recommended_policy["thresholds"][HIDDEN]

    assert threshold(thresholds={names[0]: 0.6, names[1]: 0.8}) == 0.8
    assert threshold(thresholds={names[0]: 0.6}, default_threshold=0.7) == 0.7
    assert threshold(thresholds={names[0]: 0.2}) == 0.5


def test_other_policies_stay_as_they_are(case):
    assert added(case).artifact.recommended_policy == case.artifact.recommended_policy


# --------------------------------------------------------------------------- refusals


def test_a_model_that_is_there_already_is_refused(case):
    with pytest.raises(ConfigError, match=r"'sim-large-vl' is in the artifact already.*run CONFIG"):
        add_model(case.artifact, case.data, model_id="sim-large-vl", X=case.X)


def test_a_model_that_nobody_scored_is_refused(case):
    with pytest.raises(DataError, match=r"no scores of 'gpt-9' \(scored: sim-large-vl"):
        add_model(case.artifact, case.data, model_id="gpt-9", X=case.X)


def test_fewer_than_30_scores_are_refused(case):
    with pytest.raises(DataError, match=r"scored on 29 records; at least 30"):
        added(case, 29)


def test_scores_of_one_kind_are_refused(case):
    good = np.flatnonzero(case.y == 1)[:50]
    with pytest.raises(DataError, match="All 50 scores of 'sim-small-vl' are 1"):
        add_model(case.artifact, case.data.take(good), model_id=HIDDEN, X=case.X[good])


def test_a_single_bad_answer_cannot_judge_a_column_but_be_learned_from(case):
    good, bad = np.flatnonzero(case.y == 1)[:39], np.flatnonzero(case.y == 0)[:1]
    rows = np.concatenate([good, bad])
    records = case.data.take(rows)
    with pytest.raises(DataError, match="folds 0"):
        add_model(case.artifact, records, model_id=HIDDEN, X=case.X[rows])
    addition = add_model(case.artifact, records, model_id=HIDDEN, X=case.X[rows], folds=0)
    assert served(addition.artifact, case.X)[:, -1].mean() > 0.8


@pytest.mark.parametrize("folds", [-1, 1, 2])
def test_folds_that_leave_too_little_are_refused(case, folds):
    with pytest.raises(ConfigError, match="folds is"):
        added(case, folds=folds)


def test_records_of_one_group_cannot_judge_a_column(case):
    rows = drawn(case, 60)
    records = case.data.take(rows)
    samples = tuple(replace(sample, group="the same") for sample in records.samples)
    records = replace(records, samples=samples)
    with pytest.raises(DataError, match="folds 0"):
        add_model(case.artifact, records, model_id=HIDDEN, X=case.X[rows])
    add_model(case.artifact, records, model_id=HIDDEN, X=case.X[rows], folds=0)


def test_features_of_other_rows_are_refused(case):
    with pytest.raises(DataError, match="features of 99 rows for 100 records"):
        add_model(case.artifact, case.data.take(range(100)), model_id=HIDDEN, X=case.X[:99])


def test_an_artifact_with_a_malformed_history_is_refused(case):
    rows = drawn(case, 60)
    foreign = replace(case.artifact, training={"added": 3})
    with pytest.raises(ArtifactError, match="no list"):
        add_model(foreign, case.data.take(rows), model_id=HIDDEN, X=case.X[rows])


def test_another_encoder_is_refused(case):
    parts = replace(case.artifact.parts, encoder_fingerprints=("0" * 64,))
    other = replace(case.artifact, parts=parts)
    with pytest.raises(ArtifactIntegrityError, match="fingerprint"):
        add_model(other, case.data.take(range(60)), model_id=HIDDEN)


def test_the_default_output_is_a_new_folder_beside_the_artifact(case, tmp_path):
    folder = tmp_path / "router"
    save_addition(added(case), source=case.folder, output=folder)
    assert free_output(folder, "org/model 2") == tmp_path / "router+org-model-2"
    (tmp_path / "router+taken").mkdir()
    with pytest.raises(ConfigError, match="--output"):
        free_output(folder, "taken")
