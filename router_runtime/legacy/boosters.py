"""``xgb_multi_router.joblib``: the published XGBoost router, read without unpickling it.

The file pickles scikit-learn's ``MultiOutputClassifier`` around one ``XGBClassifier`` per model.
All that is taken of each is the buffer in which XGBoost serialised its booster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xgboost

from router_runtime.errors import ArtifactError
from router_runtime.legacy.restricted_pickle import Inert, read_pickle
from router_runtime.prediction.heads.booster_json import REFUSALS, checked_model
from router_runtime.prediction.heads.ubjson import parse_ubjson
from router_runtime.prediction.heads.xgboost import XGBoostHead

ROUTER = "sklearn.multioutput.MultiOutputClassifier"
CLASSIFIER = "xgboost.sklearn.XGBClassifier"
BOOSTER = "xgboost.core.Booster"

_CLASSES = frozenset({ROUTER, CLASSIFIER, BOOSTER})


def read_boosters(path: Path) -> XGBoostHead:
    """Read the boosters of ``xgb_multi_router.joblib``.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged, holds anything but such a router, or a booster is no binary
        classifier.
    """
    router = read_pickle(path, classes=_CLASSES)
    try:
        estimators = _state(router, ROUTER)["estimators_"]
        buffers = [_state(_state(e, CLASSIFIER)["_Booster"], BOOSTER)["handle"] for e in estimators]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"'{path}' is no published XGBoost router: {error} is missing or is something else."
        ) from error
    boosters = [_booster(path, index, buffer) for index, buffer in enumerate(buffers)]
    widths = {booster.num_features() for booster in boosters}
    if len(widths) != 1:
        raise ArtifactError(
            f"'{path}': the boosters take {sorted(widths)} features; expected one number for all."
        )
    return XGBoostHead(boosters, n_features=widths.pop())


def _state(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Inert) or value.name != name:
        raise TypeError(f"an object of {name}")
    return value.state


def _booster(path: Path, index: int, buffer: Any) -> xgboost.Booster:
    booster = xgboost.Booster()
    try:
        model, best_iteration = checked_model(parse_ubjson(buffer)["Model"])
        booster.load_model(bytearray(model))
        if best_iteration is not None:  # XGBClassifier predicts with the rounds up to here
            booster = booster[: best_iteration + 1]
    except (*REFUSALS, xgboost.core.XGBoostError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ArtifactError(
            f"'{path}', booster {index} is no model that XGBoost 2 or later wrote for one binary "
            f"target: {first}. Write the file again with such a version."
        ) from error
    return booster
