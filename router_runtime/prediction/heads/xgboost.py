"""Gradient-boosted trees: one booster per model, in XGBoost's own UBJ format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
import xgboost

from router_runtime.errors import ArtifactIntegrityError
from router_runtime.prediction.heads.base import RESTORE, BaseHead, HeadDescription, read_file
from router_runtime.types import F32, F64


class XGBoostDescription(HeadDescription):
    """Sizes, and the SHA-256 of each booster's file.

    XGBoost ends the process when it reads a truncated file, so a file is compared with its digest
    before it is handed over.
    """

    kind: Literal["xgboost"] = "xgboost"
    sha256: tuple[str, ...]


class XGBoostHead(BaseHead):
    """One ``binary:logistic`` booster per model.

    Each predicts on one thread: waking a pool for a single query costs more than walking the trees,
    and requests run side by side already. ``inplace_predict`` takes no lock and keeps no state.

    Parameters
    ----------
    boosters : sequence of xgboost.Booster
        In column order of ``P``; set to one thread here.
    n_features : int
        Columns of ``X``.
    """

    Description = XGBoostDescription

    def __init__(self, boosters: Sequence[xgboost.Booster], *, n_features: int) -> None:
        self._boosters = tuple(boosters)
        for booster in self._boosters:
            booster.set_param({"nthread": 1})
        # Writing also settles a booster's configuration, so that no two requests do it at once.
        self._models = tuple(bytes(booster.save_raw("ubj")) for booster in self._boosters)
        super().__init__(
            XGBoostDescription(
                n_features=n_features,
                n_models=len(self._models),
                sha256=tuple(hashlib.sha256(raw).hexdigest() for raw in self._models),
            )
        )

    def _probabilities(self, X: F32) -> F64:
        P = np.empty((len(X), self.n_models))
        if len(X):
            for j, booster in enumerate(self._boosters):
                P[:, j] = booster.inplace_predict(X)
        return P

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
            boosters.append(xgboost.Booster(model_file=bytearray(raw)))
        found = {booster.num_features() for booster in boosters}
        if found != {description.n_features}:
            raise ArtifactIntegrityError(
                f"The boosters of '{stem}' were fitted on {sorted(found)} features, expected "
                f"{description.n_features}. {RESTORE}"
            )
        return cls(boosters, n_features=description.n_features)
