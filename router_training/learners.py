"""Runs whose predictor is no head on features: learned from records, then asked like any other.

``LEARNERS`` names who learns which kind. A learner is a function of one ``Task`` that returns a
``Taught``; calibration, tuning, evaluation and the artifact are the pipeline's for all kinds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from router_runtime import __version__
from router_runtime.config import EncoderRuntime, FallbackConfig
from router_runtime.errors import ConfigError
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.encoders.base import file_digest
from router_runtime.prediction.heads.base import import_optional
from router_runtime.prediction.parts import PredictorParts, load_parts
from router_runtime.prediction.predictor import Told, predict_told
from router_runtime.prediction.prompted import PromptedConfig, PromptedPredictor
from router_runtime.types import F64, Int, Json, Prediction, Progress, Query
from router_runtime.weights.base_digest import base_digest as weights_digest
from router_training.config import TrainingConfig
from router_training.labels import Evaluations
from router_training.predictor_configs import AdapterConfig, SequenceConfig
from router_training.splits import Split
from router_training.store import StageStore, digest_of

LEARNERS = {
    "adapter": "router_training.adapter.from_records:learn_adapter",
    "prompted": "router_training.learn_prompted:learn_prompted",
    "sequence": "router_training.sequence.from_records:learn_sequence",
}
"""Module and function by the kind of predictor."""

_EXTRAS = {
    "torch": "clip",
    "transformers": "clip",
    "peft": "lora",
    "scipy": "train",
    "openai": "label",
}


@dataclass(frozen=True, eq=False)
class Task:
    """What a learner is given.

    Parameters
    ----------
    config : TrainingConfig
        With its ``predictor``.
    train, validation : Evaluations
    checkpoints : Path
        A folder in which it may keep what it has done.
    progress : callable
    """

    config: TrainingConfig
    train: Evaluations
    validation: Evaluations
    checkpoints: Path
    progress: Progress


@dataclass(frozen=True, eq=False)
class Taught:
    """What a learner returns: the parts, and a log for the artifact's provenance."""

    parts: PredictorParts
    log: Json


class _Telling(Protocol):
    def tell(self, queries: Sequence[Query]) -> Told: ...


class Learning:
    """The stages of a run whose predictor reads queries itself.

    Parameters
    ----------
    config : TrainingConfig
    data : Evaluations
    split : Split
    store : StageStore
    watch : callable
        As in ``pipeline.Walk``.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        data: Evaluations,
        split: Split,
        store: StageStore,
        watch: Callable[[str], Any],
    ) -> None:
        if config.predictor is None:
            raise ConfigError("The run has no 'predictor'; its head is fitted by the pipeline.")
        self._config = config
        self._predictor = config.predictor
        self._data = data
        self._split = split
        self._store = store
        self._watch = watch

    @property
    def parts(self) -> PredictorParts:
        """What was learned."""
        return self._taught.parts

    @property
    def log(self) -> Json:
        """How it was learned."""
        return self._taught.log

    @property
    def seconds(self) -> float | None:
        """How long learning took when it was done; None where that is not known."""
        return self._store.seconds("learn", self._inputs)

    @property
    def fallback(self) -> FallbackConfig | None:
        """Who takes queries of which nothing is told, as the recommended policy says it."""
        if not isinstance(self._predictor, PromptedConfig) or self._predictor.fallback is None:
            return None
        return FallbackConfig(model=self._predictor.fallback)

    def tell(self, rows: Int) -> Told:
        """Return what the predictor says of some rows, before calibration; kept in the folder."""
        queries = self._data.take(rows).queries

        def make(folder: Path) -> None:
            with self._watch("tell") as progress, self._asked() as asked:
                told = asked.tell(queries)
                progress(len(queries), len(queries))
            np.savez(folder / "told.npz", P=told.P, known=told.known)

        def load(folder: Path) -> Told:
            with np.load(folder / "told.npz", allow_pickle=False) as found:
                return Told(found["P"], found["known"])

        inputs = {"learn": self._inputs, "rows": rows.tolist()}
        return self._store.stage("tell", inputs, make=make, load=load)

    def predict(self, rows: Int, *, calibrator: Calibrator) -> Prediction:
        """Return what serving predicts of some rows."""
        return predict_told(
            self.tell(rows),
            calibrator=calibrator,
            base_rates=cast(Any, self.parts).description.base_rates,
            tells_novelty=self.parts.tells_novelty,
        )

    @contextmanager
    def _asked(self) -> Iterator[_Telling]:
        """Give the predictor; one that asks a target leaves no connection open."""
        if not isinstance(self._predictor, PromptedConfig):
            yield self._loaded
            return
        predictor = self._built(runtime_of(self._predictor, self._config.encoder))
        with closing(cast(PromptedPredictor, predictor)) as asked:
            yield asked

    @cached_property
    def _loaded(self) -> _Telling:
        return self._built(self._config.encoder)

    def _built(self, runtime: EncoderRuntime) -> _Telling:
        predictor = self.parts.build(
            self._data.model_ids,
            calibrator=Calibrator.identity(len(self._data.model_ids)),
            novelty=None,
            runtime=runtime,
        )
        return cast(_Telling, predictor)

    @cached_property
    def _taught(self) -> Taught:
        def make(folder: Path) -> bool:
            module, _, name = LEARNERS[self._predictor.kind].partition(":")
            learner = getattr(import_optional(module, _EXTRAS), name)
            with self._watch("fit") as progress:
                task = self._task(progress)
                anew = not task.checkpoints.exists()
                taught = learner(task)
            for file, content in taught.parts.to_files().items():
                (folder / file).write_bytes(content)
            description = {"predictor": taught.parts.describe(), "log": taught.log}
            (folder / "learn.json").write_text(json.dumps(description), encoding="utf-8")
            return anew

        def load(folder: Path) -> Taught:
            description = json.loads((folder / "learn.json").read_text(encoding="utf-8"))
            files = {file.name: file.read_bytes() for file in folder.iterdir()}
            return Taught(load_parts(description["predictor"], files), description["log"])

        return self._store.stage("learn", self._inputs, make=make, load=load)

    def _task(self, progress: Progress) -> Task:
        split = self._split
        return Task(
            self._config,
            self._data.take(split.train),
            self._data.take(split.validation),
            self._store.folder / "checkpoints" / digest_of(self._inputs)[:16],
            progress,
        )

    @cached_property
    def _inputs(self) -> Json:
        predictor = self._predictor
        base: dict[str, str] = {}
        if isinstance(predictor, SequenceConfig):
            base = base_digest(predictor.base)
        elif isinstance(predictor, AdapterConfig) and Path(predictor.base).is_dir():
            base = {"weights": weights_digest(Path(predictor.base))}
        return {
            "data": self._data.fingerprint,
            "split": self._split.fingerprint,
            "seed": self._config.seed,
            "predictor": predictor.model_dump(mode="json"),
            "text": self._config.features.text.model_dump(mode="json"),
            "base": base,
            "version": __version__,
        }


def base_rates(Y: F64) -> tuple[float, ...]:
    """Return each label's mean score; 0.5 for one without any."""
    n = (~np.isnan(Y)).sum(axis=0)
    total = np.nansum(Y, axis=0)
    return tuple(np.where(n > 0, total / np.maximum(n, 1), 0.5).tolist())


def base_digest(name: str) -> dict[str, str]:
    """Return digests of a local base model's files by name; nothing of a hub id."""
    folder = Path(name)
    if not folder.is_dir():
        return {}
    return {f.name: file_digest(f) for f in sorted(folder.iterdir()) if f.is_file()}


def runtime_of(config: PromptedConfig, runtime: EncoderRuntime) -> EncoderRuntime:
    """Return how to ask the target of a config that one has written oneself: with its key."""
    if runtime.api_key_env is not None:
        return runtime
    return runtime.model_copy(update={"api_key_env": config.target.api_key_env})
