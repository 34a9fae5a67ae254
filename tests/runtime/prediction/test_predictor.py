from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import ConfigError
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.heads.prior import PriorHead
from router_runtime.prediction.predictor import FeaturePredictor
from router_runtime.types import Prediction


def test_the_parts_must_fit_each_other(trained):
    predictor = trained[1].artifact.predictor()
    n = predictor.features.n_features
    with pytest.raises(ConfigError, match=f"{n + 1} features"):
        FeaturePredictor(
            predictor.model_ids,
            predictor.features,
            PriorHead(np.full(4, 0.5), n_features=n + 1),
            predictor.calibrator,
        )
    with pytest.raises(ConfigError, match="2 outputs for 4 models"):
        FeaturePredictor(
            predictor.model_ids,
            predictor.features,
            PriorHead(np.full(2, 0.5), n_features=n),
            Calibrator.identity(2),
        )


def test_queries_and_their_features_have_the_same_probabilities(trained):
    predictor = trained[1].artifact.predictor()
    queries = trained[1].evaluations.queries[:30]
    P = predictor.probabilities(queries)
    assert P.shape == (30, 4)
    assert P.dtype == np.float64
    np.testing.assert_array_equal(
        P, predictor.probabilities_from_features(predictor.features.encode(queries))
    )


def test_predictions_are_joined_row_by_row_with_their_novelty():
    first = Prediction(np.array([[0.1, 0.2]]), np.array([0.5]))
    second = Prediction(np.array([[0.3, 0.4], [0.5, 0.6]]), np.array([0.6, 0.7]))
    joined = Prediction.join([first, second])
    np.testing.assert_array_equal(joined.P, [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    np.testing.assert_array_equal(joined.novelty, [0.5, 0.6, 0.7])
    assert Prediction.join([Prediction(first.P)]).novelty is None
