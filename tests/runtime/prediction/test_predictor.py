from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import ConfigError
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.heads.prior import PriorHead
from router_runtime.prediction.predictor import FeaturePredictor


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
