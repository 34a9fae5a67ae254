"""``xgb_multi_router.joblib`` for readers of the published XGBoost router."""

from __future__ import annotations

from sklearn.multioutput import MultiOutputClassifier
from xgboost import XGBClassifier

from router_runtime.legacy.joblib_writer import dump
from router_runtime.prediction.heads.xgboost import XGBoostHead


def write_boosters(head: XGBoostHead) -> bytes:
    """Return a pickled ``MultiOutputClassifier`` with one fitted ``XGBClassifier`` per model.

    Its ``predict_proba`` gives, per model, the two columns P(bad) and P(good).
    """
    router = MultiOutputClassifier(XGBClassifier(objective="binary:logistic"))
    router.estimators_ = [_classifier(raw) for raw in head.to_files("head").values()]
    return dump(router)


def _classifier(model: bytes) -> XGBClassifier:
    classifier = XGBClassifier(objective="binary:logistic")
    classifier.load_model(bytearray(model))
    return classifier
