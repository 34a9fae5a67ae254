"""Gradient-boosted trees: one booster per model, in XGBoost's own UBJ format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
import xgboost

from router_runtime.errors import ArtifactIntegrityError, MissingDependencyError
from router_runtime.prediction.heads.base import RESTORE, BaseHead, HeadDescription, read_file
from router_runtime.prediction.heads.booster_json import REFUSALS, checked_model
from router_runtime.prediction.heads.ubjson import parse_ubjson
from router_runtime.types import F32, F64


class XGBoostDescription(HeadDescription):
    """Sizes, and the SHA-256 of each booster's file.

    XGBoost trusts its files, and ends the process when one is truncated. So a file is compared with
    its digest, and its model is checked, before it is handed over.
    """

    kind: Literal["xgboost"] = "xgboost"
    sha256: tuple[str, ...]


class XGBoostHead(BaseHead):
    """One ``binary:logistic`` booster per model, joined into one with as many outputs.

    A call into XGBoost costs more than walking the trees of one model for one query; the joined
    booster needs a single call and gives the same bits. It predicts on one thread, since requests
    run side by side already; ``inplace_predict`` takes no lock and keeps no state.

    Parameters
    ----------
    boosters : sequence of xgboost.Booster
        In column order of ``P``; not changed.
    n_features : int
        Columns of ``X``.
    """

    Description = XGBoostDescription

    def __init__(self, boosters: Sequence[xgboost.Booster], *, n_features: int) -> None:
        self._models = tuple(bytes(booster.save_raw("ubj")) for booster in boosters)
        self._joined = _join(boosters)
        super().__init__(
            XGBoostDescription(
                n_features=n_features,
                n_models=len(self._models),
                sha256=tuple(hashlib.sha256(raw).hexdigest() for raw in self._models),
            )
        )

    def _probabilities(self, X: F32) -> F64:
        if not len(X):
            return np.empty((0, self.n_models))
        P = self._joined.inplace_predict(X, validate_features=False)
        return P.reshape(len(X), self.n_models).astype(np.float64)

    def to_files(self, stem: str) -> dict[str, bytes]:
        """Return ``<stem>-<i>.ubj`` for model i."""
        return {f"{stem}-{i}.ubj": raw for i, raw in enumerate(self._models)}

    @classmethod
    def from_files(
        cls, description: XGBoostDescription, files: Mapping[str, bytes], *, stem: str
    ) -> Self:
        """Read ``<stem>-<i>.ubj`` for each model."""
        if len(description.sha256) != description.n_models:
            raise ArtifactIntegrityError(
                f"The description of '{stem}' has {len(description.sha256)} digests for "
                f"{description.n_models} models. {RESTORE}"
            )
        boosters = []
        for i, digest in enumerate(description.sha256):
            name = f"{stem}-{i}.ubj"
            raw = read_file(files, name)
            if hashlib.sha256(raw).hexdigest() != digest:
                raise ArtifactIntegrityError(f"'{name}' was changed or is corrupt. {RESTORE}")
            boosters.append(_booster(name, raw))
        found = {booster.num_features() for booster in boosters}
        if found != {description.n_features}:
            raise ArtifactIntegrityError(
                f"The boosters of '{stem}' were fitted on {sorted(found)} features, expected "
                f"{description.n_features}. {RESTORE}"
            )
        return cls(boosters, n_features=description.n_features)


def _booster(name: str, raw: bytes) -> xgboost.Booster:
    """Read a model whose digest fits: whoever wrote the digest may also have written the model."""
    try:
        model, _ = checked_model(parse_ubjson(raw))
        return xgboost.Booster(model_file=bytearray(model))
    except (*REFUSALS, xgboost.core.XGBoostError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ArtifactIntegrityError(
            f"'{name}' is no model for one target: {first}. {RESTORE}"
        ) from error


def _join(boosters: Sequence[xgboost.Booster]) -> xgboost.Booster:
    """Return one booster whose output j is that of booster j, all of whose trees it takes over.

    ``tree_info`` says which output a tree adds to; all trees together count as one round. This is
    the documented JSON model format, with a base score per output since XGBoost 3.1.

    Raises
    ------
    MissingDependencyError
        XGBoost is older than that.
    """
    models = [json.loads(booster.save_raw("json")) for booster in boosters]
    base_scores, trees, outputs = [], [], []
    for j, model in enumerate(models):
        base_score = model["learner"]["learner_model_param"]["base_score"]
        if not base_score.startswith("["):  # older versions would read a list as its default
            raise MissingDependencyError("xgboost >= 3.1", "train")
        base_scores.append(base_score.strip("[]"))
        own = model["learner"]["gradient_booster"]["model"]["trees"]
        trees += own
        outputs += [j] * len(own)
    for index, tree in enumerate(trees):
        tree["id"] = index
    learner = models[0]["learner"]
    learner["learner_model_param"] |= {
        "base_score": f"[{','.join(base_scores)}]",
        "num_target": str(len(models)),
    }
    forest = learner["gradient_booster"]["model"]
    forest |= {"trees": trees, "tree_info": outputs, "iteration_indptr": [0, len(trees)]}
    forest["gbtree_model_param"] |= {"num_trees": str(len(trees)), "num_parallel_tree": "1"}
    joined = xgboost.Booster(model_file=bytearray(json.dumps(models[0]).encode()))
    joined.set_param({"nthread": 1})
    joined.save_config()  # settles the configuration, so that no two requests do it at once
    return joined
