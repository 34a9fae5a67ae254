"""How figures read in the console, the card and the page, and what a report says about failures."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping

import yaml

from router_runtime.types import Json
from router_training.evaluation_report import EvaluationReport, Interval, ModelReport, Slice

UNKNOWN = "-"
"""Shown for NaN: what is not known is no number."""

_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_PREFIXES = ("", "k", "M", "G", "T")
_MANY = 5  # slices named in one sentence


def one_line(text: str) -> str:
    """Return text in one line without control characters or marks that turn it around."""
    clean = "".join(" " if unicodedata.category(c) in _UNSEEN else c for c in text)
    return " ".join(clean.split())


def share(value: float) -> str:
    """Return a quality or probability with four decimals."""
    return UNKNOWN if math.isnan(value) else f"{value:.4f}"


def number(value: float) -> str:
    """Return three decimals."""
    return UNKNOWN if math.isnan(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """Return a difference with its sign and four decimals."""
    return UNKNOWN if math.isnan(value) else f"{value:+.4f}"


def percent(value: float) -> str:
    """Return a share as percent with one decimal; ``inf`` reads ``never``, ``-inf`` unknown."""
    if math.isinf(value):
        return "never" if value > 0 else UNKNOWN
    return UNKNOWN if math.isnan(value) else f"{value:.1%}"


def per_1k(value: float) -> str:
    """Return four significant digits of a thousand calls' cost, with no exponent where short."""
    return UNKNOWN if math.isnan(value) else f"{1000 * value:.4g}"


def seconds(value: float | None) -> str:
    """Return seconds with two significant digits, or all before the point."""
    if value is None:
        return UNKNOWN
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"


def magnitude(value: int | None) -> str:
    """Return a count with three significant digits at most: 950, 1.23k, 4.56M, 7.89G."""
    if value is None:
        return UNKNOWN
    power = 0
    while value / 1000**power >= 999.5 and power < len(_PREFIXES) - 1:
        power += 1
    return f"{value / 1000**power:.3g}{_PREFIXES[power]}"


def milliseconds(value: float) -> str:
    """Return milliseconds with three significant digits, or all before the point."""
    if math.isnan(value):
        return UNKNOWN
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def cost_header(cost_unit: str) -> str:
    """Return the heading of a column of ``per_1k``."""
    return {"usd": "USD/1k calls", "relative": "relative cost x 1k"}.get(cost_unit, "cost")


def interval(value: Interval, form: Callable[[float], str]) -> str:
    """Return ``estimate [low, high]``; the estimate alone where the bounds are unknown."""
    if math.isnan(value.low) or math.isnan(value.high):
        return form(value.estimate)
    return f"{form(value.estimate)} {bounds(value, form)}"


def bounds(value: Interval, form: Callable[[float], str]) -> str:
    """Return ``[low, high]``, empty where they are unknown."""
    if math.isnan(value.low) or math.isnan(value.high):
        return ""
    return f"[{form(value.low)}, {form(value.high)}]"


def verdict(report: EvaluationReport) -> str:
    """Return in one sentence what the router achieved against the best single model."""
    gap, ratio = report.quality_gap, report.cost_ratio
    best = report.best_single
    if math.isnan(gap.estimate):
        return f"Nothing can be said against the best single model, {best}: too little is scored."
    points = f"{100 * abs(gap.estimate):.1f} points"
    if math.isnan(gap.low):
        return (
            f"How the router compares with the best single model, {best}, cannot be told: the "
            "queries are of one group, and from one there is no interval."
        )
    if gap.low > 0:
        quality = f"The router answers better than the best single model, {best}, by {points}"
    elif gap.high < 0:
        quality = f"The router answers worse than the best single model, {best}, by {points}"
    else:
        quality = f"The router's quality cannot be told from that of the best single model, {best}"
    quality += f" (95 % interval {100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    if report.strategy("best_single").outcome.cost == 0:
        return f"{quality}; the best single model costs nothing."
    if math.isnan(ratio.estimate):
        return f"{quality}; no cost is known."
    return f"{quality}, at {ratio.estimate:.0%} of its cost ({ratio.low:.0%} to {ratio.high:.0%})."


def failing_slices(report: EvaluationReport) -> list[Slice]:
    """Return the slices whose gap's interval lies below 0, the worst first."""
    failing = [part for part in report.slices if part.gap.high < 0]
    return sorted(failing, key=lambda part: part.gap.estimate)


def least_predictable(report: EvaluationReport) -> ModelReport | None:
    """Return the model with the lowest AUC; None where none is defined."""
    known = [entry for entry in report.models if not math.isnan(entry.metrics.auc)]
    return min(known, key=lambda entry: entry.metrics.auc, default=None)


def worst_calibrated(report: EvaluationReport) -> ModelReport | None:
    """Return the model with the greatest calibration error; None where none is defined."""
    known = [entry for entry in report.models if not math.isnan(entry.metrics.ece)]
    return max(known, key=lambda entry: entry.metrics.ece, default=None)


def failures(report: EvaluationReport) -> list[str]:
    """Return where the router fails, a sentence each, from the figures alone."""
    found = _about_slices(report)
    gain = report.summary.aiq_gain
    if gain.high < 0:
        found.append(
            f"Mixing single models by coin is better than the router: AIQ {signed(gain.estimate)} "
            f"{bounds(gain, signed)}."
        )
    elif gain.low <= 0 <= gain.high:
        found.append(
            "Over the range of costs the router is not clearly better than mixing single models by "
            f"coin: AIQ {signed(gain.estimate)} {bounds(gain, signed)}."
        )
    weakest, worst = least_predictable(report), worst_calibrated(report)
    if weakest is not None:
        found.append(
            f"Least predictable model: {weakest.model_id} (AUC {number(weakest.metrics.auc)})."
        )
    if worst is not None:
        found.append(f"Worst calibrated model: {worst.model_id} (ECE {number(worst.metrics.ece)}).")
    return found + _about_coverage(report)


def _about_slices(report: EvaluationReport) -> list[str]:
    failing = failing_slices(report)
    if not report.slices:
        return []
    if not failing:
        return [
            f"On none of the {len(report.slices)} slices is the router worse than the best single "
            "model beyond the 95 % interval."
        ]
    found = [
        f"Worse than the best single model on {part.by} '{part.value}': "
        f"{100 * part.gap.estimate:+.1f} points ({100 * part.gap.low:+.1f} to "
        f"{100 * part.gap.high:+.1f}), n = {part.n}."
        for part in failing[:_MANY]
    ]
    if len(failing) > _MANY:
        found.append(f"Worse on {len(failing) - _MANY} more slices.")
    return found


def _about_coverage(report: EvaluationReport) -> list[str]:
    served = report.strategy("router").outcome
    found = []
    if served.n_unserved:
        found.append(
            f"No model may serve {served.n_unserved} of the {report.n_queries} queries "
            f"({served.n_unserved / report.n_queries:.1%})."
        )
    if served.n_unscored:
        found.append(
            f"The chosen model has no score on {served.n_unscored} of the {report.n_queries} "
            f"queries ({served.n_unscored / report.n_queries:.1%}), which count nowhere."
        )
    if report.cost_unit == "usd" and report.recorded_cost_share < 1:
        known = report.recorded_cost_share
        told = f"{known:.0%} of the calls have" if known > 0 else "No call has"
        found.append(f"{told} a recorded cost; the others count with their expected cost.")
    return found


def honest_name(name: str) -> str:
    """Return the label of an honest point: a wanted share says what it is a share of."""
    return f"{name} of best" if name.endswith("%") else name


def policy_lines(policy: Mapping[str, Json]) -> str:
    """Return the lines of a runtime config that choose a policy, as YAML."""
    given = {key: value for key, value in policy.items() if value is not None}
    return yaml_lines({"policies": {"recommended": given}, "policy": "recommended"})


class _OneLineDumper(yaml.SafeDumper):
    """Writes every text in one line, so that none can end a code block or pose as another key."""


def _one_line_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_OneLineDumper.add_representer(str, _one_line_text)


def yaml_lines(content: Json) -> str:
    """Return YAML for a document, in which no text goes over a line's end or turns another."""

    def dumped(*, allow_unicode: bool) -> str:
        text: str = yaml.dump(
            content,
            Dumper=_OneLineDumper,
            sort_keys=False,
            allow_unicode=allow_unicode,
            width=math.inf,
        )
        return text

    plain = dumped(allow_unicode=True)
    shown = all(line.isprintable() for line in plain.split("\n"))
    return plain if shown else dumped(allow_unicode=False)


def curve_figures(report: EvaluationReport) -> list[tuple[str, str, str]]:
    """Return what is read off the curves of the test rows: measure, value, 95 % bounds."""
    summary = report.summary
    rows = [
        (f"AIQ, {name.replace('_', ' ')}", share(value), "") for name, value in summary.aiq.items()
    ]
    gain = summary.aiq_gain
    rows.append(("AIQ, router minus zero router", signed(gain.estimate), bounds(gain, signed)))
    rows += [
        ("least cost at the best single model's quality (QNC)", percent(summary.qnc), ""),
        ("savings at that quality", percent(summary.savings_at_parity), ""),
        ("headroom used, at the policy", percent(summary.headroom), ""),
        ("rank score (RouterArena), at the policy", number(summary.rank_score), ""),
    ]
    rows += [
        (f"deferral area, {name.replace('_', ' ')}", share(value), "")
        for name, value in summary.deferral_area.items()
    ]
    two = summary.two_models
    if two is not None:
        rows += [
            (f"PGR at the policy ({two.weak} to {two.strong})", number(two.pgr), ""),
            ("APGR", number(two.apgr.estimate), bounds(two.apgr, number)),
            ("CPT(50 %): calls to the stronger model", percent(two.cpt50), ""),
            ("CPT(80 %): calls to the stronger model", percent(two.cpt80), ""),
        ]
    return [row for row in rows if row[1] != UNKNOWN]
