"""What a router does on questions of a kind it has never seen: leave each data set out in turn.

For every data set of the records a router is trained on the others alone, from the encoders to the
recommended policy, and evaluated on the one left out. The yardsticks are what costs no training:
always calling the model that is best on the other data sets, and forecasting each model's mean
score on them. Records whose group also occurs in the left-out data set are used for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.text import Text

from router_runtime.console import plain_table
from router_runtime.errors import DataError
from router_runtime.policy import build_policy
from router_runtime.types import F64, Int, Json
from router_training.bootstrap import Resamples, contrasts
from router_training.config import NoveltyFallbackConfig, TrainingConfig
from router_training.evaluation_report import Interval
from router_training.fitting import base_rates
from router_training.labels import Evaluations
from router_training.metrics import (
    actual_cost,
    mean,
    outcome,
    pick,
    probability_metrics,
    single_model,
)
from router_training.pipeline import Walk
from router_training.reading import read_records
from router_training.splits import Split, split_evaluations
from router_training.stages import Watch


@dataclass(frozen=True)
class LeftOut:
    """A router that was trained without one data set, measured on it.

    Parameters
    ----------
    dataset : str
    n : int
        Rows of the data set.
    accuracy : float
        Mean score of what the recommended policy chose.
    default_accuracy : float
        Mean score of always calling ``default_model``.
    default_model : str
        Best alone on the training and calibration rows, none of which is of this data set.
    gap : Interval
        ``accuracy - default_accuracy`` over rows where both are scored; paired bootstrap.
    brier, prior_brier : float
        Of ``P``, and of each model's mean training score as a constant forecast.
    auc : float
        Of ``P``, over all cells.
    novel_share : float
        Rows whose novelty is above the bound of the fallback; NaN where novelty is switched off.
        Without a fallback the bound is the one that is usual.
    cost, default_cost : float
        Mean cost of a call by the policy, and by always ``default_model``.
    """

    dataset: str
    n: int
    accuracy: float
    default_accuracy: float
    default_model: str
    gap: Interval
    brier: float
    prior_brier: float
    auc: float
    novel_share: float
    cost: float
    default_cost: float

    def to_json(self) -> Json:
        """Return plain values, None for NaN."""
        values = {**asdict(self), "gap": asdict(self.gap)}
        return _without_nan(values)


def leave_out(config: TrainingConfig, *, watch: Watch | None = None) -> tuple[LeftOut, ...]:
    """Leave each data set out in turn, train on the others and measure on it.

    Embeddings and heads are kept in the work folder like those of a run, so that an interrupted
    call continues and a repeated one only measures. Nothing else is saved.

    Parameters
    ----------
    config : TrainingConfig
        ``split`` gives the proportions of train, validation and calibration; ``output`` is unused.
    watch : callable, optional
        See ``pipeline.Walk``.

    Returns
    -------
    tuple of LeftOut
        In the order of the data sets' names.

    Raises
    ------
    DataError
        The records name fewer than two data sets, or the others are too few to train on.
    ConfigError
        See ``read_records``.
    """
    return tuple(leave_out_each(config, watch=watch))


def leave_out_each(config: TrainingConfig, *, watch: Watch | None = None) -> Iterator[LeftOut]:
    """Yield what ``leave_out`` returns, each as soon as it is measured."""
    data = read_records(config)
    names = sorted({name for name in data.datasets if name})
    if len(names) < 2:
        raise DataError(
            f"Leaving a data set out needs at least two; the records name {names or 'none'}. "
            "Give each record its 'dataset'."
        )
    for name in names:
        walk = Walk(config, watch=watch, data=data, split=split_without(data, name, config))
        yield _measure(walk, name)


def split_without(data: Evaluations, dataset: str, config: TrainingConfig) -> Split:
    """Return a split whose test part is one data set, and whose others share no group with it."""
    inside = np.array([name == dataset for name in data.datasets])
    groups = np.asarray(data.groups)
    others = np.flatnonzero(~inside & ~np.isin(groups, groups[inside]))
    shares = np.array([*config.split.fractions[:3], 0.0])
    fractions = tuple(shares / shares.sum())
    parts = split_evaluations(data.take(others), fractions=fractions, seed=config.seed)
    return Split(
        train=others[parts.train],
        validation=others[parts.validation],
        calibration=others[parts.calibration],
        test=np.flatnonzero(inside).astype(np.int64),
    )


def _measure(walk: Walk, dataset: str) -> LeftOut:
    rows, ids = walk.split.test, walk.data.model_ids
    found, expected, eligible = walk.predict(rows), walk.expected_cost(rows), walk.eligible(rows)
    labels = walk.data.labels.take(rows)
    cost = actual_cost(labels, expected, cost_unit=walk.costs.unit)
    policy = build_policy(walk.recommended, model_ids=ids, name="recommended")
    chosen = policy.rank(found.P, expected, eligible, found.novelty)[:, 0]
    always = single_model(ids.index(walk.default_model), eligible)
    served, default = outcome(chosen, labels.Y, cost), outcome(always, labels.Y, cost)
    resamples = Resamples.of_groups(walk.data.take(rows).groups, len(rows), seed=walk.config.seed)
    gap = contrasts([_of(chosen, labels.Y, cost)], _of(always, labels.Y, cost), resamples)[0].gap
    rates = base_rates(walk.data.labels.Y[walk.split.train])
    probabilities = probability_metrics(found.P, labels.Y)
    constant = probability_metrics(np.broadcast_to(rates, found.P.shape), labels.Y)
    return LeftOut(
        dataset=dataset,
        n=len(rows),
        accuracy=served.quality,
        default_accuracy=default.quality,
        default_model=walk.default_model,
        gap=gap,
        brier=probabilities.brier,
        prior_brier=constant.brier,
        auc=probabilities.auc,
        novel_share=_novel_share(walk.config, found.novelty),
        cost=served.cost,
        default_cost=default.cost,
    )


def render_left_out(found: Sequence[LeftOut], console: Console) -> None:
    """Print a row for each data set: the router, always the default, and the constant forecast."""
    table = plain_table("Each data set in turn, by a router trained on the others")
    table.add_column("left out", overflow="fold")
    for header in ("rows", "novel", "accuracy", "vs default", "from", "to", "Brier", "of mean"):
        table.add_column(header, justify="right")
    for entry in found:
        gap = entry.gap
        table.add_row(
            Text(entry.dataset),
            str(entry.n),
            f"{entry.novel_share:.1%}",
            f"{entry.accuracy:.4f}",
            *(f"{value:+.4f}" for value in (gap.estimate, gap.low, gap.high)),
            f"{entry.brier:.4f}",
            f"{entry.prior_brier:.4f}",
        )
    console.print(table)
    defaults = ", ".join(sorted({entry.default_model for entry in found}))
    console.print(Text(f"default: always {defaults}; mean: each model's mean training score"))


def _of(chosen: Int, Y: F64, cost: F64) -> tuple[F64, F64]:
    return pick(chosen, Y), pick(chosen, cost)


def _novel_share(config: TrainingConfig, novelty: F64 | None) -> float:
    fallback = config.novelty.fallback
    bound = NoveltyFallbackConfig() if fallback == "off" else fallback
    return float("nan") if novelty is None else mean(novelty > bound.novelty_above)


def _without_nan(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
