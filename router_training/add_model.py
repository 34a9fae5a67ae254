"""Add one more model to a trained artifact, from some hundred of its scores, without retraining.

Encoders, head, calibration and costs of the other models stay what they were, to the bit; the new
model gets a column of its own (``fit_added``), with an uncertainty as wide as its scores are few.
Rows that the artifact was trained on may be used again: on RouterBench, scores of such rows and of
others gave columns of the same quality. The cross-validated figures flatter there, since the head
has learned the other models' scores of these rows by heart (250 labels: AUC .75 for .72 and Brier
.193 for .206 on new rows), which is said.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np

from router_runtime import __version__
from router_runtime.artifact_folder import find_folder
from router_runtime.artifacts import Artifact, save_artifact
from router_runtime.config import CheapestQualifiedConfig, EncoderRuntime, validate_policy
from router_runtime.errors import ArtifactError, ConfigError, DataError
from router_runtime.prediction.calibration import Calibrator, NoneMap
from router_runtime.prediction.costs import Additive, CostModel, LogLinear, query_sizes
from router_runtime.prediction.encoders.cache import CachedEncoder
from router_runtime.prediction.encoders.embedded import EmbeddedEncoder
from router_runtime.prediction.features import EmbeddingGenerator
from router_runtime.prediction.heads.base import RESTORE, check_features
from router_runtime.prediction.heads.joined import AddedColumn, JoinedHead
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.prediction.predictor import predict_features
from router_runtime.types import F32, F64, Head, Int, Json, Modality, Progress
from router_training.added_card import extend_card
from router_training.bootstrap import Resamples, aucs, calibration_errors, divided
from router_training.evaluation_report import Interval
from router_training.fit_added import AddedFit, fit_added
from router_training.fit_costs import fit_costs
from router_training.fitting import FOLDS, MIN_TRAINING_ROWS
from router_training.held_out import marks_of, seen_rows
from router_training.labels import ARRAYS, Evaluations, LabelMatrix
from router_training.metrics import auc, calibration_error

logger = logging.getLogger(__name__)

MIN_LABELS: Final = 30
LEAST_FOLDS: Final = 3
LEAST_THRESHOLD: Final = 0.5

_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class HeldOutFigures:
    """How well scores are foretold that were held out, with 95 % intervals.

    Parameters
    ----------
    labels : int
        Scored rows behind the figures, each foretold by a column that was fitted without it.
    auc, brier, ece : Interval
        Of the probabilities as they are served.
    brier_gain : Interval
        Brier score of the base rate of the fitted rows minus ``brier``; above 0 the column knows
        more than that.
    """

    labels: int
    auc: Interval
    brier: Interval
    ece: Interval
    brier_gain: Interval

    def to_json(self) -> Json:
        """Return plain values, NaN as None."""
        return {
            name: {key: None if np.isnan(v) else v for key, v in value.items()}
            if isinstance(value, dict)
            else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Addition:
    """An artifact with one model more, and what is known of its column.

    Parameters
    ----------
    artifact : Artifact
        Not saved yet.
    model_id : str
        The new model, the last column.
    labels : int
        Scored rows that the column rests on.
    held_out : HeldOutFigures or None
        None where nothing was held out.
    uncertainty : float
        Mean standard deviation of the new probabilities over the scored rows, in [0, 0.5].
    notes : tuple of str
        What the user should know or do.
    """

    artifact: Artifact
    model_id: str
    labels: int
    held_out: HeldOutFigures | None
    uncertainty: float
    notes: tuple[str, ...]


def add_model(
    artifact: Artifact,
    evaluations: Evaluations,
    *,
    model_id: str,
    X: F32 | None = None,
    runtime: EncoderRuntime = EncoderRuntime(),
    cache_folder: Path | None = None,
    folds: int = FOLDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Addition:
    """Fit the column of ``model_id`` and join it to the artifact.

    Parameters
    ----------
    artifact : Artifact
        Any, with or without columns added before; not changed.
    evaluations : Evaluations
        Records with scores of the new model, at least 30; scores of others are not used.
    model_id : str
        The new model, a column of ``evaluations``.
    X : ndarray of shape (n_rows, n_features), float32, optional
        Features of all records, made with the artifact's encoders; encoded here by default.
    runtime : EncoderRuntime
        Where the encoders run.
    cache_folder : Path, optional
        Of the embedding cache: what a training run has embedded there is not embedded again.
    folds : int
        Parts of the scored rows, by group, that are held out in turn to judge the column: at least
        3, or 0 to judge nothing. The column that is kept is fitted on all rows.
    seed : int
        Of the folds and of the bootstrap.
    progress : callable, optional
        Told how many queries are encoded.

    Raises
    ------
    ConfigError
        The artifact has the model already, or ``folds`` is no such number.
    DataError
        Too few scores, or all the same.
    ArtifactError
        What the artifact tells of earlier additions is malformed.
    ArtifactIntegrityError, EncoderError, MissingDependencyError
        The artifact's encoders cannot be had.
    """
    if folds != 0 and folds < LEAST_FOLDS:
        raise ConfigError(f"folds is {folds}; it must be 0 or at least {LEAST_FOLDS}.")
    rows = _scored_rows(artifact, evaluations, model_id)
    records = evaluations.take(rows)
    if X is None:
        X = _encode(artifact, records, runtime, cache_folder, progress)
    else:
        X = _given_features(X, artifact, evaluations)[rows]
    y = records.labels.Y[:, records.model_ids.index(model_id)]
    base = artifact.head.base if isinstance(artifact.head, JoinedHead) else artifact.head
    P_base = base.predict_proba(X)
    held_out = _judge(artifact, X, P_base, y, records.groups, folds, seed) if folds else None
    fit = fit_added(X, P_base, y)
    joined = _joined(artifact, fit, model_id, records)
    uncertainty = float(_head(artifact.head, fit.column).uncertainty(X)[:, -1].mean())
    told = _told(records, fit, held_out, uncertainty)
    entry = {"model": model_id, "data_sha256": evaluations.fingerprint, "seed": seed, **told}
    joined = _with_entry(joined, entry)
    n_seen = int(seen_rows([artifact.training], records).sum())
    notes = _notes(joined, model_id, held_out, n_seen=n_seen)
    return Addition(joined, model_id, len(y), held_out, uncertainty, notes)


def _given_features(X: F32, artifact: Artifact, evaluations: Evaluations) -> F32:
    check_features(X, artifact.head.n_features)
    if len(X) != len(evaluations):
        raise DataError(f"There are features of {len(X)} rows for {len(evaluations)} records.")
    return X


def _told(
    records: Evaluations, fit: AddedFit, held_out: HeldOutFigures | None, uncertainty: float
) -> dict[str, Json]:
    """Return what an artifact's provenance tells of a column."""
    return {
        "labels": len(records),
        "seen": marks_of(records),
        "method": fit.log,
        "uncertainty": uncertainty,
        "held_out": None if held_out is None else held_out.to_json(),
    }


def _with_entry(artifact: Artifact, entry: Json) -> Artifact:
    """Return the artifact with one more addition told in its provenance."""
    before = artifact.training.get("added", [])
    if not isinstance(before, list):
        raise ArtifactError(f"training.added of the artifact is no list. {RESTORE}")
    return replace(artifact, training={**artifact.training, "added": [*before, entry]})


def _scored_rows(artifact: Artifact, evaluations: Evaluations, model_id: str) -> Int:
    if model_id in artifact.model_ids:
        raise ConfigError(
            f"Model '{model_id}' is in the artifact already ({', '.join(artifact.model_ids)}). To "
            "learn from more of its scores, train again: router-train run CONFIG"
        )
    if model_id not in evaluations.model_ids:
        raise DataError(
            f"The records have no scores of '{model_id}' (scored: "
            f"{', '.join(evaluations.model_ids)})."
        )
    y = evaluations.labels.Y[:, evaluations.model_ids.index(model_id)]
    rows = np.flatnonzero(~np.isnan(y)).astype(np.int64)
    if len(rows) < MIN_LABELS:
        raise DataError(
            f"Model '{model_id}' is scored on {len(rows)} records; at least {MIN_LABELS} are "
            "needed, and some hundred are worth while. Score more."
        )
    if np.ptp(y[rows]) == 0:
        raise DataError(
            f"All {len(rows)} scores of '{model_id}' are {y[rows][0]:g}, so that nothing can be "
            "learned. Score records that it answers otherwise."
        )
    return rows


def _encode(
    artifact: Artifact,
    records: Evaluations,
    runtime: EncoderRuntime,
    cache_folder: Path | None,
    progress: Progress | None,
) -> F32:
    encoders = artifact.build_encoders(runtime)
    if cache_folder is not None:
        encoders = tuple(
            encoder
            if isinstance(encoder, EmbeddedEncoder)
            else CachedEncoder(encoder, cache_folder)
            for encoder in encoders
        )
    generator = EmbeddingGenerator(artifact.features, encoders)
    queries = records.queries
    X = np.empty((len(queries), generator.n_features), dtype=np.float32)
    for start in range(0, len(queries), _CHUNK_ROWS):
        chunk = queries[start : start + _CHUNK_ROWS]
        X[start : start + len(chunk)] = generator.encode(chunk)
        if progress is not None:
            progress(start + len(chunk), len(queries))
    return X


# --------------------------------------------------------------------------- judging


def _judge(
    artifact: Artifact,
    X: F32,
    P_base: F64,
    y: F64,
    groups: tuple[str, ...],
    folds: int,
    seed: int,
) -> HeldOutFigures:
    """Foretell each fold by a fit on the others, and measure all at once."""
    members = np.unique(groups, return_inverse=True)[1]
    n_groups = int(members.max()) + 1
    fold = (np.random.default_rng(seed).permutation(n_groups) % folds)[members]
    p, base_rate = np.empty(len(y)), np.empty(len(y))
    for held in (fold == k for k in np.unique(fold)):
        known = y[~held]
        if len(known) < MIN_TRAINING_ROWS or np.ptp(known) == 0:
            raise DataError(
                f"With a fold of {int(held.sum())} rows held out, the other {len(known)} scores "
                "are too few or all the same. Score more records, or judge nothing (folds 0)."
            )
        fit = fit_added(X[~held], P_base[~held], known)
        head, calibrator, novelty = _parts(artifact, fit)
        served = predict_features(X[held], head=head, calibrator=calibrator, novelty=novelty)
        p[held], base_rate[held] = served.P[:, -1], fit.log["base_rate"]
    return _measured(p, base_rate, y, Resamples(members, seed))


def _measured(p: F64, base_rate: F64, y: F64, resamples: Resamples) -> HeldOutFigures:
    positive = y >= 0.5
    squared = np.square(p - y)

    def mean_of(values: F64) -> Interval:
        columns = np.stack([np.ones(len(values)), values], axis=1)
        return resamples.measured(columns, lambda sums: divided(sums[:, 1], sums[:, 0]))

    return HeldOutFigures(
        labels=len(y),
        auc=resamples.weighted(auc(p, positive), lambda counts: aucs(p, positive, counts)),
        brier=mean_of(squared),
        ece=resamples.weighted(
            calibration_error(p, y),
            lambda counts: calibration_errors(p, y, counts),
            biased=True,
        ),
        brier_gain=mean_of(np.square(base_rate - y) - squared),
    )


# --------------------------------------------------------------------------- joining


def _head(head: Head, column: AddedColumn) -> JoinedHead:
    return head.with_column(column) if isinstance(head, JoinedHead) else JoinedHead(head, [column])


def _parts(artifact: Artifact, fit: AddedFit) -> tuple[JoinedHead, Calibrator, NoveltyModel | None]:
    """Return head, calibrator and novelty with the new column.

    The column has no calibration map: it is fitted by its likelihood and moderated by its
    uncertainty, and the scores that a map would be fitted on serve the column better.
    """
    novelty = artifact.novelty
    return (
        _head(artifact.head, fit.column),
        Calibrator((*artifact.calibrator.maps, NoneMap())),
        None if novelty is None else novelty.with_model(float(fit.log["base_rate"])),
    )


def _joined(artifact: Artifact, fit: AddedFit, model_id: str, records: Evaluations) -> Artifact:
    head, calibrator, novelty = _parts(artifact, fit)
    seen: set[Modality] = {m for query in records.queries for m in query.modalities}
    return replace(
        artifact,
        model_ids=(*artifact.model_ids, model_id),
        parts=replace(artifact.feature_parts, head=head),
        calibrator=calibrator,
        novelty=novelty,
        cost_model=_costs(artifact, records, model_id),
        scored_modalities={**artifact.scored_modalities, model_id: tuple(sorted(seen))},
        recommended_policy=_policy(artifact, model_id),
        artifact_id="",
    )


def _costs(artifact: Artifact, records: Evaluations, model_id: str) -> CostModel | None:
    """Return the learned costs with the new model's, as far as its calls were recorded."""
    column = [records.model_ids.index(model_id)]
    arrays = (getattr(records.labels, name)[:, column] for name in ARRAYS)
    new = fit_costs(query_sizes(records.queries), LabelMatrix((model_id,), *arrays))
    old = artifact.cost_model
    model_ids = (*artifact.model_ids, model_id)
    if old is None:
        known = new.usd.learned.any() or not np.isnan(new.input_tokens.coefficients).all()
        return new.for_models(model_ids) if known else None

    def linear(first: LogLinear, second: LogLinear) -> LogLinear:
        pairs = {f.name: (getattr(first, f.name), getattr(second, f.name)) for f in fields(first)}
        return LogLinear(**{name: np.concatenate(pair) for name, pair in pairs.items()})

    def additive(first: Additive, second: Additive) -> Additive:
        return Additive(np.concatenate([first.coefficients, second.coefficients]))

    return CostModel(
        model_ids=model_ids,
        output_tokens=linear(old.output_tokens, new.output_tokens),
        input_tokens=additive(old.input_tokens, new.input_tokens),
        usd=linear(old.usd, new.usd),
        usd_beyond=additive(old.usd_beyond, new.usd_beyond),
        largest=old.largest,
    )


def _policy(artifact: Artifact, model_id: str) -> dict[str, Json] | None:
    """Return the recommended policy for one model more.

    A utility policy stays as it is: what a dollar is worth does not depend on who is asked.
    Thresholds were chosen model by model, and a threshold chosen on so few scores would be chance;
    the new model must be as sure as the strictest of the others, and at least
    ``LEAST_THRESHOLD``.
    """
    if artifact.recommended_policy is None:
        return None
    policy = dict(artifact.recommended_policy)
    config = validate_policy(policy, source="recommended_policy")
    if not isinstance(config, CheapestQualifiedConfig):
        return policy
    known = [config.thresholds.get(m, config.default_threshold) for m in artifact.model_ids]
    thresholds = {**config.thresholds, model_id: max(LEAST_THRESHOLD, *known)}
    return {**policy, "thresholds": thresholds}


def _notes(
    artifact: Artifact, model_id: str, held_out: HeldOutFigures | None, *, n_seen: int
) -> tuple[str, ...]:
    notes = []
    if held_out is not None and n_seen:
        notes.append(
            f"The artifact was trained or tuned on {n_seen} of the {held_out.labels} scored "
            "records: the cross-validated figures flatter."
        )
    if held_out is not None and not held_out.brier_gain.low > 0:
        notes.append(
            f"On the held-out rows '{model_id}' is not surely predicted better than by its base "
            "rate; more scores would tell."
        )
    costs = artifact.cost_model
    policy = artifact.recommended_policy or {}
    if (costs is None or not costs.usd.learned[-1]) and policy.get("lambda_per_usd"):
        notes.append(
            f"The records have no costs of '{model_id}', and the recommended policy weighs costs: "
            "give the candidates a price in the runtime config."
        )
    seeing = {name for name, seen in artifact.scored_modalities.items() if "image" in seen}
    if seeing and model_id not in seeing:
        notes.append(f"'{model_id}' has no score on a picture and serves text alone.")
    return tuple(notes)


# --------------------------------------------------------------------------- keeping


def save_addition(addition: Addition, *, source: Path, output: Path) -> Artifact:
    """Save the artifact in ``output``, whole or not at all; return it with its id.

    The card is that of ``source`` with a section more. Files for other readers that lie there
    (``nn_router.pth``) do not know the new model and are left behind.

    Parameters
    ----------
    addition : Addition
    source : Path
        The folder of the artifact that was extended.
    output : Path
        May be ``source``.

    Raises
    ------
    ArtifactError
        See ``artifacts.save_artifact``.
    """
    card = find_folder(source) / "README.md"
    try:
        text = card.read_text(encoding="utf-8") if card.exists() else "# Router artifact\n"
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"The card '{card}' cannot be read: {error}") from error
    return save_artifact(
        addition.artifact,
        output,
        created_by=f"model-router {__version__}",
        card=extend_card(text, addition.artifact),
    )


def free_output(source: Path, model_id: str) -> Path:
    """Return the folder beside ``source`` that an addition is kept in unless another is named.

    Raises
    ------
    ConfigError
        It exists.
    """
    plain = "".join(char if char.isalnum() or char in "-_." else "-" for char in model_id)
    folder = find_folder(source).resolve()
    output = folder.with_name(f"{folder.name}+{plain}")
    if output.exists():
        raise ConfigError(f"'{output.name}' exists beside '{source}'; name a folder (--output).")
    return output
