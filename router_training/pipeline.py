"""Walk two: from evaluation records to an artifact.

``Walk`` names the stages in order, read > split > embed > fit > calibrate > novelty > price >
tune > evaluate > keep; each is made once, when something first asks for it, from the values of
those before it. The slow ones (embed, fit) keep their results in the work folder under a digest of
their inputs, so that an interrupted run continues where it was and a changed input is never
confused with an old one. Nothing chosen here looks at the test rows: encoders and heads see train,
early stopping, settings, the percentiles of novelty and the folds of a stack, which is fitted on
both in the end, see validation, calibration and tuning see calibration, and the report is made
once, on test.

A run with a ``predictor`` has no features and no head: ``learners`` learn it from train and
validation, and the other stages are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from router_runtime import __version__
from router_runtime.artifacts import Artifact, save_artifact
from router_runtime.candidates import capabilities_of, price_table_of
from router_runtime.config import FallbackConfig, PolicyConfig
from router_runtime.eligibility import find_eligible
from router_runtime.errors import ConfigError
from router_runtime.legacy import export_files
from router_runtime.policy import build_policy
from router_runtime.policy_set import RECOMMENDED
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.costs import CostEstimator, CostModel, query_sizes
from router_runtime.prediction.feature_parts import FeatureParts
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.prediction.parts import PredictorParts
from router_runtime.prediction.predictor import predict_features
from router_runtime.types import F64, Bool, Head, Int, Json, Modality, Prediction
from router_training import stages
from router_training.card import render_card
from router_training.config import TrainingConfig
from router_training.embed import Encode, FeatureFiles, local_weights
from router_training.evaluate import OperatingPoint, Regret, evaluate, worst_regrets
from router_training.evaluation_report import EvaluationReport
from router_training.fit_calibration import fit_calibration
from router_training.fit_costs import fit_costs
from router_training.fit_novelty import fit_novelty
from router_training.fitting import FitData
from router_training.held_out import row_provenance
from router_training.labelled_by import LabelledBy, read_labelled_by
from router_training.labels import Evaluations
from router_training.learners import Learning
from router_training.made_from import told_tables
from router_training.reading import read_records, scored_modalities
from router_training.recommending import (
    best_alone,
    novelty_fallback,
    operating_points,
    recommended_policy,
)
from router_training.rows import Rows, predict, read_chunks
from router_training.slices import slice_labels
from router_training.splits import Split, split_evaluations
from router_training.stages import Watch, unwatched
from router_training.store import StageStore
from router_training.tune import TuneResult, tune


@dataclass(frozen=True)
class RunResult:
    """What ``run`` returns: the artifact as saved, and the figures behind it.

    ``tuned`` is None where no cost is known: there is nothing to weigh then. ``walk`` has the
    stages, for who wants to look closer.
    """

    evaluations: Evaluations
    tuned: TuneResult | None
    report: EvaluationReport
    artifact: Artifact
    walk: Walk


def run(
    config: TrainingConfig, *, watch: Watch | None = None, export_legacy: bool = False
) -> RunResult:
    """Walk from the records to the saved artifact.

    Parameters
    ----------
    config : TrainingConfig
        The run.
    watch : callable, optional
        Given a stage's name, a context manager that yields a progress callback.
    export_legacy : bool
        Also write LLM Router v2's ``nn_router.pth`` and companions into the artifact's folder.

    Raises
    ------
    RouterError
        Whatever is wrong with config or data; nothing is half-written then.
    """
    walk = Walk(config, watch=watch)
    artifact = walk.keep(export_legacy=export_legacy)
    return RunResult(walk.data, walk.tuned, walk.report, artifact, walk)


class Walk:
    """The stages of one run, each made when first asked for.

    Parameters
    ----------
    config : TrainingConfig
        The run.
    watch : callable, optional
        Given a stage's name, a context manager that yields a progress callback.
    data : Evaluations, optional
        Records that were read before, as ``read_records(config)`` reads them.
    split : Split, optional
        Which rows are for what, instead of the random division that the config asks for.
    encode : callable, optional
        Encodes queries somewhere else than here; the features are the same.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        watch: Watch | None = None,
        data: Evaluations | None = None,
        split: Split | None = None,
        encode: Encode | None = None,
    ) -> None:
        self.config = config
        self._watch = watch or unwatched
        self._store = StageStore(config.work_dir)
        self._data = data
        self._split = split
        self.encode = encode

    @cached_property
    def data(self) -> Evaluations:
        """Read: the records that the config names."""
        if self._data is None:
            _ = self.labelled_by  # what is wrong with it is said before anything slow
        return read_records(self.config) if self._data is None else self._data

    @cached_property
    def split(self) -> Split:
        """Split: which rows are for what, by group."""
        config = self.config
        if self._split is not None:
            return self._split
        return split_evaluations(self.data, fractions=config.split.fractions, seed=config.seed)

    @cached_property
    def learning(self) -> Learning | None:
        """Learn: a predictor that reads queries itself, instead of the next three stages."""
        if self.config.predictor is None:
            return None
        return Learning(
            self.config, data=self.data, split=self.split, store=self._store, watch=self._watch
        )

    @cached_property
    def features(self) -> FeatureFiles:
        """Embed: encoders fitted on train, ``X`` of every record; kept in the work folder."""
        if self.config.predictor is not None:
            raise ConfigError(
                f"The run's predictor is of kind '{self.config.predictor.kind}', which has no "
                "features and no head. Leave this stage out."
            )

        return stages.embed(
            self._store,
            self._embed_inputs,
            config=self.config,
            queries=self.data.queries,
            training_queries=self.data.take(self.split.train).queries,
            watch=self._watch,
            encode=self.encode,
        )

    @cached_property
    def _embed_inputs(self) -> Json:
        return {
            "data": self.data.fingerprint,
            "split": self.config.split.model_dump()
            if self._split is None
            else self._split.fingerprint,
            "seed": self.config.seed,
            "features": self.config.features.model_dump(mode="json"),
            "weights": local_weights(self.config.features),
            "version": __version__,
        }

    @cached_property
    def fit_data(self) -> FitData:
        """What heads are fitted on: training and validation rows, with their groups."""
        return stages.fit_data(self.features.X, self.data, self.split)

    @cached_property
    def fitted(self) -> tuple[Head, Json]:
        """Fit: the head and the log of its fitting; kept in the work folder."""
        return stages.fit(
            self._store,
            self._fit_inputs,
            config=self.config,
            data=lambda: self.fit_data,
            watch=self._watch,
        )

    @cached_property
    def _fit_inputs(self) -> Json:
        return {
            "embed": self._embed_inputs,
            "labels": self.data.fingerprint,
            "fingerprint": self.features.metadata["fingerprint"],
            "head": self.config.head.model_dump(mode="json"),
        }

    @property
    def seconds(self) -> dict[str, float | None]:
        """How long encoding and fitting took when they were done; None where nobody measured.

        Fitting encoders counts as ``embed``, learning a predictor without features as ``fit``.
        Calibration, novelty and tuning count as neither.
        """
        if self.learning is not None:
            return {"embed": 0.0, "fit": self.learning.seconds}
        return {
            "embed": self._store.seconds("embed", self._embed_inputs),
            "fit": self._store.seconds("fit", self._fit_inputs),
        }

    @cached_property
    def calibrated(self) -> tuple[Calibrator, Json]:
        """Calibrate: the maps, and why each was chosen."""
        rows = self.split.calibration
        P, Y = self._uncalibrated(rows)
        return fit_calibration(
            P,
            Y,
            model_ids=self.data.model_ids,
            method=self.config.calibration.method,
            seed=self.config.seed,
        )

    def _uncalibrated(self, rows: Int) -> tuple[F64, F64]:
        """Return ``P`` before calibration, and the scores of rows of which it says something."""
        Y = self.data.labels.Y[rows]
        if self.learning is None:
            return predict(self.fitted[0], Rows(self.features.X, rows)), Y
        told = self.learning.tell(rows)
        return told.P[told.known], Y[told.known]

    @cached_property
    def novelty(self) -> NoveltyModel | None:
        """Novelty: how far from the training rows, in percentiles of validation rows."""
        if self.learning is not None or not self.config.novelty.enabled:
            return None
        return fit_novelty(
            self.features.X,
            self.data.labels.Y,
            train=self.split.train,
            held_out=self.split.validation,
            config=self.config.novelty,
            seed=self.config.seed,
        )

    @cached_property
    def cost_model(self) -> CostModel:
        """Price, the learned part: tokens and dollars per call from the training rows."""
        train = self.data.take(self.split.train)
        return fit_costs(query_sizes(train.queries), train.labels)

    @cached_property
    def costs(self) -> CostEstimator:
        """Price: expected cost of a query, from configured prices and what was learned."""
        prices = price_table_of(self.config.candidates, model_ids=self.data.model_ids)
        return CostEstimator(prices, self.cost_model, self.data.model_ids)

    @cached_property
    def tuned(self) -> TuneResult | None:
        """Tune: lambda and thresholds for the wanted outcome; None where no cost is known."""
        if self.costs.unit == "unknown":
            return None
        goal: dict[str, Any] = self.config.tune.goal
        return tune(**self._tuning_rows, **goal)

    @cached_property
    def _tuning_rows(self) -> dict[str, Any]:
        rows = self.split.calibration
        return {
            "P": self.P(rows),
            "expected_cost": self.expected_cost(rows),
            "labels": self.data.labels.take(rows),
            "model_ids": self.data.model_ids,
            "eligible": self.eligible(rows),
            "cost_unit": self.costs.unit,
        }

    @cached_property
    def recommended(self) -> PolicyConfig:
        """The tuned policy with its fallback; the highest probability where no cost is known."""
        return recommended_policy(self.tuned, self._fallback)

    @property
    def _fallback(self) -> FallbackConfig | None:
        if self.learning is not None:
            return self.learning.fallback
        if self.novelty is None:
            return None
        return novelty_fallback(self.config.novelty, default_model=lambda: self.default_model)

    @cached_property
    def default_model(self) -> str:
        """The model that is best alone on the training and calibration rows."""
        rows = np.union1d(self.split.train, self.split.calibration)
        return best_alone(
            self.data.labels.take(rows),
            self.expected_cost(rows),
            self.eligible(rows),
            cost_unit=self.costs.unit,
        )

    @cached_property
    def points(self) -> tuple[OperatingPoint, ...]:
        """The recommended policy, then lambdas for other wanted qualities, all from calibration."""
        rows = None if self.tuned is None else self._tuning_rows
        return operating_points(self.recommended, rows)

    @cached_property
    def report(self) -> EvaluationReport:
        """Evaluate: the recommended policy, once, on rows that nothing has looked at."""
        test = self.data.take(self.split.test)
        return evaluate(
            **self._tested,
            groups=test.groups,
            slices=slice_labels(test.queries, test.datasets, self._tested["novelty"]),
            points=self.points,
            seed=self.config.seed,
        )

    def regrets(self, limit: int = 20) -> tuple[Regret, ...]:
        """Return the test rows on which the recommended policy lost most, counted among them."""
        return worst_regrets(**self._tested, limit=limit)

    @cached_property
    def _tested(self) -> dict[str, Any]:
        return self.known(self.split.test)

    def known(self, rows: Int) -> dict[str, Any]:
        """Return what ``evaluate``, ``worst_regrets`` and ``Contestant`` want to know of rows."""
        found = self.predict(rows)
        return {
            "P": found.P,
            "novelty": found.novelty,
            "labels": self.data.labels.take(rows),
            "expected_cost": self.expected_cost(rows),
            "policy": build_policy(
                self.recommended, model_ids=self.data.model_ids, name=RECOMMENDED
            ),
            "eligible": self.eligible(rows),
            "model_ids": self.data.model_ids,
            "cost_unit": self.costs.unit,
        }

    @cached_property
    def artifact(self) -> Artifact:
        """Everything learned, not saved yet."""
        return Artifact(
            model_ids=self.data.model_ids,
            parts=self.parts,
            calibrator=self.calibrated[0],
            novelty=self.novelty,
            cost_model=self.cost_model,
            scored_modalities=self.scored_modalities,
            recommended_policy=self.recommended.model_dump(mode="json"),
            training=self.provenance,
            metrics={
                "test": self.report.to_json(),
                "tuning": None if self.tuned is None else self.tuned.to_json(),
            },
        )

    def keep(self, *, folder: Path | None = None, export_legacy: bool = False) -> Artifact:
        """Keep: save the artifact with its card, in the config's ``output`` by default."""
        return save_artifact(
            self.artifact,
            self.config.output if folder is None else folder,
            created_by=f"model-router {__version__}",
            card=render_card(self.artifact, self.report, candidates=self.config.candidates),
            exports=self._legacy_files() if export_legacy else None,
        )

    @cached_property
    def parts(self) -> PredictorParts:
        """What the artifact keeps of the predictor."""
        if self.learning is not None:
            return self.learning.parts
        found = self.features
        return FeatureParts(self.config.features, found.fingerprints, found.states, self.fitted[0])

    def _legacy_files(self) -> dict[str, bytes]:
        head, log = self.fitted
        settings = log.get("config", self.config.head.model_dump(mode="json"))
        return export_files(head, self.data.model_ids, hyperparameters=settings)

    # ------------------------------------------------------------------ of some rows

    def predict(self, rows: Int) -> Prediction:
        """Return probabilities and novelty of some rows, as serving computes them."""
        if self.learning is not None:
            return self.learning.predict(rows, calibrator=self.calibrated[0])
        parts = [
            predict_features(
                X, head=self.fitted[0], calibrator=self.calibrated[0], novelty=self.novelty
            )
            for _, X in read_chunks(Rows(self.features.X, rows))
        ]
        return Prediction.join(parts)

    def P(self, rows: Int) -> F64:
        """Return calibrated probabilities (n_rows, n_models), as serving computes them."""
        return self.predict(rows).P

    def expected_cost(self, rows: Int) -> F64:
        """Return the expected cost (n_rows, n_models), as serving computes it."""
        return self.costs.expected(self.data.take(rows).queries)

    def eligible(self, rows: Int) -> Bool:
        """Return which model may serve which row, by the same rule as serving."""
        capabilities = capabilities_of(
            self.config.candidates,
            model_ids=self.data.model_ids,
            scored_modalities=self.scored_modalities,
        )
        return find_eligible(self.data.take(rows).queries, capabilities).mask

    @cached_property
    def scored_modalities(self) -> dict[str, tuple[Modality, ...]]:
        """Per model, the modalities of the training queries that it has scores for."""
        return scored_modalities(self.data.take(self.split.train))

    @cached_property
    def labelled_by(self) -> LabelledBy | None:
        """Who labelled the records, where a file beside them says so."""
        path = self.config.data.path
        return None if path is None else read_labelled_by(path)

    @property
    def _settings(self) -> dict[str, Json]:
        if self.learning is not None:
            return {"predictor": self.learning.log}
        told = ("head", "novelty")
        return {name: getattr(self.config, name).model_dump(mode="json") for name in told}

    @property
    def provenance(self) -> dict[str, Json]:
        """What the manifest says about how the artifact came about; no path, no text."""
        parts = ("train", "validation", "calibration", "test")
        labelled_by = self.labelled_by
        return {
            **({} if labelled_by is None else {"labels": labelled_by.to_json()}),
            **told_tables(self.config.data.path),
            "data_sha256": self.data.fingerprint,
            **row_provenance(self.data, self.split, self.config),
            "rows": len(self.data),
            "skipped_rows": len(self.data.skipped),
            "parts": {part: len(getattr(self.split, part)) for part in parts},
            "seed": self.config.seed,
            "cost_unit": self.costs.unit,
            **self._settings,
            "seconds": self.seconds,
            "calibration": self.calibrated[1],
        }
