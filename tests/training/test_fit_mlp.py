from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from router_runtime.errors import ConfigError, MissingDependencyError
from router_training import fit_mlp
from router_training.fitting import FitData, MlpConfig, PlateauConfig, base_rates, log_loss

TINY = MlpConfig(hidden_dims=(16,), batch_size=16, epochs=8, learning_rate=0.01, device="cpu")


def noisy(n: int = 120, *, rate: float = 0.5) -> FitData:
    """Two models, one learnable and one pure chance: over-fitting begins early."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n + 80, 10)).astype(np.float32)
    Y = np.column_stack([X[:, 0] + rng.normal(size=n + 80) > 0, rng.random(n + 80) < rate])
    return FitData(X[:n], Y[:n].astype(float), X[n:], Y[n:].astype(float), ("a", "b"))


def validation_loss(result, data: FitData) -> float:
    return log_loss(result.head.predict_proba(data.X_validation), data.Y_validation)


def test_the_best_epoch_is_really_restored():
    """LLM Router v2: a shallow copy of the state dict kept the last weights, not the best."""
    data = noisy()
    config = TINY.model_copy(update={"epochs": 60, "patience": 10, "dropout": 0.0})
    result = fit_mlp.fit(data, config, seed=0)
    member = result.log["members"][0]
    losses = [one["validation"] for one in member["evaluations"]]
    assert member["best_evaluation"] == 1 + int(np.argmin(losses))
    assert losses[-1] > min(losses) + 0.01  # the last weights are clearly worse
    assert validation_loss(result, data) == pytest.approx(min(losses), abs=1e-5)


def test_training_stops_after_patience_epochs_without_a_better_one():
    config = TINY.model_copy(update={"epochs": 200, "patience": 3, "dropout": 0.0})
    member = fit_mlp.fit(noisy(), config, seed=0).log["members"][0]
    assert len(member["evaluations"]) == member["best_evaluation"] + 3


@pytest.mark.parametrize("n", [33, 49, 113])
def test_a_last_batch_of_one_row_is_no_problem(n):
    assert n % TINY.batch_size == 1
    result = fit_mlp.fit(noisy(n), TINY, seed=0)
    assert np.isfinite(result.log["members"][0]["best_validation_loss"])


def test_missing_scores_change_nothing_whatever_stands_in_their_place():
    """A model whose scores are all missing in a batch adds nothing to its loss or gradient."""
    data = noisy()
    Y = data.Y_train.copy()
    Y[::3, 1] = np.nan
    train = fit_mlp._problem(replace(data, Y_train=Y), TINY, None, None).train
    assert train.observed[::3, 1].eq(0).all()
    assert train.observed.sum() == 200
    slope, target, count = train.targets[::3].split([2, 2, 1], dim=1)
    assert slope[:, 1].eq(0).all()
    assert target[:, 1].eq(0).all()
    assert count.eq(1).all()
    assert not train.targets.isnan().any()


def test_the_global_generator_and_settings_are_left_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    fit_mlp.fit(noisy(), TINY, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_the_global_generator_does_not_change_the_fit():
    data = noisy()
    torch.manual_seed(1)
    first = fit_mlp.fit(data, TINY, seed=0).head.to_files("head")
    torch.manual_seed(2)
    assert fit_mlp.fit(data, TINY, seed=0).head.to_files("head") == first
    assert fit_mlp.fit(data, TINY, seed=1).head.to_files("head") != first


def test_an_ensemble_averages_the_logits_of_members_that_differ_in_their_seed():
    data = noisy()
    result = fit_mlp.fit(data, TINY.model_copy(update={"ensemble": 3}), seed=0)
    seeds = [member["seed"] for member in result.log["members"]]
    assert len(set(seeds)) == 3
    assert result.head.describe()["members"] == 3
    losses = [member["best_validation_loss"] for member in result.log["members"]]
    assert validation_loss(result, data) < max(losses)


def test_search_keeps_the_setting_with_the_lowest_validation_loss():
    data = noisy()
    config = TINY.model_copy(update={"search": 2, "epochs": 3})
    result = fit_mlp.fit(data, config, seed=0)
    table = result.log["search"]
    assert len(table) == 3  # the given settings compete too
    best = min(table, key=lambda row: row["validation_loss"])
    assert result.log["config"]["hidden_dims"] == best["hidden_dims"]
    assert validation_loss(result, data) == pytest.approx(best["validation_loss"], abs=1e-5)
    assert result.settled.search == 0


def test_trials_are_different_points_of_the_published_grid():
    trials = list(fit_mlp._trials(500, 0))
    assert len(trials) == 3 * 4 * 3 * 3 * 4
    assert len({tuple(trial.values()) for trial in trials}) == len(trials)


def test_balanced_classes_do_not_distort_the_probabilities():
    """LLM Router v2: weights shifted the probabilities that thresholds are compared with."""
    data = noisy(400, rate=0.1)
    config = TINY.model_copy(update={"pos_weight": "balanced"})
    P = fit_mlp.fit(data, config, seed=0).head.predict_proba(data.X_train)
    np.testing.assert_allclose(P.mean(axis=0), base_rates(data.Y_train), atol=0.06)


@pytest.mark.parametrize("pos_weight", ["none", "balanced"])
def test_scores_between_0_and_1_stay_undistorted_by_class_weights(pos_weight):
    """Where every score is .95 (or .6), so is the probability, however rare bad answers are."""
    X = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
    Y = np.where(X[:, :1] > 0, 0.95, 0.6)
    config = TINY.model_copy(
        update={"pos_weight": pos_weight, "dropout": 0.0, "epochs": 40, "patience": 40}
    )
    P = fit_mlp.fit(FitData(X, Y, X, Y, ("a",)), config, seed=0).head.predict_proba(X)
    assert P[X[:, 0] > 0.5].mean() == pytest.approx(0.95, abs=0.03)
    assert P[X[:, 0] < -0.5].mean() == pytest.approx(0.6, abs=0.03)


def test_a_training_that_diverges_is_an_error_and_no_untrained_network():
    config = TINY.model_copy(update={"learning_rate": 1e30, "standardise": False})
    with pytest.raises(ConfigError, match=r"diverged.*1e\+30.*Lower head.learning_rate"):
        fit_mlp.fit(noisy(), config, seed=0)


def test_balanced_classes_weigh_the_same_and_a_models_total_stays():
    Y = np.array([[1, 0.5], [0, np.nan], [0, 0.5], [0, 0.5]])
    good, bad = fit_mlp._class_weights(Y, "balanced")
    np.testing.assert_allclose(good, [2, 1])
    np.testing.assert_allclose(bad, [2 / 3, 1])
    np.testing.assert_allclose(fit_mlp._class_weights(Y, "none"), np.ones((2, 2)))


def test_label_smoothing_keeps_probabilities_from_the_ends():
    data = noisy()
    sharp = fit_mlp.fit(data, TINY, seed=0).head.predict_proba(data.X_train)
    config = TINY.model_copy(update={"label_smoothing": 0.8})
    soft = fit_mlp.fit(data, config, seed=0).head.predict_proba(data.X_train)
    assert np.abs(soft - 0.5).mean() < 0.5 * np.abs(sharp - 0.5).mean()


def test_standardised_a_feature_in_other_units_changes_nothing():
    data = noisy()
    units = np.array([1024.0] + [1.0] * 9, np.float32)  # a power of two: nothing is rounded
    scaled = replace(data, X_train=data.X_train * units, X_validation=data.X_validation * units)
    P = fit_mlp.fit(data, TINY, seed=0).head.predict_proba(data.X_validation)
    Q = fit_mlp.fit(scaled, TINY, seed=0).head.predict_proba(scaled.X_validation)
    np.testing.assert_allclose(P, Q, atol=1e-6)
    raw = TINY.model_copy(update={"standardise": False})
    R = fit_mlp.fit(scaled, raw, seed=0).head.predict_proba(scaled.X_validation)
    assert np.abs(P - R).max() > 0.01


def test_a_feature_that_training_never_varied_cannot_move_a_prediction():
    data = noisy()
    X = data.X_train.copy()
    X[:, 9] = 0
    head = fit_mlp.fit(replace(data, X_train=X), TINY, seed=0).head
    query = data.X_validation[:5].copy()
    query[:, 9] = 0
    surprising = query.copy()
    surprising[:, 9] = 1
    np.testing.assert_array_equal(head.predict_proba(query), head.predict_proba(surprising))


def test_cuda_without_a_gpu_is_a_config_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"'cuda'.*'auto' or 'cpu'"):
        fit_mlp.fit(noisy(), TINY.model_copy(update={"device": "cuda"}), seed=0)


def test_a_linear_network_is_possible():
    data = noisy()
    result = fit_mlp.fit(data, TINY.model_copy(update={"hidden_dims": (), "ensemble": 2}), seed=0)
    assert validation_loss(result, data) < 0.75


def test_an_interrupt_leaves_torch_as_it_was(monkeypatch):
    def interrupt(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_mlp, "_validation_loss", interrupt)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        fit_mlp.fit(noisy(), TINY, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_evaluating_after_every_epochs_steps_is_evaluating_after_every_epoch():
    data = noisy()
    steps = -(-len(data.X_train) // TINY.batch_size)
    by_epoch = fit_mlp.fit(data, TINY, seed=0)
    by_steps = fit_mlp.fit(data, TINY.model_copy(update={"evaluate_steps": steps}), seed=0)
    assert by_steps.head.to_files("head") == by_epoch.head.to_files("head")
    ours, theirs = (r.log["members"][0]["evaluations"] for r in (by_steps, by_epoch))
    assert ours == theirs
    assert [one["steps"] for one in ours] == [steps * n for n in range(1, 9)]


def test_evaluations_may_come_more_often_than_epochs_end():
    config = TINY.model_copy(update={"evaluate_steps": 5, "patience": 99, "epochs": 2})
    found = fit_mlp.fit(noisy(), config, seed=0).log["members"][0]["evaluations"]
    assert [one["steps"] for one in found] == [5, 10, 15, 16]  # epochs of 8 steps


def test_patience_counts_evaluations():
    changed = {"evaluate_steps": 2, "patience": 5, "epochs": 200, "dropout": 0.0}
    member = fit_mlp.fit(noisy(), TINY.model_copy(update=changed), seed=0).log["members"][0]
    assert len(member["evaluations"]) == member["best_evaluation"] + 5
    assert member["evaluations"][-1]["steps"] == 2 * len(member["evaluations"])
    losses = [one["validation"] for one in member["evaluations"]]
    assert member["best_evaluation"] == 1 + int(np.argmin(losses))


def test_on_a_plateau_of_validation_the_learning_rate_falls():
    plateau = PlateauConfig(factor=0.1, patience=1, min_learning_rate=2e-4)
    changed = {"plateau": plateau, "epochs": 40, "patience": 40, "dropout": 0.0}
    found = fit_mlp.fit(noisy(), TINY.model_copy(update=changed), seed=0)
    evaluations = found.log["members"][0]["evaluations"]
    rate, best, bad, expected = TINY.learning_rate, float("inf"), 0, []
    for one in evaluations:
        expected.append(rate)
        bad = 0 if one["validation"] < best else bad + 1
        best = min(best, one["validation"])
        if bad > plateau.patience:
            rate, bad = max(rate * plateau.factor, plateau.min_learning_rate), 0
    assert [one["learning_rate"] for one in evaluations] == pytest.approx(expected)
    assert rate == plateau.min_learning_rate
    still = fit_mlp.fit(noisy(), TINY.model_copy(update=changed | {"plateau": None}), seed=0)
    before = still.log["members"][0]["evaluations"]
    first = expected.index(0.001)
    assert evaluations[:first] == before[:first]
    assert evaluations[-1]["validation"] < before[-1]["validation"]  # it over-fits more slowly


def test_what_is_recorded_for_tensorboard_is_what_the_log_says(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TINY.model_copy(update={"tensorboard": tmp_path / "logs", "ensemble": 2})
    result = fit_mlp.fit(noisy(), config, seed=0)
    plain = fit_mlp.fit(noisy(), config.model_copy(update={"tensorboard": None}), seed=0)
    assert result.head.to_files("head") == plain.head.to_files("head")
    (run,) = (tmp_path / "logs").iterdir()
    assert re.fullmatch(r"router_\d{8}_\d{6}", run.name)
    for folder, member in zip(sorted(run.iterdir()), result.log["members"], strict=True):
        events = EventAccumulator(str(folder))
        events.Reload()
        told = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
        assert sorted(told) == ["learning_rate", "loss/train", "loss/validation"]
        evaluations = member["evaluations"]
        assert [one.step for one in told["loss/train"]] == [one["steps"] for one in evaluations]
        for name, key in (("loss/validation", "validation"), ("learning_rate", "learning_rate")):
            values = [one.value for one in told[name]]
            assert values == pytest.approx([one[key] for one in evaluations])
    fit_mlp.fit(noisy(), config, seed=0)
    assert len(list((tmp_path / "logs").iterdir())) == 2  # never two runs in one folder


def test_where_figures_go_is_part_of_no_artifact_and_no_stage():
    config = MlpConfig(tensorboard="logs")
    assert config.model_dump(mode="json") == MlpConfig().model_dump(mode="json")


def test_a_missing_tensorboard_is_answered_with_the_pip_command(monkeypatch, tmp_path):
    for name in list(sys.modules):
        if name.partition(".")[0] == "tensorboard" or name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"model-router\[tensorboard\]"):
        fit_mlp.fit(noisy(), TINY.model_copy(update={"tensorboard": tmp_path}), seed=0)


def test_a_log_folder_that_cannot_be_is_a_config_error(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    config = TINY.model_copy(update={"tensorboard": tmp_path / "file" / "logs"})
    with pytest.raises(ConfigError, match=r"head.tensorboard: .* cannot be written"):
        fit_mlp.fit(noisy(), config, seed=0)
