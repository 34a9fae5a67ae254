"""What a training run does when its config says nothing: features and head, chosen from evidence.

This is the only place that fixes them; ``RECIPE.md`` tells why, with what was tried and what each
ingredient is worth. The defaults of single heads (``MlpConfig`` and so on) are others: there, a
config that names a head gets what the published routers use.
"""

from __future__ import annotations

from router_runtime.prediction.encoders.specs import EmbeddedSpec
from router_runtime.prediction.features import FeatureSpec
from router_training.fitting import (
    KnnConfig,
    LogisticConfig,
    MlpConfig,
    StackConfig,
    XGBoostConfig,
)

FEATURES = FeatureSpec(encoders=(EmbeddedSpec(),))
"""N-grams of the whole text and of its end, surface features, picture statistics, a thumbnail."""

NETWORK = MlpConfig(
    hidden_dims=(256, 128), dropout=0.5, weight_decay=0.1, label_smoothing=0.02, epochs=80
)
"""Held back hard: thousands of rows, not millions, are what routers are trained on."""

HEAD = StackConfig(heads=(NETWORK, LogisticConfig(), KnnConfig(), XGBoostConfig()), folds=5)
"""One network per fold is an ensemble of five; see ``fit_stack``."""
