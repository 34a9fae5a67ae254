"""Paired intervals of the default recipe against every other system, pooled over the seeds.

Whole groups of the table are drawn with replacement, the same draws for all systems and seeds. The
k-th draw of the pooled difference is the mean over the seeds of their k-th draws, each measured on
the seed's own test rows. Five random fifths of a table share rows: drawn apart for each seed they
would count as that many independent rows, and intervals be a quarter too narrow. What is left out
is the luck of the training rows, of which the standard deviations over the seeds tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quality_parts.measures import FIGURES, Judged, utilities
from quality_parts.systems import Predictions
from router_runtime.types import F64, Int
from router_training.bootstrap import (
    Resamples,
    aucs,
    calibration_errors,
    divided,
    interval,
    pivotal,
    points_of_sums,
    sums_of_choices,
)
from router_training.curves import aiqs, choices
from router_training.evaluation_report import Interval
from router_training.metrics import actual_cost
from router_training.trade_off import alternatives

COMPARED = {"auc": 1, "brier": -1, "ece": -1, "aiq": 1}
"""Figures that are compared, with the sign of what is better."""

ABOVE_V2 = ("brier", "ece")
"""Where the default recipe has to be better than LLM Router v2, and not only not worse."""


@dataclass(frozen=True)
class Comparison:
    """The default recipe against another system.

    Parameters
    ----------
    key, title : str
        The other system's.
    differences : mapping
        Per figure of ``COMPARED`` the recipe's minus the other's, with its 95 % interval.
    binding : bool
        Whether being behind falsifies what is claimed.
    """

    key: str
    title: str
    differences: Mapping[str, Interval]
    binding: bool = True

    @property
    def behind(self) -> tuple[str, ...]:
        """Figures in which a claim fails; always empty where nothing is claimed."""
        if not self.binding:
            return ()
        worse = [key for key in COMPARED if self._side(key) < 0]
        if self.key.startswith("v2"):
            better = {key: COMPARED[key] * self.differences[key].estimate > 0 for key in ABOVE_V2}
            worse += [key for key, above in better.items() if not above and key not in worse]
        return tuple(FIGURES[key].title for key in worse)

    @property
    def verdict(self) -> str:
        """In which figures the recipe is better and worse beyond the interval."""
        sides = {1: "better", -1: "worse"}
        parts = []
        for side, word in sides.items():
            named = [FIGURES[key].title for key in COMPARED if self._side(key) == side]
            parts += [f"{word}: {', '.join(named)}"] if named else []
        return "; ".join(parts) or "no clear difference"

    def _side(self, key: str) -> int:
        found = self.differences[key]
        sign = COMPARED[key]
        if sign * found.low > 0 and sign * found.high > 0:
            return 1
        return -1 if sign * found.low < 0 and sign * found.high < 0 else 0


def draws_of(groups: Sequence[str], rows: Int, *, n_resamples: int) -> Resamples:
    """Return draws of a table's groups, looked at in some rows: the same whichever these are."""
    return Resamples.of_groups(groups, len(groups), n_resamples=n_resamples).keep(rows)


def drawn_figures(rows: Judged, found: Predictions, resamples: Resamples) -> dict[str, F64]:
    """Return the figures of ``COMPARED`` in each draw, (n_resamples,) each; see ``draws_of``."""
    Y = rows.test.labels.Y
    scored = ~np.isnan(Y)
    queries = np.nonzero(scored)[0]
    cells = resamples.keep(queries)
    p, y = found.P_test[scored], Y[scored]
    brier = cells.sums(np.stack([np.ones(len(y)), (p - y) ** 2], axis=1))
    ranked, calibrated = [], []
    for weights in cells.weights():
        ranked.append(aucs(p, y >= 0.5, weights))
        calibrated.append(calibration_errors(p, y, weights))
    return {
        "auc": np.concatenate(ranked),
        "brier": divided(brier[:, 1], brier[:, 0]),
        "ece": np.concatenate(calibrated),
        "aiq": _drawn_aiq(rows, found, resamples),
    }


def _drawn_aiq(rows: Judged, found: Predictions, resamples: Resamples) -> F64:
    labels, eligible = rows.test.labels, rows.test.eligible
    cost = actual_cost(labels, found.cost_test)
    policies = utilities(found.P_test, found.cost_test, eligible)
    swept = choices(found.P_test, found.cost_test, eligible, policies)
    parts = [sums_of_choices(chosen, labels.Y, cost) for chosen in (swept, alternatives(eligible))]
    sums = resamples.sums(np.concatenate(parts, axis=1))
    router, alone = (points_of_sums(part) for part in np.split(sums, [parts[0].shape[1]], axis=1))
    costs = alone[..., 0]
    return aiqs(router, low=np.nanmin(costs, axis=1), high=np.nanmax(costs, axis=1))


def compare(
    key: str,
    title: str,
    *,
    recipe: Sequence[tuple[Mapping[str, float], Mapping[str, F64]]],
    other: Sequence[tuple[Mapping[str, float], Mapping[str, F64]]],
    binding: bool,
) -> Comparison:
    """Compare the recipe with another system: its figures minus the other's.

    Parameters
    ----------
    key, title : str
        The other system's.
    recipe, other : sequence of (figures, draws)
        One per seed, in the same order.
    binding : bool
        See ``Comparison``.
    """
    differences = {}
    for name in COMPARED:
        pairs = list(zip(recipe, other, strict=True))
        estimate = np.mean([ours[0][name] - theirs[0][name] for ours, theirs in pairs])
        draws = np.mean([ours[1][name] - theirs[1][name] for ours, theirs in pairs], axis=0)
        form = pivotal if name == "ece" else interval  # noise adds to a calibration error
        differences[name] = form(float(estimate), draws)
    return Comparison(key, title, differences, binding)
