from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import ConfigError, DataError
from router_runtime.prediction.calibration import (
    IsotonicMap,
    NoneMap,
    SigmoidMap,
    TemperatureMap,
)
from router_runtime.prediction.heads.base import logit, sigmoid
from router_training.fit_calibration import fit_calibration
from router_training.fitting import log_loss


def answers(n: int, *, temperature: float = 1.0, shift: float = 0.0, seed: int = 0):
    """Scores drawn from true odds, and a head that reports them scaled and shifted."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, size=(n, 1))
    Y = (rng.random((n, 1)) < sigmoid(z)).astype(float)
    return sigmoid(temperature * (z - shift)), Y


def fit(P, Y, **options):
    ids = [f"m{j}" for j in range(P.shape[1])]
    calibrator, log = fit_calibration(P, Y, model_ids=ids, **options)
    return calibrator, log[0]


def test_a_calibrated_head_is_left_alone():
    calibrator, entry = fit(*answers(600))
    assert isinstance(calibrator.maps[0], NoneMap)
    assert entry["chosen"] == "none"
    assert set(entry["cv_loss"]) == {"none", "temperature", "sigmoid"}


def test_an_overconfident_head_is_cooled_to_its_true_temperature():
    P, Y = answers(4000, temperature=3.0)
    calibrator, _ = fit(P, Y, method="temperature")
    assert calibrator.maps[0].temperature == pytest.approx(3.0, rel=0.1)
    automatic, entry = fit(P, Y)
    assert entry["chosen"] in {"temperature", "sigmoid"}
    assert log_loss(automatic.apply(P), Y) < 0.75 * log_loss(P, Y)


def test_a_shifted_head_needs_the_sigmoid_map():
    P, Y = answers(4000, shift=1.5)
    calibrator, entry = fit(P, Y)
    assert entry["chosen"] == "sigmoid"
    assert calibrator.maps[0].slope == pytest.approx(1.0, abs=0.15)
    assert calibrator.maps[0].intercept == pytest.approx(1.5, abs=0.15)


def test_a_step_needs_the_isotonic_map():
    rng = np.random.default_rng(0)
    P = rng.random((4000, 1))
    Y = (rng.random((4000, 1)) < np.where(P < 0.3, 0.1, np.where(P < 0.35, 0.9, 0.95))).astype(
        float
    )
    calibrator, entry = fit(P, Y)
    assert entry["chosen"] == "isotonic"
    found = calibrator.apply(np.array([[0.1], [0.9]]))
    np.testing.assert_allclose(found, [[0.1], [0.95]], atol=0.04)


def test_isotonic_needs_a_thousand_rows():
    P, Y = answers(999)
    calibrator, entry = fit(P, Y, method="isotonic")
    assert isinstance(calibrator.maps[0], SigmoidMap)
    assert "1000 rows" in entry["note"]
    assert "isotonic" not in fit(P, Y)[1]["cv_loss"]
    P, Y = answers(1000)
    assert isinstance(fit(P, Y, method="isotonic")[0].maps[0], IsotonicMap)


@pytest.mark.parametrize(("n", "shrinkage"), [(50, 0.0), (49, 0.01), (25, 0.25), (1, 0.49)])
def test_few_rows_are_drawn_to_the_prior_linearly(n, shrinkage):
    P, Y = answers(n)
    calibrator, entry = fit(P, Y)
    assert entry["shrinkage"] == pytest.approx(shrinkage)
    assert calibrator.maps[0].shrinkage == pytest.approx(shrinkage)
    assert calibrator.maps[0].prior == pytest.approx((Y.sum() + 10 * P.mean()) / (n + 10))


def test_a_model_without_rows_keeps_its_probabilities_and_the_log_says_so():
    P, Y = answers(100)
    P, Y = np.hstack([P, P]), np.hstack([np.full_like(Y, np.nan), Y])
    calibrator, log = fit_calibration(P, Y, model_ids=["new", "old"])
    assert calibrator.maps[0] == NoneMap()
    assert (log[0]["model_id"], log[0]["n"]) == ("new", 0)
    assert "no scored row" in log[0]["note"]
    assert log[1]["n"] == 100


def test_missing_scores_equal_dropped_rows():
    P, Y = answers(500, temperature=2.0)
    Y[100:200] = np.nan
    keep = ~np.isnan(Y[:, 0])
    assert fit(P, Y)[0] == fit(P[keep], Y[keep])[0]


@pytest.mark.parametrize("method", ["auto", "temperature", "sigmoid", "isotonic"])
@pytest.mark.parametrize("score", [0.0, 1.0])
def test_one_class_only_stays_finite(method, score):
    P, _ = answers(1200)
    calibrated = fit(P, np.full_like(P, score), method=method)[0].apply(P)
    assert ((calibrated >= 0) & (calibrated <= 1)).all()


@pytest.mark.parametrize("method", ["auto", "temperature", "sigmoid", "isotonic"])
def test_certain_and_constant_probabilities_are_bearable(method):
    for P in (np.tile([[0.0], [1.0]], (600, 1)), np.full((1200, 1), 0.5)):
        Y = np.tile([[0.0], [1.0], [1.0]], (400, 1))
        calibrated = fit(P, Y, method=method)[0].apply(P)
        assert np.isfinite(log_loss(calibrated, Y))


def test_soft_scores_are_fitted_exactly():
    """Scores that are the true probabilities themselves: temperature 2 has no noise to fight."""
    p = np.linspace(0.05, 0.95, 400)[:, None]
    calibrator, _ = fit(sigmoid(2 * logit(p)), p, method="temperature")
    assert isinstance(calibrator.maps[0], TemperatureMap)
    assert calibrator.maps[0].temperature == pytest.approx(2.0, rel=0.02)


def test_the_seed_decides_the_folds_and_nothing_else():
    P, Y = answers(300, temperature=2.0)
    assert fit(P, Y, seed=1) == fit(P, Y, seed=1)
    assert fit(P, Y, seed=1)[1]["cv_loss"] != fit(P, Y, seed=2)[1]["cv_loss"]


def test_calibration_seldom_hurts_on_new_rows():
    """Forty small calibration splits of a good head: the mean loss on new rows hardly rises."""
    new_P, new_Y = answers(4000, seed=99)
    before = log_loss(new_P, new_Y)
    after = [log_loss(fit(*answers(120, seed=seed))[0].apply(new_P), new_Y) for seed in range(40)]
    assert np.mean(after) < before + 0.004


@pytest.mark.parametrize(
    ("P", "Y", "options", "error", "words"),
    [
        (np.zeros((3, 1)), np.zeros((4, 1)), {}, DataError, r"\(3, 1\).*\(4, 1\)"),
        (np.full((3, 1), 1.1), np.zeros((3, 1)), {}, DataError, "Probabilities"),
        (np.full((3, 1), np.nan), np.zeros((3, 1)), {}, DataError, "Probabilities"),
        (np.zeros((3, 1)), np.full((3, 1), -1.0), {}, DataError, "Scores"),
        (np.zeros((3, 1)), np.zeros((3, 1)), {"method": "magic"}, ConfigError, "'magic'.*known"),
        (np.zeros((3, 1)), np.zeros((3, 1)), {"folds": 1}, ConfigError, "2 folds, not 1"),
    ],
)
def test_bad_input_is_refused(P, Y, options, error, words):
    with pytest.raises(error, match=words):
        fit(P, Y, **options)
