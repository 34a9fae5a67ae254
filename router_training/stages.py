"""The two slow stages of a run with features, as the work folder keeps them: embed and fit.

``pipeline.Walk`` says what each depends on and when it is made.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeAlias

import numpy as np

from router_runtime.prediction.encoders.cache import CachedEncoder
from router_runtime.prediction.features import EmbeddingGenerator
from router_runtime.prediction.heads.base import load_head
from router_runtime.types import F32, Head, Json, Progress, Query
from router_training.config import TrainingConfig
from router_training.embed import (
    Encode,
    FeatureFiles,
    prepare_encoders,
    read_features,
    write_features,
)
from router_training.fitting import FitData, fit_head
from router_training.labels import Evaluations
from router_training.rows import Rows
from router_training.splits import Split
from router_training.store import StageStore

logger = logging.getLogger(__name__)

Watch: TypeAlias = Callable[[str], AbstractContextManager[Progress]]


def unwatched(stage: str) -> AbstractContextManager[Progress]:
    """Return a ``Watch``'s context for whom nobody watches."""
    logger.debug("stage %s", stage)
    return nullcontext(lambda done, total: None)


def embed(
    store: StageStore,
    inputs: Json,
    *,
    config: TrainingConfig,
    queries: Sequence[Query],
    training_queries: Sequence[Query],
    watch: Watch,
    encode: Encode | None = None,
) -> FeatureFiles:
    """Return encoders fitted on the training queries, and ``X`` of all queries.

    Parameters
    ----------
    store : StageStore
    inputs : JSON
        Everything that the features depend on.
    config : TrainingConfig
    queries, training_queries : sequence of Query
    watch : callable
        Given a stage's name, a context manager that yields a progress callback.
    encode : callable, optional
        As in ``embed.write_features``.
    """

    def make(folder: Path) -> bool:
        encoders = prepare_encoders(
            config.features,
            training_queries,
            runtime=config.encoder,
            seed=config.seed,
            cache_folder=config.work_dir / "embedding-cache",
        )
        anew = not any(isinstance(one, CachedEncoder) and one.has_vectors for one in encoders)
        with watch("embed") as progress:
            generator = EmbeddingGenerator(config.features, encoders)
            write_features(folder, generator, queries, progress=progress, encode=encode)
        return anew

    return store.stage("embed", inputs, make=make, load=read_features)


def fit_data(X: F32, data: Evaluations, split: Split) -> FitData:
    """Return what heads are fitted on: training and validation rows, with their groups.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features), float32
        Of all rows.
    data : Evaluations
    split : Split
    """
    Y = data.labels.Y
    groups = np.unique(data.groups, return_inverse=True)[1]
    return FitData(
        X_train=Rows(X, split.train),
        Y_train=Y[split.train],
        X_validation=Rows(X, split.validation),
        Y_validation=Y[split.validation],
        model_ids=data.model_ids,
        groups=groups[split.train],
        validation_groups=groups[split.validation],
    )


def fit(
    store: StageStore,
    inputs: Json,
    *,
    config: TrainingConfig,
    data: Callable[[], FitData],
    watch: Watch,
) -> tuple[Head, Json]:
    """Return the head, and the log of its fitting.

    Parameters
    ----------
    store : StageStore
    inputs : JSON
        Everything that the head depends on.
    config : TrainingConfig
    data : callable
        Returns what it is fitted on; called where it was not fitted before.
    watch : callable
        As in ``embed``.
    """

    def make(folder: Path) -> None:
        with watch("fit") as progress:
            result = fit_head(data(), config.head, seed=config.seed, progress=progress)
        for name, content in result.head.to_files("head").items():
            (folder / name).write_bytes(content)
        description = {"head": result.head.describe(), "log": result.log}
        (folder / "fit.json").write_text(json.dumps(description), encoding="utf-8")

    def load(folder: Path) -> tuple[Head, Json]:
        description = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        return load_head(description["head"], files), description["log"]

    return store.stage("fit", inputs, make=make, load=load)
