"""The report as one self-contained HTML page: no network, no script, nothing beside it.

The page's content security policy allows its one style element by digest, pictures from data URIs
and nothing else, so that even a value that escaped escaping could load and run nothing. (That no
``meta`` element leads elsewhere, escaping alone sees to.) Equal arguments give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from router_runtime.types import Json
from router_training import wording
from router_training.evaluation_report import (
    EvaluationReport,
    HonestPoint,
    ModelReport,
    Slice,
    Strategy,
)
from router_training.plot_files import StyleSheet, svg_of
from router_training.plots import MAX_MODELS, MAX_SLICES, figures
from router_training.report_examples import Example
from router_training.store import write_whole
from router_training.wording import bounds, number, per_1k, percent, share, signed

_TITLES = {
    "random": "random choice",
    "cheapest": "always the cheapest",
    "oracle": "oracle (knows the scores)",
    "dataset_oracle": "best single model of each data set",
}

_CAPTIONS = {
    "cost_quality": (
        "Mean cost and mean quality on the same queries. A policy above the dashed line does what "
        "no mixture of single models can; the squares' and the diamond's numbers were chosen on "
        "other rows. The bars are 95 % intervals of the difference from the best single model."
    ),
    "reliability": (
        "Observed against predicted: on the dotted diagonal a probability of .7 comes true seven "
        "times in ten. Larger dots stand for more scores."
    ),
    "histograms": "How often which probability is predicted; near 0 and 1 it is decided.",
    "shares": "How many queries each model gets, and how often it is right on them.",
    "slices": (
        "Quality of the router minus that of the model that is best over all queries. Triangles "
        "pointing up: better beyond the interval; pointing down: worse beyond it."
    ),
}

_GLOSSARY = {
    "quality, accuracy": "Mean score of the chosen models' answers, from 0 to 1.",
    "95 % interval": "Percentile interval of a paired bootstrap over groups of queries.",
    "best single": "The one model that is best on these very queries, which flatters it a little.",
    "oracle": "Per query the cheapest of the models with the best score: no router can do better.",
    "zero router": "Tossing a weighted coin between single models, without looking at the query.",
    "AIQ": "Mean quality of the curve's hull over the single models' range of costs.",
    "AUC": "Chance that an answered query has a higher probability than a failed one.",
    "Brier, log loss": "Mean squared and mean logarithmic error of the probabilities; 0 is best.",
    "ECE": "Mean distance of predicted and observed in 15 bins of equal mass.",
    "QNC": "Least cost that reaches the best single model's quality, relative to that model's.",
    "headroom": "Share of the way from the best single model to the oracle.",
    "deferral area": "Area under quality over cost as a share of the greatest; more is better.",
    "PGR, APGR, CPT": (
        "Of two models: share of the quality gap that is recovered, its mean over all shares of "
        "calls to the stronger one, and the least such share that recovers 50 % or 80 %."
    ),
}


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class _Table:
    """A table as text; ``mark`` is the number of the column that is coloured, the first being 0."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[_Row, ...]
    mark: int = 0


@dataclass(frozen=True)
class _Key:
    name: str
    value: str
    range: str = ""


def render_html(
    report: EvaluationReport,
    *,
    title: str = "Router report",
    facts: Mapping[str, str] | None = None,
    examples: Sequence[Example] = (),
) -> str:
    """Return the page.

    Parameters
    ----------
    report : EvaluationReport
    title : str
        Of what was evaluated.
    facts : mapping, optional
        What stands in the page's head, such as the date and the data's digest, in this order.
    examples : sequence of Example
        Worst regrets with prompts and pictures; without any, the page holds no text of a record.
    """
    styles = StyleSheet()
    captions = _captions(report)
    plots = {
        name: Markup(svg_of(figure, name, label=str(escape(captions[name])), styles=styles))  # noqa: S704 - made here, names escaped by matplotlib
        for name, figure in figures(report).items()
    }
    style = _resource("report.css") + styles.css
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        _environment()
        .from_string(_resource("report.html.jinja"))
        .render(
            page=_page(report, title, facts or {}, examples, plots, captions),
            style=Markup(style),  # noqa: S704 - our own file, and classes of our own figures
            policy=(
                f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
                "base-uri 'none'; form-action 'none'"
            ),
        )
    )


def write_html(page: str, path: Path) -> None:
    """Write the page, completely or not at all.

    Raises
    ------
    RouterError
        The folder cannot be written.
    """
    write_whole(path, page.encode("utf-8", errors="replace"))


def _page(
    report: EvaluationReport,
    title: str,
    facts: Mapping[str, str],
    examples: Sequence[Example],
    plots: Mapping[str, Markup],
    captions: Mapping[str, str],
) -> dict[str, Json]:
    contents = {
        "quality": "Cost and quality",
        "points": "What to expect",
        "failures": "Where it fails",
        **({"slices": "Slices"} if report.slices else {}),
        "models": "Models",
        **({"regrets": "Worst regrets"} if examples else {}),
        "reading": "How to read this",
    }
    return {
        "title": title,
        "verdict": wording.verdict(report),
        "facts": {**facts, **_sizes(report)},
        "contents": list(contents.items()),
        "key_figures": _keys(report),
        "plots": plots,
        "captions": captions,
        "strategies": _strategies(report),
        "honest": _honest(report),
        "curve_figures": _curve_figures(report),
        "policy_title": "The policy" if not report.honest else f"Policy: {report.honest[0].name}",
        "policy_yaml": wording.policy_lines(report.honest[0].policy) if report.honest else "",
        "failures": wording.failures(report),
        "slices": _slices(report),
        "models": _models(report),
        "costs": _costs(report),
        "examples": examples,
        "shows_pictures": any(example.pictures for example in examples),
        "glossary": _GLOSSARY,
        "footer": "Made by model-router. Every interval is at 95 %. This page loads nothing.",
    }


def _captions(report: EvaluationReport) -> dict[str, str]:
    captions = dict(_CAPTIONS)
    models = [strategy.outcome for strategy in report.strategies if strategy.kind == "model"]
    if any(found.n_unserved or found.n_unscored for found in models):
        captions["cost_quality"] += (
            " A model that cannot serve some of the queries, or has no score there, is drawn by "
            "the others alone."
        )
    if len(report.slices) > MAX_SLICES:
        captions["slices"] += f" Only the {MAX_SLICES} largest of {len(report.slices)} are drawn."
    if len(report.models) > MAX_MODELS:
        for name in ("reliability", "histograms", "shares"):
            captions[name] += (
                f" Only the {MAX_MODELS} models that are chosen most, of {len(report.models)}, are "
                "drawn."
            )
    return captions


def _sizes(report: EvaluationReport) -> dict[str, str]:
    return {
        "queries": f"{report.n_queries:,}",
        "scores": f"{report.n_scores:,} of {report.n_queries * len(report.models):,}",
        "models": str(len(report.models)),
        "policy": report.policy,
        "costs": {
            "usd": "USD",
            "relative": "relative to each other, not in USD",
            "unknown": "unknown",
        }.get(report.cost_unit, report.cost_unit),
    }


def _keys(report: EvaluationReport) -> list[_Key]:
    router, best = (report.strategy(kind).outcome for kind in ("router", "best_single"))
    summary, pooled = report.summary, report.pooled
    keys = [
        _Key("Router's quality", percent(router.quality), f"best single {percent(best.quality)}"),
        _Key(
            "Points against best single",
            _points(report.quality_gap.estimate),
            bounds(report.quality_gap, _points),
        ),
    ]
    if not math.isnan(report.cost_ratio.estimate):
        keys += [
            _Key(
                "Share of best single's cost",
                percent(report.cost_ratio.estimate),
                bounds(report.cost_ratio, percent),
            ),
            _Key(
                "AIQ over zero router",
                signed(summary.aiq_gain.estimate),
                bounds(summary.aiq_gain, signed),
            ),
        ]
    if not math.isnan(summary.headroom):
        keys.append(_Key("Way from best single to oracle", percent(summary.headroom)))
    return [
        *keys,
        _Key("AUC of the probabilities", number(pooled.auc), "1 is perfect, .5 is chance"),
        _Key("Brier score", number(pooled.brier), f"log loss {number(pooled.log_loss)}"),
        _Key("Calibration error (ECE)", number(pooled.ece), "0 is perfect"),
    ]


def _strategies(report: EvaluationReport) -> _Table:
    gaps = any(s.outcome.n_unscored or s.outcome.n_unserved for s in report.strategies)
    singles = [entry for entry in report.strategies if entry.kind == "model"]
    singles.sort(key=lambda entry: -_or_least(entry.outcome.quality))
    others = [entry for entry in report.strategies if entry.kind != "model"]

    def row(entry: Strategy) -> _Row:
        result = entry.outcome
        name = _TITLES.get(entry.kind, entry.name)
        if entry.kind == "best_single":
            name = f"best single ({report.best_single})"
        kind = "strong" if entry.kind == "router" else ""
        cells = [
            name,
            share(result.quality),
            _points(entry.gap.estimate),
            bounds(entry.gap, _points),
            per_1k(result.cost),
            percent(entry.savings.estimate),
            bounds(entry.savings, percent),
        ]
        if gaps:
            cells += [f"{result.n_unscored:,}", f"{result.n_unserved:,}"]
        return _Row(tuple(cells), "rule" if singles and entry is singles[-1] else kind)

    header = ["way to choose", "quality", "vs best, points", "95 %"]
    header += [wording.cost_header(report.cost_unit), "saved", "95 %"]
    return _Table(
        "Every single model, the references and the router",
        tuple(header + (["unscored", "unserved"] if gaps else [])),
        tuple(row(entry) for entry in singles + others),
    )


def _honest(report: EvaluationReport) -> _Table:
    def row(entry: HonestPoint) -> _Row:
        return _Row(
            (
                wording.honest_name(entry.name),
                share(entry.outcome.quality),
                _points(entry.gap.estimate),
                bounds(entry.gap, _points),
                per_1k(entry.outcome.cost),
                percent(entry.cost_ratio.estimate),
                bounds(entry.cost_ratio, percent),
            ),
            "strong" if entry is report.honest[0] else "",
        )

    header = ("policy", "quality", "vs best, points", "95 %")
    costs = (wording.cost_header(report.cost_unit), "of best single's cost", "95 %")
    caption = "Honest points: the policies' numbers were chosen on other rows"
    return _Table(caption, header + costs, tuple(row(entry) for entry in report.honest))


def _curve_figures(report: EvaluationReport) -> _Table:
    rows = [_Row((name, value, bound)) for name, value, bound in wording.curve_figures(report)]
    return _Table("Read off the test curves", ("measure", "value", "95 %"), tuple(rows))


def _slices(report: EvaluationReport) -> _Table:
    def row(part: Slice) -> _Row:
        gap = part.gap
        cells = (
            f"{part.by}: {part.value}",
            f"{part.n:,}",
            share(part.outcome.quality),
            share(part.best_single.quality),
            share(part.oracle_quality),
            _points(gap.estimate),
            bounds(gap, _points),
            percent(part.cost_ratio.estimate),
            number(part.metrics.auc),
            number(part.metrics.ece),
        )
        return _Row(cells, "bad" if gap.high < 0 else "good" if gap.low > 0 else "")

    header = ("slice", "queries", "router", "best single", "oracle", "gap, points", "95 %")
    return _Table(
        "The router on parts of the queries, against the model that is best over all",
        (*header, "of its cost", "AUC", "ECE"),
        tuple(row(part) for part in report.slices),
        mark=5,
    )


def _models(report: EvaluationReport) -> _Table:
    def row(entry: ModelReport) -> _Row:
        m = entry.metrics
        values = (m.auc, m.accuracy, m.f1, m.positive_rate, m.brier, m.log_loss, m.ece)
        cells = (entry.model_id, f"{m.n:,}", *map(number, values))
        seconds = (number(entry.median_seconds),) if timed else ()
        return _Row((*cells, percent(entry.share), number(entry.quality_when_chosen), *seconds))

    timed = any(math.isfinite(entry.median_seconds) for entry in report.models)
    header = ("model", "scores", "AUC", "accuracy", "F1", "positive", "Brier", "log loss", "ECE")
    return _Table(
        "Probabilities per model, and how often it is chosen",
        (*header, "chosen", "then right", *(("median s",) if timed else ())),
        tuple(row(entry) for entry in report.models),
    )


def _costs(report: EvaluationReport) -> _Table:
    known = [entry for entry in report.models if not math.isnan(entry.cost_mape)]
    rows = [
        _Row((entry.model_id, percent(entry.cost_mape), f"{entry.cost_bias:+.1%}"))
        for entry in known
    ]
    caption = "Expected against recorded cost of a call"
    return _Table(caption, ("model", "mean error", "bias of the sum"), tuple(rows))


def _points(value: float) -> str:
    return wording.UNKNOWN if math.isnan(value) else f"{100 * value:+.1f}"


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)


@cache
def _resource(name: str) -> str:
    return files("router_training").joinpath(name).read_text(encoding="utf-8")
